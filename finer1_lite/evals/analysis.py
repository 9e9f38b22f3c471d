"""Better use of knowledge, or more knowledge? Measured on a student before and after.

* linear probes: is the class already readable from the vision features and from the
  language model's state, and did training change that?
* CKA: how far did the states move?
* a quiz in words, no picture: does it know more?
* faithfulness: does the answer follow the marks that the chain cites, and the picture?
* transfer: can it tell a mark that is covered (`transfer`)?

The questions are Fine-R1's (arXiv 2602.07605, section on what improves); it printed probe
accuracies and one p-value. Everything measured is a row, so that tables and figures
(`changes`) come with n and intervals, and "unchanged" can be told from "too few to see".
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch

from finer1_lite import generation, paperbirds, prompts, rewards
from finer1_lite.evals import changes, transfer
from finer1_lite.evals.baselines import choose, extract, probe_scores, tower_features
from finer1_lite.generation import PromptBatch, Student
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


def probe_right(
    features: np.ndarray, labels: Sequence[str], folds: int = 2, ridge: float = 0.1
) -> list[bool]:
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
    core, parts = generation.core_of(student.model), []
    for at in range(0, len(photos), BATCH):
        images = [p.image() for p in photos[at : at + BATCH]]
        batch = generation.encode_prompts(
            student.model, student.processor, [question] * len(images), images
        )
        parts.append(generation.prefill(core, batch, 1)[0][:, -1].float().cpu().numpy())
    return np.concatenate(parts)


def quiz(student: Student, collection: Collection, max_new_tokens: int = 24) -> dict[str, bool]:
    """Class -> is it named from its description alone? Classes without one are left out."""
    asked = {
        s.name: f"A {collection.coarse} has {s.description}. "
        + prompts.question("answer", collection.coarse)
        for s in collection.species
        if s.description
    }
    told = answers(student, list(asked.values()), None, max_new_tokens)
    return {
        name: rewards.match_class(rewards.parse_answer(text), collection.names) == name
        for name, text in zip(asked, told)
    }


def answers(
    student: Student,
    questions: Sequence[str],
    images,
    max_new_tokens: int,
    started: Sequence[str] | None = None,
) -> list[str]:
    """Greedy answers; `started` gives the words that each answer must begin with."""
    told = []
    for at in range(0, len(questions), BATCH):
        part = slice(at, at + BATCH)
        batch = generation.encode_prompts(
            student.model, student.processor, questions[part], images[part] if images else None
        )
        begun = list(started[part]) if started else [""] * len(batch.input_ids)
        if started:
            batch = continue_with(batch, begun, student.processor.tokenizer)
        out = generation.generate(
            student.model, student.processor, batch, max_new_tokens=max_new_tokens
        )
        told += [start + text for start, text in zip(begun, out.completions)]
    return told


def continue_with(batch: PromptBatch, begun: Sequence[str], tokenizer) -> PromptBatch:
    """The prompts with the beginning of an answer behind each, padded on the left again."""
    rows = []
    last = batch.position_ids.amax((0, 2))  # (P,)
    for p, text in enumerate(begun):
        more = torch.tensor(
            tokenizer.encode(text, add_special_tokens=False),
            dtype=torch.long,
            device=batch.input_ids.device,
        )
        keep = batch.attention_mask[p].bool()
        ahead = last[p] + 1 + torch.arange(len(more), device=more.device)
        rows.append(
            (
                torch.cat([batch.input_ids[p][keep], more]),
                torch.cat([batch.mm_token_type_ids[p][keep], torch.zeros_like(more)]),
                torch.cat([batch.position_ids[:, p][:, keep], ahead.expand(3, -1)], 1),
            )
        )
    length = max(len(ids) for ids, _, _ in rows)

    def pad(values, fill):
        return torch.nn.functional.pad(values, (length - values.shape[-1], 0), value=fill)

    return PromptBatch(
        input_ids=torch.stack([pad(ids, tokenizer.pad_token_id) for ids, _, _ in rows]),
        attention_mask=torch.stack([pad(torch.ones_like(ids), 0) for ids, _, _ in rows]),
        mm_token_type_ids=torch.stack([pad(types, 0) for _, types, _ in rows]),
        position_ids=torch.stack([pad(places, 0) for *_, places in rows], 1),
        image_features=batch.image_features,
    )


# --- faithfulness ----------------------------------------------------------------------------


def faithfulness(
    student: Student,
    world: paperbirds.World,
    photos: Sequence[Photo],
    max_new_tokens: int = 96,
    seed: int = 0,
) -> list[dict]:
    """Does the answer follow the chain's marks, and the picture? Paper birds; rows.

    edited marks: the marks in which the nearest other species differs are written into the
    analysis and the student goes on from there; `follows`: it then names that species.
    swapped picture: the same question about a picture of that species. chain kept: the
    picture is swapped under the unchanged analysis; `follows`: the chain's answer stays.
    Asked of the pictures that were named rightly at first (and cite such a mark).
    """
    rng = random.Random(seed)
    question = prompts.question("think", "bird")
    images = [p.image() for p in photos]
    first = answers(student, [question] * len(photos), images, max_new_tokens)
    kept = [i for i, p in enumerate(photos) if _named(first[i], world) == p.species]
    rivals = {i: _rival(world, photos[i].species, rng) for i in kept}
    swapped = {i: paperbirds.photo(world, rivals[i], "swap", n).image() for n, i in enumerate(kept)}
    edits = {i: edit_chain(first[i], _marks_to(world, photos[i].species, rivals[i])) for i in kept}
    edited = [i for i in kept if edits[i]]
    begun = {i: first[i][: max(first[i].lower().find(prompts.SECTIONS[1]), 0)] for i in kept}

    def ask(which, shown, started=None):
        return (
            answers(
                student, [question] * len(which), [shown[i] for i in which], max_new_tokens, started
            )
            if which
            else []
        )

    rows = [
        {
            "measure": "named after a chain",
            "item": p.id,
            "label": p.species,
            "correct": _named(text, world) == p.species,
            "completion": text,
        }
        for p, text in zip(photos, first)
    ]
    for name, which, told, wanted in (
        ("edited marks", edited, ask(edited, images, [edits[i] for i in edited]), rivals),
        ("swapped picture", kept, ask(kept, swapped), rivals),
        (
            "swapped picture, chain kept",
            kept,
            ask(kept, swapped, [begun[i] for i in kept]),
            {i: photos[i].species for i in kept},
        ),
    ):
        for i, text in zip(which, told):
            named, label = _named(text, world), photos[i].species
            rows.append(
                {
                    "measure": changes.FAITH + name,
                    "item": photos[i].id,
                    "label": label,
                    "rival": rivals[i],
                    "named": named,
                    "changes": named != label,
                    "follows": named == wanted[i],
                    "completion": text,
                }
            )
    return rows


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

Parts = dict[str, Callable[[], list[dict]]]


def parts(
    students: Mapping[str, Student],
    collection: Collection,
    world: paperbirds.World | None,
    max_new_tokens: int = 96,
) -> Parts:
    """Name -> function that measures a part and returns its rows (`changes`).

    students: "before" and "after". Faithfulness and the covered mark need a world whose
    marks are known and are left out without one.
    """
    photos = collection.test
    question = prompts.question("answer", collection.coarse)

    def dated(measure: Callable[[Student], list[dict]]) -> list[dict]:
        return [row | {"when": when} for when, s in students.items() for row in measure(s)]

    def cover() -> list[dict]:
        shown = transfer.cover(world, photos)

        def measure(student):
            def tell(questions, images):
                return answers(student, questions, images, max_new_tokens)

            return transfer.measure(tell, world, shown)

        rows = dated(measure)
        asked = [r for r in rows if r["when"] == "before" and r["measure"].endswith("one step")]
        counted = transfer.control_rows(world, asked)
        return rows + [row | {"when": "control"} for row in counted]

    found: Parts = {
        "vision": lambda: _features("vision", students, photos, vision_features),
        "language": lambda: _features(
            "language", students, photos, lambda s, p: language_states(s, p, question)
        ),
        "quiz": lambda: dated(lambda s: _quiz_rows(s, collection)),
    }
    if world is not None:
        found["faithfulness"] = lambda: dated(
            lambda s: faithfulness(s, world, photos, max_new_tokens)
        )
        found["covered mark"] = cover
    return found


def _features(
    name: str,
    students: Mapping[str, Student],
    photos: Sequence[Photo],
    look: Callable[[Student, Sequence[Photo]], np.ndarray],
) -> list[dict]:
    """A probe's verdict on every picture, before and after, and the CKA between the two."""
    seen = {when: look(student, photos) for when, student in students.items()}
    labels = [p.species for p in photos]
    rows: list[dict] = [
        {
            "measure": f"linear probe, {name}",
            "when": when,
            "item": p.id,
            "label": p.species,
            "correct": right,
        }
        for when, features in seen.items()
        for p, right in zip(photos, probe_right(features, labels))
    ]
    return [*rows, {"measure": f"CKA, {name}", "when": "both", "value": cka(*seen.values())}]


def _quiz_rows(student: Student, collection: Collection) -> list[dict]:
    known = quiz(student, collection)
    split = {s.name: "seen" if s.seen else "unseen" for s in collection.species}
    return [
        {"measure": f"quiz in words, {split[name]}", "item": name, "label": name, "correct": right}
        for name, right in known.items()
    ]


def analyse(
    before: Student,
    after: Student,
    collection: Collection,
    world: paperbirds.World | None,
    max_new_tokens: int = 96,
) -> dict:
    """All parts of two students on the test pictures of a collection, as `changes.summary`."""
    both = {"before": before, "after": after}
    made = parts(both, collection, world, max_new_tokens)
    return changes.summary([row for make in made.values() for row in make()])
