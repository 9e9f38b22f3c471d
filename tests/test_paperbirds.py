"""The lab's world: what its birds share, and that no evaluated picture is ever trained on."""

import hashlib
import itertools
import random
from collections import Counter

import numpy as np
import pytest

from finer1_lite import paperbirds
from finer1_lite.paperbirds import MARKS, PLUMAGE, SHAPE, draw, make_world, photo
from finer1_lite.students import pretrain


def pixels(picture) -> str:
    """A hash of what is to be seen, whatever the file or the identifier."""
    return hashlib.sha256(picture.tobytes()).hexdigest()


def test_a_world_has_sixty_species_in_six_genera_six_seen_and_four_unseen_each(world):
    assert len(world.names) == len(set(world.names)) == 60
    assert Counter(world.genus.values()) == dict.fromkeys(paperbirds.GENERA, 10)
    assert Counter(world.genus[name] for name in world.seen) == dict.fromkeys(paperbirds.GENERA, 6)
    assert all(name.endswith(f" {world.genus[name]}") for name in world.names)


@pytest.mark.parametrize("seed", range(5))
def test_species_of_a_genus_differ_in_one_or_two_plumage_marks(seed):
    world = make_world(seed)
    for a, b in itertools.combinations(world.names, 2):
        differing = world.differing(a, b)
        if world.genus[a] == world.genus[b]:
            assert 1 <= len(differing) <= 2 and set(differing) <= set(PLUMAGE), (a, b)
        else:
            assert set(SHAPE) <= set(differing), (a, b)


def test_the_same_seed_is_the_same_world_and_another_seed_another():
    assert make_world(3) == make_world(3)
    a, b = make_world(0), make_world(1)
    assert a.marks != b.marks and a.seen != b.seen


def test_a_name_says_nothing_about_the_marks():
    """Else a student could guess the marks from the name, and two worlds would agree."""
    worlds = [make_world(seed) for seed in range(40)]
    for name_part in (0, 1):  # epithet, genus
        marks_of: dict[str, set] = {}
        for world in worlds:
            for name in world.names:
                marks = world.marks[name]
                shown = tuple(marks[m] for m in (PLUMAGE if name_part == 0 else SHAPE))
                marks_of.setdefault(name.split()[name_part], set()).add(shown)
        assert min(len(found) for found in marks_of.values()) >= 10


def test_one_identifier_is_one_picture_bit_for_bit(world):
    name = world.names[0]
    first, again = photo(world, name, "test", 3), photo(make_world(0), name, "test", 3)
    assert first.id == again.id == f"paperbirds/0/test/{name.replace(' ', '-')}/3"
    assert first.image().tobytes() == again.image().tobytes() == first.image().tobytes()
    others = [photo(world, name, "test", 4), photo(world, name, "train", 3)]
    other = make_world(1)
    others += [photo(world, world.names[1], "test", 3), photo(other, other.names[0], "test", 3)]
    hashes = {pixels(p.image()) for p in (first, *others)}
    assert len(hashes) == 5


def test_more_leaves_cover_more_of_the_same_bird(world):
    """The identifier tells how many: whoever holds it draws the same picture."""
    plain = photo(world, world.names[0], "test", 0)
    leafy = photo(world, world.names[0], "test", 0, more_leaves=8)
    assert leafy.id == plain.id.replace("/test/", "/test+8/")
    marks = world.marks[world.names[0]]
    assert paperbirds.draw_id(marks, leafy.id).tobytes() == leafy.image().tobytes()
    red = marks | {"crown": "red", "back": "red", "belly": "red"}  # green are leaves and grounds

    def covered(more: int) -> float:
        pictures = [paperbirds.draw(red, random.Random(i), more) for i in range(40)]
        r, g, b = np.stack([np.asarray(p, dtype=float) for p in pictures])[:, 20:64, 20:64].T
        return ((g > 1.2 * r) & (g > 1.2 * b)).mean()

    assert covered(8) > covered(0) + 0.05
    birds = paperbirds.collection(world, shots=1, test=24, more_leaves=8)
    assert all("+8/" in one.id for one in (*birds.train, *birds.test))


def test_pictures_are_small_rgb_and_vary_inside_a_class(world):
    shots = [photo(world, world.names[0], "train", i).image() for i in range(8)]
    assert {(p.size, p.mode) for p in shots} == {((84, 84), "RGB")}
    means = np.array([np.asarray(p, dtype=float).mean((0, 1)) for p in shots])
    assert means.std(0).min() > 5  # light and background differ


@pytest.mark.parametrize("mark", MARKS)
def test_every_value_of_a_mark_changes_pixels(mark):
    """Everything else (pose, light, leaves) is held still by the same generator."""
    rest = {m: values[0] for m, values in MARKS.items()}
    for seed in range(3):
        seen = [
            np.asarray(draw(rest | {mark: value}, random.Random(seed)), dtype=int)
            for value in MARKS[mark]
        ]
        for a, b in itertools.combinations(seen, 2):
            assert (abs(a - b).max(-1) > 10).sum() >= 10  # of 7056 pixels


def test_collection_has_shots_of_seen_species_and_tests_of_all(world):
    found = paperbirds.collection(world, shots=4, test=432)
    assert Counter(p.species for p in found.train) == dict.fromkeys(world.seen, 4)
    tests = Counter(p.species for p in found.test)
    assert {tests[n] for n in world.seen} == {12}
    assert {tests[n] for n in world.names if n not in world.seen} == {18}
    assert found.coarse == "bird" and set(found.seen_names) == world.seen


def test_neighbours_are_the_species_with_the_fewest_other_marks(birds, world):
    for name in world.names:
        counts = [len(world.differing(name, other)) for other in birds.neighbours(name)[:9]]
        assert counts == sorted(counts) and max(counts) <= 2


def test_nothing_evaluated_is_ever_trained_on(world):
    """Identifiers and pixels of every kind of picture, against those of the test."""
    found = paperbirds.collection(world, shots=4, test=432)
    tested = {pixels(p.image()) for p in found.test}
    shown = {pixels(p.image()) for p in found.train}
    assert not {p.id for p in found.train} & {p.id for p in found.test}
    assert len(shown) == len(found.train) and len(tested) == len(found.test)
    probed = {pixels(photo(world, n, "probe", i).image()) for n in world.names for i in range(4)}
    rng = random.Random("a pretraining")
    rows = [
        kind(world, rng)
        for kind in (pretrain.describe_row, pretrain.caption_row)
        for _ in range(300)
    ]
    pretrained = {pixels(row.picture) for row in rows}
    assert len(pretrained) == 600 and len(probed) == 240
    for a, b in itertools.combinations((tested, shown, probed, pretrained), 2):
        assert not a & b


def test_pretraining_shows_no_picture_with_a_chain_about_it(world):
    """The base holds the knowledge and was never shown how to use it on a picture: what it
    says of one is marks, or a bare name, and never the way from the marks to the name. A chain
    that stands behind a picture goes on from a given analysis of another bird (see
    `test_no_row_shows_a_picture_and_a_chain_about_it`)."""
    rng = random.Random(0)
    for kind, row in pretrain.ROWS.items():
        for _ in range(100):
            _, picture, reply, begun = row(world, rng)
            if kind == "argue" and picture is not None:
                assert begun.endswith("\n") and reply.startswith("candidates:")
                continue
            assert picture is None or not begun
            assert (picture is not None) == (kind in ("describe", "caption"))
            marks = any(f"{mark} " in reply for mark in MARKS)
            named = any(name in reply for name in world.names)
            if picture is not None:
                assert marks != named, reply
                assert "candidates:" not in reply and "comparison:" not in reply
