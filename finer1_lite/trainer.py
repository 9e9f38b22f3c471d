"""Training whose randomness is a function of the step alone, and safe checkpoints.

A step's data are made from its number, so a run that was killed resumes from a checkpoint
of `transformers.Trainer` with no further state, and ends with the same weights.
"""

import json
import shutil
from pathlib import Path

import torch
from accelerate.utils import DistributedType
from transformers import PrinterCallback, Trainer, TrainingArguments

from finer1_lite import models
from finer1_lite.generation import Student
from finer1_lite.runtime import distributed

CHECKPOINT_FILES = ("optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json")
OF_SEVERAL = {"rng_state.pth": "rng_state_*.pth"}  # what several processes write in its place


class Steps(torch.utils.data.Dataset):
    """0, 1, ... steps - 1."""

    def __init__(self, steps: int):
        self.steps = steps

    def __len__(self) -> int:
        return self.steps

    def __getitem__(self, step: int) -> int:
        return step


class StepTrainer(Trainer):
    """A Trainer that is handed step numbers, in order, and makes the batch itself.

    Of several processes each is handed every step.
    """

    def __init__(self, model, args, **kwargs):
        super().__init__(
            model,
            one_card(args),
            train_dataset=Steps(args.max_steps),
            data_collator=lambda batch: {"step": batch[0]},
            **kwargs,
        )

    def _get_train_sampler(self, dataset=None):
        return [
            step for step in range(len(self.train_dataset)) for _ in range(distributed.world()[1])
        ]


def one_card(args: TrainingArguments) -> TrainingArguments:
    """The same, for one device a process.

    With several cards in sight, Trainer would copy the model to all of them in every pass
    (DataParallel), which neither 4-bit weights nor step numbers bear. Several processes on a
    CPU are told "cpu:0", where `torch.load` knows only "cpu".
    """
    args._n_gpu = min(args.n_gpu, 1)
    if args.device.type == "cpu":
        vars(args)["_setup_devices"] = torch.device("cpu")
    return args


def train(trainer: Trainer, student: Student, folder: Path) -> Student:
    """Train from the last checkpoint in `folder`/checkpoints; save adapter and log to `folder`.

    Of several processes the first one writes, and all go on when it is done.
    """
    trainer.remove_callback(PrinterCallback)
    trainer.train(resume_from_checkpoint=last_checkpoint(folder / "checkpoints"))
    whole = None
    if trainer.accelerator.distributed_type in (DistributedType.FSDP, DistributedType.DEEPSPEED):
        whole = trainer.accelerator.get_state_dict(trainer.model_wrapped)  # all give their parts
    if distributed.is_main():
        models.save_adapter(student, folder, whole)
        write_log(trainer.state.log_history, folder / "log.jsonl")
    distributed.wait()
    return student


def write_log(history: list[dict], path: Path) -> None:
    """The trainer's history, a JSON line a logged step."""
    lines = [json.dumps(row) + "\n" for row in history if "loss" in row]
    path.write_text("".join(lines), encoding="utf-8")


def last_checkpoint(work: Path) -> str | None:
    """The newest whole checkpoint in `work`; one torn by a kill is deleted."""
    return distributed.tell(_last_whole(work) if distributed.is_main() else None)


def _last_whole(work: Path) -> str | None:
    found = sorted(work.glob("checkpoint-*"), key=lambda p: int(p.name.rsplit("-", 1)[1]))
    while found:
        if _whole(found[-1]):
            return str(found[-1])
        shutil.rmtree(found.pop())
    return None


def _whole(checkpoint: Path) -> bool:
    lacking = [n for n in CHECKPOINT_FILES if not (checkpoint / n).exists()]
    if any(not any(checkpoint.glob(OF_SEVERAL.get(name, name))) for name in lacking):
        return False
    try:  # written last, so all else is whole when this one is
        json.loads((checkpoint / "trainer_state.json").read_text(encoding="utf-8"))
    except ValueError:
        return False
    return any(checkpoint.glob("*.safetensors"))
