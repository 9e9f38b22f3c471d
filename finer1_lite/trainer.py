"""The training loop: optimiser, schedule, clipping, checkpoints with exact resume, trackers.

A step's data are made from its number, so a run that was killed goes on from a checkpoint
with no further state, and ends with the same weights. Everything else is accelerate's.
"""

import json
import logging
import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.tracking import GeneralTracker
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import get_scheduler
from transformers.trainer_pt_utils import get_parameter_names

from finer1_lite import models
from finer1_lite.generation import Student
from finer1_lite.runtime import distributed, oom, trackers
from finer1_lite.runtime.console import progress_bar

log = logging.getLogger("finer1_lite")

# Of a checkpoint of ours, and of transformers' Trainer; the last one is written last.
CHECKPOINT_FILES = (
    "optimizer.*",
    "scheduler.*",
    "r*_state*",
    "*.safetensors",
    "trainer_state.json",
)
UNDECAYED = (r"bias", r"layernorm", r"rmsnorm", r"(?:^|\.)norm(?:$|\.)", r"_norm(?:$|\.)")
MAX_GRAD_NORM = 1.0
SHOWN = ("loss", "reward", "groups_kept")  # on the progress bar
MICRO = "tapo.micro_batch"
LOWER = "max_new_tokens, pixels or tapo.anchor_rollouts and tapo.positive_rollouts"


class Loop:
    """`for step in loop:` with one call of `step` or `skip` in its body.

    model: its trainable weights learn; work: the folder of checkpoints, of which the newest
    is kept; the run goes on from it. states: objects with `state_dict` and `load_state_dict`
    that travel with the checkpoints. report_to: see `runtime.trackers`. on_step(step, log) is
    called after each step, before its checkpoint. `history` holds every step's log.
    """

    def __init__(
        self,
        model: nn.Module,
        work: Path,
        *,
        steps: int,
        learning_rate: float,
        weight_decay: float,
        save_every: int,
        micro_batch: int = 1,
        schedule: str = "constant_with_warmup",
        warmup_steps: int = 3,
        betas: tuple[float, float] = (0.9, 0.999),
        states: tuple[Any, ...] = (),
        report_to: str | GeneralTracker = "none",
        on_step: Callable[[int, dict], object] | None = None,
    ) -> None:
        self.model = model
        self.work = work
        self.steps = steps
        self.save_every = save_every
        self.micro_batch = micro_batch
        self.on_step = on_step
        self.done = 0
        self.history: list[dict] = []
        self.limits = oom.Limits()
        half = model.dtype == torch.float16  # small gradients vanish in it: scale the loss
        with distributed.no_engine():
            self.accelerator = Accelerator(
                cpu=next(model.parameters()).device.type == "cpu",
                mixed_precision="fp16" if half else "no",
                step_scheduler_with_optimizer=False,
                log_with=trackers.require(report_to),
                project_dir=work.parent,
            )
        groups = parameter_groups(model, weight_decay)
        optimizer = torch.optim.AdamW(groups, learning_rate, betas, fused=True)
        scheduler = get_scheduler(schedule, optimizer, warmup_steps, steps)
        self.optimizer, self.scheduler = self.accelerator.prepare(optimizer, scheduler)
        self.accelerator.register_for_checkpointing(self.limits, *states)

    def __iter__(self) -> Iterator[int]:
        """The numbers of the steps that are left, from 0 on."""
        self.resume()
        self.accelerator.init_trackers("finer1_lite")
        name = f"{self.work.parent.parent.name} {self.work.parent.name}"
        with progress_bar(self.steps, name) as self.bar:
            self.bar.update(self.done)
            while self.done < self.steps:
                self.started = time.time()
                yield self.done
        for tracker in self.accelerator.trackers:
            tracker.finish()

    # --- a step --------------------------------------------------------------------------

    def seconds(self) -> float:
        """Since the step began."""
        return time.time() - self.started

    def log_table(self, rows_of: Callable[..., list], *args: Any) -> None:
        """Show the trackers rows_of(*args): picture, completion and reward."""
        for tracker in self.accelerator.trackers:
            trackers.log_table(tracker, rows_of(*args), self.done + 1)

    def backward(self, batch: Any, loss_of: Callable[[Any], Any]) -> dict[str, float]:
        """Add up the gradient of a batch, some rows at a time: fewer where memory runs out.

        batch: `micro_batches(size)` gives this process's rows, `rows_each` is the most that any
        has; loss_of: a part of it -> its share of the loss, with `total` and `sums()`. Returns
        the sums over all parts and processes.
        """

        def add_up(size: int) -> Counter:
            self.model.zero_grad()  # what a failed try left
            sums: Counter = Counter()
            parts = batch.micro_batches(size)
            with progress_bar(len(parts), "micro-batches", inner=True) as bar:
                for part in parts:
                    loss = loss_of(part)
                    self.accelerator.backward(loss.total)
                    sums.update(loss.sums())
                    bar.update()
            return sums

        wished = min(self.micro_batch, batch.rows_each())
        sums = self.limits.fit(MICRO, wished, add_up, LOWER, together=True)
        distributed.add_gradients(self.model.parameters())
        return distributed.sum_over_processes(sums)

    def step(self, log: dict[str, float]) -> None:
        """Clip the gradient and let the optimiser make its step."""
        norm = self.accelerator.clip_grad_norm_(self.model.parameters(), MAX_GRAD_NORM)
        rate = self.scheduler.get_last_lr()[0]
        self.optimizer.step()  # in float16 it leaves out gradients that overflowed
        self.scheduler.step()
        self._finish(log | {"grad_norm": float(norm), "learning_rate": rate})

    def skip(self, log: dict[str, float]) -> None:
        """Count a step without a gradient: not even momentum or decay move the weights."""
        rate = self.scheduler.get_last_lr()[0]
        self.scheduler.step()
        self._finish(log | {"grad_norm": 0.0, "learning_rate": rate})

    def _finish(self, log: dict[str, float]) -> None:
        self.model.zero_grad()
        self.done += 1
        step_s = self.seconds()
        log |= {"update_s": step_s - log.get("generate_s", 0.0), "step_s": step_s}
        self.history.append(log | {"step": self.done})
        self.accelerator.log(log, step=self.done)
        self.bar.set_postfix({k: f"{log[k]:.2f}" for k in SHOWN if k in log}, refresh=False)
        self.bar.update()
        if self.on_step:
            self.on_step(self.done, self.history[-1])
        if self.done % self.save_every == 0 or self.done == self.steps:
            self.save()

    # --- checkpoints ---------------------------------------------------------------------

    def save(self) -> None:
        """Write a checkpoint under another name, give it its own when it is whole."""
        whole = self.work / f"checkpoint-{self.done}"
        draft = self.work / f"draft-{self.done}"
        self.accelerator.save_state(str(draft))
        if distributed.is_main():
            save_file(self._weights(), draft / "trained.safetensors")
            state = {"global_step": self.done, "log_history": self.history}
            (draft / "trainer_state.json").write_text(json.dumps(state), encoding="utf-8")
        distributed.wait()
        if distributed.is_main():
            draft.rename(whole)
            for other in self.work.iterdir():
                if other != whole:
                    shutil.rmtree(other)
        distributed.wait()

    def resume(self) -> None:
        """Go on from the newest checkpoint, if there is one."""
        found = last_checkpoint(self.work)
        if found is None:
            return
        self.accelerator.load_state(found)
        saved = load_file(Path(found) / "trained.safetensors")
        with torch.no_grad():
            for name, weight in self._weights().items():
                weight.copy_(saved[name])
        state = json.loads((Path(found) / "trainer_state.json").read_text(encoding="utf-8"))
        self.done, self.history = state["global_step"], state["log_history"]

    def _weights(self) -> dict[str, torch.Tensor]:
        return {n: p.data for n, p in self.model.named_parameters() if p.requires_grad}


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict]:
    """What learns, as transformers' Trainer groups it: norms and biases do not decay."""
    decays = set(get_parameter_names(model, [nn.LayerNorm], UNDECAYED))
    learning = [(n, p) for n, p in model.named_parameters() if p.requires_grad]
    return [
        {"params": [p for n, p in learning if n in decays], "weight_decay": weight_decay},
        {"params": [p for n, p in learning if n not in decays], "weight_decay": 0.0},
    ]


def save_trained(
    student: Student, folder: Path, history: list[dict], weights: dict | None = None
) -> None:
    """Write the adapter and `log.jsonl`, a line a logged step; the others wait.

    weights: see `models.save_adapter`.
    """
    if distributed.is_main():
        models.save_adapter(student, folder, weights)
        lines = [json.dumps(row) + "\n" for row in history if "loss" in row]
        (folder / "log.jsonl").write_text("".join(lines), encoding="utf-8")
    distributed.wait()


def last_checkpoint(work: Path) -> str | None:
    """The newest whole checkpoint in `work`; one torn by a kill is deleted."""
    return distributed.broadcast(_last_whole(work) if distributed.is_main() else None)


def _last_whole(work: Path) -> str | None:
    found = sorted(work.glob("checkpoint-*"), key=lambda p: int(p.name.rsplit("-", 1)[1]))
    while found:
        if _is_whole(found[-1]):
            return str(found[-1])
        shutil.rmtree(found.pop())
    return None


def _is_whole(checkpoint: Path) -> bool:
    if not all(any(checkpoint.glob(name)) for name in CHECKPOINT_FILES):
        return False
    try:
        json.loads((checkpoint / "trainer_state.json").read_text(encoding="utf-8"))
    except ValueError:
        return False
    return True
