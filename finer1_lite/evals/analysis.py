"""Better use of knowledge, or more knowledge? Measured on a student before and after.

Linear probes and CKA of features, a quiz in words, faithfulness to chain and picture: the
questions of Fine-R1 (arXiv 2602.07605, on what improves), which printed probe accuracies and one
p-value. Everything measured is a row, so that tables and figures (`changes`) come with n and
intervals, and "unchanged" can be told from "too few to see".
"""

import random
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
import torch
from sklearn.linear_model import RidgeClassifier
from sklearn.model_selection import PredefinedSplit, cross_val_predict

from finer1_lite import generation, paperbirds, prompts, rewards
from finer1_lite.data.chain_text import edit_chain, opening
from finer1_lite.evals.baselines import extract, tower_features, unit
from finer1_lite.evals.changes import FAITH
from finer1_lite.evaluate import complete
from finer1_lite.generation import Student
from finer1_lite.species import Collection, Photo

BATCH = 32
FOLDS = 2  # of a probe
QUIZ_TOKENS = 24
Rows = list[dict]


def cka(x: np.ndarray, y: np.ndarray) -> float:
    """Linear centred kernel alignment of two sets of features of the same N things, in [0, 1].

    1 for features that differ by rotation, shift and one scale (Kornblith et al. 2019,
    ICML). x (N, a), y (N, b). ValueError where N differs or is below 3, or x or y is constant.
    """
    if len(x) != len(y) or len(x) < 3:
        raise ValueError(f"features of {len(x)} and {len(y)} things: give the same 3 or more")
    x, y = (np.asarray(z, float) - np.mean(z, 0, dtype=float) for z in (x, y))
    norms = np.linalg.norm(x.T @ x) * np.linalg.norm(y.T @ y)
    if norms == 0:
        raise ValueError("constant features: nothing to align")
    return float(np.linalg.norm(y.T @ x) ** 2 / norms)


def probe_right(features: np.ndarray, labels: Sequence[str]) -> list[bool]:
    """Is each picture's class read rightly by a linear probe fitted on the other fold?

    The probe is a ridge classifier on unit features (N, width). Every class is spread over
    the folds, so that each probe has met it; ValueError for one with fewer pictures than folds.
    """
    few = sorted(label for label, n in Counter(labels).items() if n < FOLDS)
    if few:
        raise ValueError(f"fewer than {FOLDS} pictures of {', '.join(few[:5])}")
    right = pd.Series(labels)
    folds = PredefinedSplit(right.groupby(right).cumcount() % FOLDS)
    named = cross_val_predict(RidgeClassifier(alpha=0.1), unit(features), right, cv=folds)
    return (named == right).tolist()


def vision_features(student: Student, photos: Sequence[Photo]) -> np.ndarray:
    """The vision tower's features of pictures; (N, width)."""
    return extract(tower_features(student), [p.image for p in photos])


@torch.no_grad()
def language_states(student: Student, photos: Sequence[Photo], question: str) -> np.ndarray:
    """The language model's last state when it has read picture and question; (N, width)."""
    core = generation.core_of(student.model)
    parts = []
    for at in range(0, len(photos), BATCH):
        images = [p.image() for p in photos[at : at + BATCH]]
        prompt_texts = [question] * len(images)
        batch = generation.encode_prompts(student.model, student.processor, prompt_texts, images)
        parts.append(generation.prefill(core, batch, 1)[0][:, -1].float().cpu().numpy())
    return np.concatenate(parts)


def features_moved(
    name: str,
    students: Mapping[str, Student],
    photos: Sequence[Photo],
    look: Callable[[Student, Sequence[Photo]], np.ndarray],
) -> Rows:
    """A probe's verdict on every picture, before and after, and the CKA between the two."""
    seen = {when: look(student, photos) for when, student in students.items()}
    labels = [p.species for p in photos]
    rows: Rows = []
    for when, features in seen.items():
        where = {"measure": f"linear probe, {name}", "when": when}
        for photo, right in zip(photos, probe_right(features, labels), strict=True):
            rows.append(where | {"item": photo.id, "label": photo.species, "correct": right})
    return [*rows, {"measure": f"CKA, {name}", "when": "both", "value": cka(*seen.values())}]


def quiz(student: Student, collection: Collection) -> Rows:
    """Is a class named from its description alone? Classes without one are left out."""
    described = [s for s in collection.species if s.description]
    question = prompts.question("answer", collection.coarse)
    prompt_texts = [f"A {collection.coarse} has {s.description}. {question}" for s in described]
    rows = []
    completions = complete(student, prompt_texts, max_new_tokens=QUIZ_TOKENS)
    for one, text in zip(described, completions, strict=True):
        row = {"measure": f"quiz in words, {'seen' if one.seen else 'unseen'}"}
        right = _named(text, collection.names) == one.name
        rows.append(row | {"item": one.name, "label": one.name, "correct": right})
    return rows


def faithfulness(
    student: Student, world: paperbirds.World, photos: Sequence[Photo], max_new_tokens: int
) -> Rows:
    """Does the answer follow the chain's marks, and the picture? Of paper birds.

    edited marks: the marks in which the nearest other species differs are written into the
    analysis and the student goes on from there; `follows`: it then names that species.
    swapped picture: the same question about a picture of that species. chain kept: the
    picture is swapped under the unchanged analysis; `follows`: the chain's answer stays.
    Asked of the pictures that were named rightly at first (and cite such a mark).
    """
    rng = random.Random(0)
    images = dict(enumerate(photo.image() for photo in photos))
    labels = [photo.species for photo in photos]

    def told(which: Sequence[int], shown: Mapping, begun: Mapping | None = None) -> list[str]:
        prompt_texts = [prompts.question("think", "bird")] * len(which)
        starts = begun and [begun[i] for i in which]
        settings = {"max_new_tokens": max_new_tokens, "begun": starts, "batch_size": BATCH}
        ends = complete(student, prompt_texts, [shown[i] for i in which], **settings)
        return [start + end for start, end in zip(starts or [""] * len(ends), ends, strict=True)]

    first = told(range(len(photos)), images)
    right = [_named(first[i], world.names) == label for i, label in enumerate(labels)]
    rows = [
        {"measure": "named after a chain", "item": p.id, "label": p.species, "correct": r}
        | {"completion": text}
        for p, r, text in zip(photos, right, first, strict=True)
    ]
    kept = [i for i in images if right[i]]
    rivals = {i: _rival(world, labels[i], rng) for i in kept}
    swapped = {i: paperbirds.photo(world, rivals[i], "swap", n).image() for n, i in enumerate(kept)}
    changed = {i: edit_chain(first[i], _marks_to(world, labels[i], rivals[i])) for i in kept}
    edits = {i: text for i, text in changed.items() if text}
    openings = {i: opening(first[i]) for i in kept}
    ways = {
        "edited marks": (list(edits), told(list(edits), images, edits), rivals),
        "swapped picture": (kept, told(kept, swapped), rivals),
        "swapped picture, chain kept": (kept, told(kept, swapped, openings), labels),
    }
    for way, (which, texts, wanted) in ways.items():
        for i, text in zip(which, texts, strict=True):
            named = _named(text, world.names)
            row = {"measure": FAITH + way, "item": photos[i].id, "label": labels[i]}
            row |= {"rival": rivals[i], "named": named, "changes": named != labels[i]}
            rows.append(row | {"follows": named == wanted[i], "completion": text})
    return rows


def _named(text: str, names: Sequence[str]) -> str | None:
    return rewards.match_class(rewards.parse_answer(text), names)


def _rival(world: paperbirds.World, name: str, rng: random.Random) -> str:
    """The nearest other species of the genus; ties fall by chance."""
    others = [n for n in world.names if world.genus[n] == world.genus[name] and n != name]
    rng.shuffle(others)
    return min(others, key=lambda n: len(world.differing(n, name)))


def _marks_to(world: paperbirds.World, name: str, other: str) -> dict[str, str]:
    """What must be rewritten to describe `other` instead of `name`."""
    old, new = world.marks[name], world.marks[other]
    return {f"{m} {old[m]}": f"{m} {new[m]}" for m in world.differing(name, other)}


def parts(
    students: Mapping[str, Student],
    collection: Collection,
    world: paperbirds.World | None,
    max_new_tokens: int = 160,
) -> dict[str, Callable[[], Rows]]:
    """Name -> function that measures a part and returns its rows (`changes`).

    students: "before" and "after". Faithfulness needs a world whose marks are known and is left
    out without one.
    """
    photos = collection.test
    question = prompts.question("answer", collection.coarse)

    def dated(measure: Callable[..., Rows], *about: Any) -> Rows:
        return [row | {"when": when} for when, s in students.items() for row in measure(s, *about)]

    language = partial(language_states, question=question)
    made = {
        "vision": partial(features_moved, "vision", students, photos, vision_features),
        "language": partial(features_moved, "language", students, photos, language),
        "quiz": partial(dated, quiz, collection),
    }
    if world is not None:
        made["faithfulness"] = partial(dated, faithfulness, world, photos, max_new_tokens)
    return made
