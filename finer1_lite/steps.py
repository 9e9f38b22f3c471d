"""Training whose randomness is a function of the step alone, and safe checkpoints.

A step's data are made from its number, so a run that was killed resumes from a checkpoint
of `transformers.Trainer` with no further state, and ends with the same weights.
"""

import json
import shutil
from pathlib import Path

import torch
from transformers import Trainer

CHECKPOINT_FILES = ("optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json")


class Steps(torch.utils.data.Dataset):
    """0, 1, ... steps - 1."""

    def __init__(self, steps: int):
        self.steps = steps

    def __len__(self) -> int:
        return self.steps

    def __getitem__(self, step: int) -> int:
        return step


class StepTrainer(Trainer):
    """A Trainer that is handed step numbers, in order, and makes the batch itself."""

    def __init__(self, model, args, **kwargs):
        super().__init__(
            model, args, train_dataset=Steps(args.max_steps),
            data_collator=lambda batch: {"step": batch[0]}, **kwargs,
        )  # fmt: skip

    def _get_train_sampler(self, dataset=None):
        return torch.utils.data.SequentialSampler(self.train_dataset)


def last_checkpoint(work: Path) -> str | None:
    """The newest whole checkpoint in `work`; one torn by a kill is deleted."""
    found = sorted(work.glob("checkpoint-*"), key=lambda p: int(p.name.rsplit("-", 1)[1]))
    while found:
        if _whole(found[-1]):
            return str(found[-1])
        shutil.rmtree(found.pop())
    return None


def _whole(checkpoint: Path) -> bool:
    if any(not (checkpoint / name).exists() for name in CHECKPOINT_FILES):
        return False
    try:  # written last, so all else is whole when this one is
        json.loads((checkpoint / "trainer_state.json").read_text(encoding="utf-8"))
    except ValueError:
        return False
    return any(checkpoint.glob("*.safetensors"))
