"""A covered mark: the picture cannot tell it, the other marks can; answers are read strictly."""

import random

import numpy as np
import pytest

from finer1_lite import paperbirds, prompts
from finer1_lite.evals import transfer
from finer1_lite.paperbirds import PLUMAGE


def test_the_picture_does_not_depend_on_the_covered_mark(world):
    """Byte for byte the same picture for all six values, and another one for another bird."""
    rng = random.Random(0)
    for mark in PLUMAGE:
        name = rng.choice(world.names)
        marks = world.marks[name]
        shown = {
            transfer.covered(marks | {mark: value}, mark, f"x/{name}").tobytes()
            for value in PLUMAGE[mark]
        }
        assert len(shown) == 1
        other = "back" if mark != "back" else "belly"
        changed = marks | {other: next(v for v in PLUMAGE[other] if v != marks[other])}
        assert transfer.covered(changed, mark, f"x/{name}").tobytes() not in shown
        plain = np.asarray(paperbirds.draw(marks, random.Random(f"x/{name}")))
        kept = (np.asarray(transfer.covered(marks, mark, f"x/{name}")) == plain).all(-1)
        assert 0.7 < kept.mean() < 1  # the patch is no bigger than it must be


@pytest.mark.parametrize("seed", [0, 1, 7])
def test_the_other_marks_identify_the_species(seed):
    """Brute force: exactly one species has the marks that are left."""
    world = paperbirds.make_world(seed)
    for name in world.names:
        for mark in PLUMAGE:
            rest = {k: v for k, v in world.marks[name].items() if k != mark}
            fits = [n for n in world.names if rest.items() <= world.marks[n].items()]
            assert (mark in transfer.hideable(world, name)) == (fits == [name])


@pytest.mark.parametrize("seed", [0, 1, 7])
def test_the_genus_is_enough_and_counting_all_species_is_not(seed):
    """What the module says about this world: a control without the exact name is always right."""
    world = paperbirds.make_world(seed)
    rows = [
        {"label": n, "mark": m, "wanted": world.marks[n][m], "item": n, "split": "seen"}
        for n in world.names
        for m in transfer.hideable(world, n)
    ]
    found = transfer.control_rows(world, rows)
    right = {
        w: np.mean([r["correct"] for r in found if r["measure"].endswith(w)])
        for w in ("in the genus", "frequent")
    }
    assert right["in the genus"] == 1 and 1 / 6 < right["frequent"] < 0.6


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("crown red, back blue.", "red"),
        ("back blue, crown red", "red"),
        ("crown", None),
        ("crown purple, back blue", None),
        ("crown red blue", None),
        ("", None),
        ("the crown red", None),
        ("crown red, crown blue", "red"),
    ],
)
def test_a_mark_is_read_strictly(text, said):
    assert transfer.said_of(text, "crown") == said


def test_whoever_names_and_knows_is_right_and_whoever_guesses_is_not(world, birds):
    """An oracle that recognises the species from the picture's order; a blind one."""
    photos = birds.test[::6]
    shown = [p for p in photos if transfer.hideable(world, p.species)]

    def oracle(questions, images):
        if images is None:
            return [
                next((paperbirds.knowledge(world, n) for n in world.names if n in q), "crown red")
                for q in questions
            ]
        if "marks" in questions[0]:
            return [paperbirds.knowledge(world, p.species) for p in shown]
        return [prompts.answer(p.species) for p in shown]

    under = transfer.cover(world, photos)
    assert [p for p, *_ in under] == shown
    rows = transfer.measure(oracle, world, under)
    ways = {r["measure"] for r in rows}
    assert len(ways) == 6 and len(rows) == 6 * len(shown)
    for way in ways:
        right = [r["correct"] for r in rows if r["measure"] == way]
        assert all(right) == ("no picture" not in way)

    def mute(questions, images):
        return ["I cannot tell"] * len(questions)

    assert not any(r["correct"] for r in transfer.measure(mute, world, under))
