"""Killed in the middle of things: no state is lost that a step depends on."""

import copy
import zlib
from dataclasses import replace

import pytest
import torch
from killed import Killed
from tiny_tapo import TINY, Stage, gradients, weights

from finer1_lite import models, rewards, triplets
from finer1_lite.generation import Student
from finer1_lite.tapo import train_tapo
from finer1_lite.trainer import Loop

PRESET = TINY.with_(
    max_new_tokens=4,
    tapo__steps=8,
    tapo__learning_rate=1e-2,
    tapo__updates=2,
    tapo__negative="random",
    tapo__scored_on="own",
    tapo__draws=1,
)


class Watch:
    """Notes the weights after each step; dies after step `kill`."""

    def __init__(self, kill: int = 0):
        self.kill, self.steps, self.model = kill, {}, None

    def __call__(self, step, log):
        self.steps[step] = weights(self.model)
        if step == self.kill:
            raise Killed


@pytest.fixture
def drawn(monkeypatch):
    """The triplets of every draw, in order."""
    found, real = [], triplets.draw_triplets

    def spy(*args, **how):
        found.append(real(*args, **how))
        return found[-1]

    monkeypatch.setattr(triplets, "draw_triplets", spy)
    return found


@pytest.fixture
def few(birds, monkeypatch):
    """Four species, so that each comes round again within a few steps.

    Each answer is read as the name of one of them, whichever its letters pick.
    """
    names = birds.seen_names[::9]

    def read(text):
        return names[zlib.crc32(text.encode()) % len(names)]

    monkeypatch.setattr(rewards, "parse_answer", read)
    species = tuple(s for s in birds.species if s.name in names)
    return replace(
        birds, species=species, train=tuple(p for p in birds.train if p.species in names), test=()
    )


def train(student, birds, folder, watch):
    mine = Student(copy.deepcopy(student.model), student.processor)
    mine = models.add_adapter(mine, PRESET, seed=0)
    watch.model = mine.model
    train_tapo(mine, birds, PRESET, 0, folder, on_step=watch)


def negatives(draws) -> list[str]:
    return [t.negative.id for draw in draws for t in draw]


def test_a_killed_run_goes_on_bit_by_bit_with_shared_batches_and_random_negatives(
    student, few, spread, drawn, tmp_path
):
    """Killed after step 7: its batch of rollouts was half used, the checkpoint is of step 6.

    The negatives drawn by chance are the same ones.
    """
    whole, killed, resumed = Watch(), Watch(kill=7), Watch()
    train(student, few, tmp_path / "whole", whole)
    expected = negatives(drawn)
    assert len(drawn) == 4  # eight steps, two to a batch
    nearest = [t.negative.id for at in range(4) for t in triplets.draw_triplets(few, 2, 0, at)]
    drawn.clear()
    assert expected != nearest
    with pytest.raises(Killed):
        train(student, few, tmp_path / "killed", killed)
    drawn.clear()
    train(student, few, tmp_path / "killed", resumed)
    assert list(resumed.steps) == [7, 8] and negatives(drawn) == expected[-2:]
    for step in (7, 8):
        for name, weight in whole.steps[step].items():
            assert torch.equal(resumed.steps[step][name], weight), (step, name)
    assert any(not torch.equal(whole.steps[7][n], w) for n, w in whole.steps[8].items())


def test_checkpoints_fall_between_batches_of_rollouts(
    student, birds, spread, tmp_path, monkeypatch
):
    """With three updates a batch, a checkpoint of step 5 would tear one: it is step 6's."""
    preset = TINY.with_(
        max_new_tokens=2,
        tapo__steps=7,
        tapo__updates=3,
        tapo__groups=3,
        tapo__anchor_rollouts=1,
        tapo__positive_rollouts=1,
    )
    mine = Student(copy.deepcopy(student.model), student.processor)
    mine = models.add_adapter(mine, preset, seed=0)
    saved, save = [], Loop.save
    monkeypatch.setattr(Loop, "save", lambda loop: saved.append(loop.done) or save(loop))
    train_tapo(mine, birds, preset, 0, tmp_path)
    assert saved == [6, 7]  # the last step is saved whatever it is


def test_a_step_is_a_function_of_its_number(student, birds, spread, tmp_path):
    """The same weights and the same step: the same answers, loss and gradient, to the bit."""
    found = []
    for _ in range(2):
        mine = Student(copy.deepcopy(student.model), student.processor)
        stage = Stage(mine, birds, tmp_path)
        torch.manual_seed(len(found))  # the global generator plays no part
        gradient = gradients(stage, step=5)
        found.append((gradient, [g.completions for g in stage.kept], stage.parts["policy"]))
    assert torch.equal(found[0][0], found[1][0]) and found[0][1:] == found[1][1:]
    assert not torch.equal(gradients(stage, step=6), found[0][0])
