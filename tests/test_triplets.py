"""Anchor, positive, hard negative."""

import random
from collections import Counter
from dataclasses import replace

import pytest

from finer1_lite import lab
from finer1_lite.data.runs import Run
from finer1_lite.presets import Preset
from finer1_lite.runtime.files import DataError
from finer1_lite.species import Collection, Photo, Species
from finer1_lite.triplets import draw_triplets, make_triplet, require_enough


@pytest.fixture(scope="module")
def triplets(birds):
    return [make_triplet(birds, photo, random.Random(7)) for photo in birds.train]


def test_positive_is_another_picture_of_the_same_class(triplets):
    for t in triplets:
        assert t.positive.species == t.anchor.species
        assert t.positive.id != t.anchor.id


def test_negative_is_of_the_nearest_other_seen_class(birds, world, triplets):
    """The nearest of all is often unseen; training must not touch it."""
    unseen_is_nearer = 0
    for t in triplets:
        name = t.anchor.species
        assert t.negative.species in birds.seen_names and t.negative.species != name
        fewest = min(len(world.differing(name, n)) for n in world.seen if n != name)
        assert len(world.differing(name, t.negative.species)) == fewest
        unseen_is_nearer += birds.neighbours(name)[0] not in world.seen
    assert unseen_is_nearer > 0


def test_no_test_picture_is_used(birds):
    trained = {p.id for p in birds.train}
    for step in range(20):
        for round_ in (0, 1):
            for t in draw_triplets(birds, 8, seed=1, step=step, round_=round_):
                assert {t.anchor.id, t.positive.id, t.negative.id} <= trained


def test_positives_and_negatives_vary(birds):
    anchor, rng = birds.train[0], random.Random(0)
    drawn = [make_triplet(birds, anchor, rng) for _ in range(60)]
    assert len({t.positive.id for t in drawn}) == 3  # of four shots
    assert len({t.negative.id for t in drawn}) == 4


def test_a_step_depends_on_seed_step_and_round_alone(birds):
    """So that a killed run goes on with the same pictures, without any saved state."""
    random.seed(1)
    first = draw_triplets(birds, 8, seed=2, step=5, round_=1)
    random.seed(2)
    assert draw_triplets(birds, 8, seed=2, step=5, round_=1) == first
    for other in ((3, 5, 1), (2, 6, 1), (2, 5, 0), (2, 5, 2)):
        assert draw_triplets(birds, 8, *other) != first


def test_every_second_group_may_choose_among_four_seen_names(birds):
    """The anchor's own among them, in any place; the pictures are those of the open world."""
    places = Counter()
    for step in range(60):
        plain = draw_triplets(birds, 4, 0, step)
        offered = draw_triplets(birds, 4, 0, step, offer=True)
        assert [replace(t, options=()) for t in offered] == plain
        assert [len(t.options) for t in offered] == [0, 4, 0, 4]
        for t in offered[1::2]:
            assert set(t.options) <= set(birds.seen_names) and len(set(t.options)) == 4
            places[t.options.index(t.anchor.species)] += 1
    assert set(places) == {0, 1, 2, 3} and min(places.values()) > 15
    alone = [draw_triplets(birds, 1, 0, step, offer=True)[0].options for step in range(4)]
    assert [len(options) for options in alone] == [0, 4, 0, 4]  # one group a step: every second


def test_every_anchor_comes_once_an_epoch_in_another_order_each_time(birds):
    count, steps = 8, len(birds.train) // 8
    assert count * steps == len(birds.train) == 144
    epochs = []
    for epoch in (0, 1):
        at = range(epoch * steps, (epoch + 1) * steps)
        epochs.append([t.anchor.id for s in at for t in draw_triplets(birds, count, 0, s)])
    for epoch in epochs:
        assert Counter(epoch) == dict.fromkeys([p.id for p in birds.train], 1)
    assert epochs[0] != epochs[1]


def test_epochs_stay_whole_where_the_step_does_not_divide_them(birds):
    ids = [t.anchor.id for s in range(48) for t in draw_triplets(birds, 7, 0, s)][: 2 * 144]
    assert set(Counter(ids[:144]).values()) == {1} == set(Counter(ids[144:]).values())


@pytest.mark.parametrize("classes, shots", [(1, 2), (2, 1)])
def test_too_few_classes_or_pictures_are_named(classes, shots):
    names = ["red kite", "black kite"][:classes]
    train = tuple(Photo(f"{n}/{i}", n, lambda: None) for n in names for i in range(shots))
    species = tuple(Species(n, "", True) for n in names)
    few = Collection("bird", species, train, (), distance=lambda a, b: 1.0)
    with pytest.raises(ValueError, match="'red kite' needs a second"):
        make_triplet(few, train[0], random.Random(0))


@pytest.mark.parametrize("recipe", ["tapo", "dapo", "papo", "noisy_rollout"])
def test_what_stage_two_lacks_is_said_before_anything_is_trained(tmp_path, recipe):
    preset = Preset.lab().with_(shots=1).recipe(recipe)
    job = Run(folder=tmp_path / "run", preset=preset)
    with pytest.raises(DataError, match="stage 2 .*\n.*needs a second training picture") as told:
        lab.run(job)
    assert all(repr(n) in str(told.value) for n in job.collection()[0].seen_names)
    assert not (tmp_path / "run").exists()


def test_the_only_seen_class_is_named_with_the_mend(birds):
    one = birds.seen_names[0]
    few = replace(birds, train=tuple(p for p in birds.train if p.species == one))
    with pytest.raises(DataError, match=f"{one}' needs a second seen class.*classes.csv"):
        require_enough(few)


def test_a_tracker_that_is_not_there_is_said_before_anything_is_trained(tmp_path):
    job = Run(folder=tmp_path / "run", preset=Preset.lab(), report_to="nowhere")
    with pytest.raises(ValueError, match="report_to is 'nowhere'"):
        lab.run(job)
    assert not (tmp_path / "run").exists()


def test_a_learning_rate_below_0_is_refused_with_the_settings():
    with pytest.raises(ValueError, match="tapo.learning_rate = -1"):
        Preset.lab().with_(tapo__learning_rate=-1.0)
