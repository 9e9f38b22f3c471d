"""Trainings for `test_ranks`: run there in one process, and as a program in two.

`python -m torch.distributed.run --nproc_per_node 2 tests/helpers/two_ranks.py FOLDER`
"""

import os
import sys
import zlib
from functools import partial
from pathlib import Path

import pytest
import torch
from killed import Killed
from tiny_tapo import TINY

from finer1_lite import cot, logprobs, models, paperbirds, rewards, sft
from finer1_lite.generation import Student
from finer1_lite.runtime import distributed
from finer1_lite.species import Collection
from finer1_lite.students import lab_student
from finer1_lite.tapo import train_tapo
from finer1_lite.trainer import Loop

PLAIN = TINY.with_(tapo__steps=3, tapo__learning_rate=1e-2, tapo__groups=3, tapo__draws=1)
CASES = {  # three groups for two processes: never as many for each
    "plain": PLAIN,
    "shared batches": PLAIN.with_(
        tapo__steps=4,
        tapo__updates=2,
        tapo__draws=2,
        tapo__negative="random",
        tapo__scored_on="own",
        tapo__negative_grad=True,
        tapo__micro_batch=3,
        gradient_checkpointing=True,
    ),
    "one group": PLAIN.with_(tapo__groups=1, tapo__steps=3, tapo__draws=4),
    "killed": PLAIN.with_(tapo__steps=6, tapo__groups=2, max_new_tokens=4),
    "memory": PLAIN.with_(tapo__steps=1, tapo__draws=2),
}
SFT = TINY.with_(sft__steps=5, sft__batch=4, sft__micro_batch=4, sft__learning_rate=0.5)


class Moment:
    """Knows the step; dies after `kill`."""

    def __init__(self, kill: int = 0):
        self.step, self.kill = 0, kill

    def __call__(self, step: int, log: dict) -> None:
        self.step = step
        if step == self.kill:
            raise Killed


def by_text(moment: Moment):
    """Right or wrong by the letters of an answer: the same whoever judges it. Every third
    species all wrong; and in the second step, every species."""

    def accuracy(text, label, **_):
        if moment.step == 1 or zlib.crc32(label.encode()) % 3 == 0:
            return 0.0
        return float(zlib.crc32(text.encode()) % 2)

    return accuracy


def short_of_memory(real):
    """Two answers at a time fit, in the last process only; in the others all do."""
    rank, size = distributed.world()

    def score(model, batch, tokens, *rest, **more):
        if rank == size - 1 and len(tokens) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")
        return real(model, batch, tokens, *rest, **more)

    return score


def adapted() -> Student:
    """In float64: what differs then is not rounding."""
    processor = lab_student.make_processor()
    torch.manual_seed(0)
    student = Student(lab_student.make_model(processor.tokenizer).eval(), processor)
    student = models.add_adapter(student, TINY, seed=0)
    student.model.double()
    return student


def alone(folder: Path) -> None:
    """A loop that the main process has for itself, while the others wait."""
    model = torch.nn.Linear(2, 1)
    model.dtype = torch.float32
    loop = Loop(model, folder, steps=2, learning_rate=0.1, weight_decay=0.0, save_every=1)
    for _ in loop:
        loop.accelerator.backward(model(torch.ones(2)).sum())
        loop.step({})
    assert distributed.world() == (0, 1)


def run(folder: Path, names=tuple(CASES)) -> None:
    """Every case into a folder of its own."""
    world = paperbirds.make_world(0)
    birds = paperbirds.collection(world, test=36)
    for name in names:
        with pytest.MonkeyPatch.context() as patch:
            if name == "memory":
                patch.setattr(logprobs, "log_probs", short_of_memory(logprobs.log_probs))
            for kill in (6, 0) if name == "killed" and distributed.world()[1] > 1 else (0,):
                moment = Moment(kill)
                patch.setattr(rewards, "accuracy_reward", by_text(moment))
                try:
                    train_tapo(adapted(), birds, CASES[name], 0, folder / name, on_step=moment)
                except Killed:
                    assert kill
    distributed.on_main_process(lambda: alone(folder / "alone"))
    few = Collection("bird", birds.species, birds.train[:8], birds.test[:2], birds.distance)
    rows = sft.chain_rows(few, cot.make_chains(few, cot.oracle(world), seed=0))
    with pytest.MonkeyPatch.context() as patch:  # the loss is in float32 whatever the model is,
        # and Adam would make steps of the signs of rounding errors
        patch.setattr(sft, "SFTConfig", partial(sft.SFTConfig, optim="sgd"))
        sft.train_sft(adapted(), rows, SFT, 0, folder / "sft")


if __name__ == "__main__":
    os.environ["FINER1_DEVICE"] = "cpu"
    torch.set_num_threads(1)
    run(Path(sys.argv[1]))
