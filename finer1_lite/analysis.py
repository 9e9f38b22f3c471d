"""Better use of knowledge, or more knowledge? Measured on a student before and after.

* linear probes: is the class already readable from the vision features and from the
  language model's state, and did training change that?
* CKA: how far did the states move?
* a quiz in words, no picture: does it know more?
* faithfulness: does the answer follow the marks that the chain cites, and the picture?

The questions are Fine-R1's (arXiv 2602.07605, section on what improves); it printed probe
accuracies and one p-value. Every function returns numbers with n, so that "unchanged" can
be told from "too few to see".
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence

import numpy as np
import torch

from finer1_lite import paperbirds, prompts, rewards, rollouts, stats
from finer1_lite.baselines import choose, extract, probe_scores, tower_features
from finer1_lite.metrics import wilson
from finer1_lite.models import Student
from finer1_lite.rollouts import PromptBatch
from finer1_lite.species import Collection, Photo

BATCH = 32


# --- pure ------------------------------------------------------------------------------------


def cka(x: np.ndarray, y: np.ndarray) -> float:
    """Linear centred kernel alignment of two sets of features of the same N things, in [0, 1].

    1 for features that differ by rotation, shift and one scale (Kornblith et al. 2019,
    ICML). x (N, a), y (N, b). ValueError where N differs or is below 3, or x or y is constant.
    """
    x, y = np.asarray(x, float), np.asarray(y, float)
    if len(x) != len(y) or len(x) < 3:
        raise ValueError(f"features of {len(x)} and {len(y)} things: give the same 3 or more")
    x, y = x - x.mean(0), y - y.mean(0)
    norms = np.linalg.norm(x.T @ x) * np.linalg.norm(y.T @ y)
    if norms == 0:
        raise ValueError("constant features: nothing to align")
    return float(np.linalg.norm(y.T @ x) ** 2 / norms)


def probe_right(features: np.ndarray, labels: Sequence[str], folds: int = 2,
                ridge: float = 0.1) -> list[bool]:  # fmt: skip
    """Is each picture's class read rightly by a linear probe fitted on the other folds?

    Every class is spread over the folds, so that each probe has met it. ValueError for a
    class with fewer pictures than folds.
    """
    seen: dict[str, int] = {}
    fold = np.array([seen.setdefault(label, 0) for label in labels])
    for i, label in enumerate(labels):
        fold[i] = seen[label] % folds
        seen[label] += 1
    few = sorted(label for label, n in seen.items() if n < folds)
    if few:
        raise ValueError(f"fewer than {folds} pictures of {', '.join(few[:5])}")
    right, classes = np.zeros(len(labels), bool), sorted(seen)
    at = np.array(labels)
    for f in range(folds):
        rest = fold != f
        scores = probe_scores(features[rest], list(at[rest]), classes, features[~rest], ridge)
        named = [choose(row, classes, None) for row in scores]
        right[~rest] = [n == label for n, label in zip(named, at[~rest])]
    return right.tolist()


def share_of(right: Sequence[bool]) -> dict:
    """{"share", "low", "high", "n"} with Wilson's 95 % interval; {"n": 0} of nothing."""
    if not len(right):
        return {"n": 0}
    low, high = wilson(sum(right), len(right))
    return {"share": sum(right) / len(right), "low": low, "high": high, "n": len(right)}


def change(before: Sequence[bool], after: Sequence[bool]) -> dict:
    """Both shares and McNemar's exact p on the same things."""
    gained, lost, p = stats.mcnemar(after, before)
    shares = {"before": share_of(before), "after": share_of(after)}
    return shares | {"gained": gained, "lost": lost, "p": p}


def edit_chain(completion: str, changes: Mapping[str, str]) -> str | None:
    """The chain up to its candidates, with cited marks replaced; None if none is cited.

    changes: phrase -> phrase. Only the analysis is kept, because the rest argues from it.
    """
    end = completion.lower().find(prompts.SECTIONS[1])
    if end < 0:
        return None
    analysis = completion[:end]
    for old, new in changes.items():
        if old in analysis:
            analysis = analysis.replace(old, new)
    return analysis if analysis != completion[:end] else None


# --- looking into a student ------------------------------------------------------------------


def vision_features(student: Student, photos: Sequence[Photo]) -> np.ndarray:
    """The vision tower's features of pictures. (N, width)"""
    return extract(tower_features(student), [p.image for p in photos], BATCH)


@torch.no_grad()
def language_states(student: Student, photos: Sequence[Photo], question: str) -> np.ndarray:
    """The language model's last state when it has read picture and question. (N, width)"""
    core, parts = rollouts.core_of(student.model), []
    for at in range(0, len(photos), BATCH):
        images = [p.image() for p in photos[at : at + BATCH]]
        batch = rollouts.encode_prompts(
            student.model, student.processor, [question] * len(images), images
        )
        parts.append(rollouts.prefill(core, batch, 1)[0][:, -1].float().cpu().numpy())
    return np.concatenate(parts)


def quiz(student: Student, collection: Collection, max_new_tokens: int = 24) -> dict[str, bool]:
    """Class -> is it named from its description alone? Classes without one are left out."""
    asked = {
        s.name: f"A {collection.coarse} has {s.description}. "
        + prompts.question("answer", collection.coarse)
        for s in collection.species if s.description
    }  # fmt: skip
    told = answers(student, list(asked.values()), None, max_new_tokens)
    return {
        name: rewards.match_class(rewards.parse_answer(text), collection.names) == name
        for name, text in zip(asked, told)
    }


def answers(
    student: Student, questions: Sequence[str], images, max_new_tokens: int,
    started: Sequence[str] | None = None,
) -> list[str]:  # fmt: skip
    """Greedy answers; `started` gives the words that each answer must begin with."""
    told = []
    for at in range(0, len(questions), BATCH):
        part = slice(at, at + BATCH)
        batch = rollouts.encode_prompts(
            student.model, student.processor, questions[part], images[part] if images else None
        )
        begun = list(started[part]) if started else [""] * len(batch.ids)
        if started:
            batch = continue_with(batch, begun, student.processor.tokenizer)
        out = rollouts.generate(
            student.model, student.processor, batch, max_new_tokens=max_new_tokens
        )
        told += [start + text for start, text in zip(begun, out.texts)]
    return told


def continue_with(batch: PromptBatch, begun: Sequence[str], tokenizer) -> PromptBatch:
    """The prompts with the beginning of an answer behind each, padded on the left again."""
    rows = []
    last = batch.places.amax((0, 2))  # (P,)
    for p, text in enumerate(begun):
        more = torch.tensor(tokenizer.encode(text, add_special_tokens=False),
                            dtype=torch.long, device=batch.ids.device)  # fmt: skip
        keep = batch.mask[p].bool()
        ahead = last[p] + 1 + torch.arange(len(more), device=more.device)
        rows.append((
            torch.cat([batch.ids[p][keep], more]),
            torch.cat([batch.types[p][keep], torch.zeros_like(more)]),
            torch.cat([batch.places[:, p][:, keep], ahead.expand(3, -1)], 1),
        ))  # fmt: skip
    length = max(len(ids) for ids, _, _ in rows)

    def pad(values, fill):
        return torch.nn.functional.pad(values, (length - values.shape[-1], 0), value=fill)

    return PromptBatch(
        ids=torch.stack([pad(ids, tokenizer.pad_token_id) for ids, _, _ in rows]),
        mask=torch.stack([pad(torch.ones_like(ids), 0) for ids, _, _ in rows]),
        types=torch.stack([pad(types, 0) for _, types, _ in rows]),
        places=torch.stack([pad(places, 0) for *_, places in rows], 1), features=batch.features,
    )  # fmt: skip


# --- faithfulness ----------------------------------------------------------------------------


def faithfulness(student: Student, world: paperbirds.World, photos: Sequence[Photo],
                 max_new_tokens: int = 96, seed: int = 0) -> dict:  # fmt: skip
    """Does the answer follow the chain's marks, and the picture? Paper birds.

    edited: the marks in which the nearest other species differs are written into the
    analysis and the student goes on from there; `follows`: it then names that species.
    swapped: the same question about a picture of that species. chain_kept: the picture is
    swapped under the unchanged analysis; `follows`: the chain's answer stays. Each share
    is over the pictures that were named rightly at first (and cite such a mark).
    """
    rng = random.Random(seed)
    question = prompts.question("think", "bird")
    images = [p.image() for p in photos]
    first = answers(student, [question] * len(photos), images, max_new_tokens)
    kept = [i for i, p in enumerate(photos) if _named(first[i], world) == p.species]
    rivals = {i: _rival(world, photos[i].species, rng) for i in kept}
    swapped = {
        i: paperbirds.photo(world, rivals[i], "swap", n).image() for n, i in enumerate(kept)
    }
    edits = {i: edit_chain(first[i], _marks_to(world, photos[i].species, rivals[i])) for i in kept}
    edited = [i for i in kept if edits[i]]
    begun = {i: first[i][: max(first[i].lower().find(prompts.SECTIONS[1]), 0)] for i in kept}

    def ask(which, shown, started=None):
        return answers(student, [question] * len(which), [shown[i] for i in which],
                       max_new_tokens, started) if which else []  # fmt: skip

    found = {"named rightly at first": share_of([i in set(kept) for i in range(len(photos))])}
    for name, which, told, wanted in (
        ("edited marks", edited, ask(edited, images, [edits[i] for i in edited]), rivals),
        ("swapped picture", kept, ask(kept, swapped), rivals),
        ("swapped picture, chain kept", kept, ask(kept, swapped, [begun[i] for i in kept]),
         {i: photos[i].species for i in kept}),
    ):  # fmt: skip
        named = [_named(text, world) for text in told]
        found[name] = {
            "changes": share_of([n != photos[i].species for i, n in zip(which, named)]),
            "follows": share_of([n == wanted[i] for i, n in zip(which, named)]),
        }
    return found


def _named(text: str, world: paperbirds.World) -> str | None:
    return rewards.match_class(rewards.parse_answer(text), world.names)


def _rival(world: paperbirds.World, name: str, rng: random.Random) -> str:
    """The nearest other species of the genus; ties fall by chance."""
    others = [n for n in world.names if world.genus[n] == world.genus[name] and n != name]
    rng.shuffle(others)
    return min(others, key=lambda n: len(world.differing(n, name)))


def _marks_to(world: paperbirds.World, name: str, other: str) -> dict[str, str]:
    """What must be rewritten to describe `other` instead of `name`."""
    return {
        f"{m} {world.marks[name][m]}": f"{m} {world.marks[other][m]}"
        for m in world.differing(name, other)
    }


# --- before and after ------------------------------------------------------------------------


def analyse(before: Student, after: Student, collection: Collection,
            world: paperbirds.World | None, max_new_tokens: int = 96) -> dict:  # fmt: skip
    """All of the above of two students on the test pictures of a collection.

    Faithfulness needs a world whose marks are known and is left out without one.
    """
    photos, labels = collection.test, [p.species for p in collection.test]
    question = prompts.question("answer", collection.coarse)
    eyes = [vision_features(s, photos) for s in (before, after)]
    states = [language_states(s, photos, question) for s in (before, after)]
    found: dict = {"pictures": len(photos)}
    for name, pair in (("vision", eyes), ("language", states)):
        rights = [probe_right(x, labels) for x in pair]
        found[f"linear probe, {name}"] = change(*rights)
        found[f"CKA, {name}"] = cka(*pair)
    known = [quiz(s, collection) for s in (before, after)]
    for split, names in (("seen", collection.seen_names), ("unseen", collection.unseen_names)):
        rights = [[k[n] for n in names if n in k] for k in known]
        found[f"quiz in words, {split}"] = change(*rights)
    if world is not None:
        found["faithfulness after"] = faithfulness(after, world, photos, max_new_tokens)
    return found
