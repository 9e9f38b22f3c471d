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
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.tracking import GeneralTracker
from safetensors.torch import save_file
from torch import nn
from transformers import get_scheduler
from transformers.trainer_pt_utils import get_parameter_names

from finer1_lite import checks, models
from finer1_lite.generation import Student
from finer1_lite.runtime import checkpoints, distributed, trackers
from finer1_lite.runtime.checkpoints import STATE, last_checkpoint, require_finite, stand
from finer1_lite.runtime.console import progress_bar
from finer1_lite.runtime.files import write_lines
from finer1_lite.runtime.lessons import drifts, lessons, taught_nothing
from finer1_lite.runtime.oom import Limits

log = logging.getLogger("finer1_lite")
UNDECAYED = (r"bias", r"layernorm", r"rmsnorm", r"(?:^|\.)norm(?:$|\.)", r"_norm(?:$|\.)")
MAX_GRAD_NORM = 1.0
SHOWN = ("loss", "reward", "groups_kept")  # on the progress bar
MICRO = "tapo.micro_batch"
LOWER = "max_new_tokens, pixels or tapo.anchor_rollouts and tapo.positive_rollouts"


@dataclass(eq=False)
class Loop:
    """`for step in loop:`, with one call of `step` or `skip` in its body.

    `work` holds the newest checkpoint, from which a run goes on; `history` every step's log.
    """

    model: nn.Module  # its trainable weights learn
    work: Path
    steps: int
    learning_rate: float
    weight_decay: float
    save_every: int  # steps between checkpoints, at most
    save_minutes: float = checkpoints.MINUTES  # between them, at most, beside `save_every`
    micro_batch: int = 1
    schedule: str = "constant_with_warmup"
    warmup_steps: int = 3
    betas: tuple[float, float] = (0.9, 0.999)
    report_to: str | GeneralTracker = "none"  # see `runtime.trackers`
    on_step: Callable[[int, dict], object] | None = None  # after a step, before its checkpoint
    done: int = 0
    history: list[dict] = field(default_factory=list)
    limits: Limits = field(default_factory=Limits)

    def __post_init__(self) -> None:
        half = self.model.dtype == torch.float16  # small gradients vanish in it: scale the loss
        with distributed.no_engine():
            self.accelerator = Accelerator(
                cpu=next(self.model.parameters()).device.type == "cpu",
                mixed_precision="fp16" if half else "no",
                log_with=trackers.require(self.report_to),
                project_dir=self.work.parent,
                step_scheduler_with_optimizer=False,
            )
        groups = parameter_groups(self.model, self.weight_decay)
        optimizer = torch.optim.AdamW(groups, self.learning_rate, self.betas, fused=True)
        scheduler = get_scheduler(self.schedule, optimizer, self.warmup_steps, self.steps)
        self.optimizer, self.scheduler = self.accelerator.prepare(optimizer, scheduler)
        self.accelerator.register_for_checkpointing(self.limits)

    def __iter__(self) -> Iterator[int]:
        """The numbers of the steps that are left, from 0 on."""
        before = checks.snapshot(self.model)
        self.saved = time.time()
        self.resume()
        if scaler := self.accelerator.scaler:  # now, for a process may get no part of a step
            scaler.scale(torch.zeros((), device=self.accelerator.device))
        self.accelerator.init_trackers("finer1_lite")
        name = f"{self.work.parent.parent.name} {self.work.parent.name}"
        with progress_bar(self.steps, name) as self.bar:
            self.bar.update(self.done)
            try:
                while self.done < self.steps:
                    self.started = time.time()
                    rate = self.scheduler.get_last_lr()[0]
                    stand(self.work, self.done + 1, rate, str(self.model.dtype))
                    yield self.done
            finally:
                stand()
        moved = checks.share_moved(before, checks.snapshot(self.model))
        self.history[-1]["moved"] = round(moved, 5)
        for tracker in self.accelerator.trackers:
            tracker.finish()

    # --- a step --------------------------------------------------------------------------

    def seconds(self) -> float:
        """Since the step began."""
        return time.time() - self.started

    def backward(self, batch: Any, loss_of: Callable[[Any], Any]) -> dict[str, float]:
        """Add up the gradient of a batch, part by part: smaller ones where memory runs out.

        batch: `micro_batches(size)` are this process's parts; loss_of: a part -> its share of
        the loss, with `total` and `sums()`. Returns the sums over all parts and processes.
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

        sums = self.limits.fit(MICRO, self.micro_batch, add_up, LOWER, together=True)
        distributed.add_gradients(self.model.parameters())
        return distributed.sum_over_processes(sums)

    def step(self, log: dict[str, float]) -> None:
        """Clip the gradient and let the optimiser make its step; NotFinite stops before it."""
        norm = self.accelerator.clip_grad_norm_(self.model.parameters(), MAX_GRAD_NORM)
        if not overflow_may_pass(self.accelerator):
            loss = torch.tensor(float(log.get("loss") or 0))
            require_finite([("the loss", loss), ("the gradient", norm)])
        self.optimizer.step()  # in float16 it leaves out gradients that overflowed
        require_finite(learning(self.model).items())
        self._finish(log | {"grad_norm": float(norm)})

    def skip(self, log: dict[str, float]) -> None:
        """Count a step without a gradient: not even momentum or decay move the weights."""
        self._finish(log | {"grad_norm": 0.0})

    def _finish(self, log: dict[str, float]) -> None:
        """Log the step, tell everyone, and write a checkpoint where it is time for one."""
        self.model.zero_grad()
        self.done += 1
        times = {"step_s": self.seconds()}
        times["update_s"] = times["step_s"] - log.get("generate_s", 0.0)
        log = log | times | {"learning_rate": self.scheduler.get_last_lr()[0], "step": self.done}
        self.scheduler.step()
        self.history.append(log)
        self.accelerator.log(log, step=self.done)
        self.bar.set_postfix({k: f"{log[k]:.2f}" for k in SHOWN if k in log}, refresh=False)
        self.bar.update()
        warn_of_idle(self.work, self.history)
        if self.on_step:
            self.on_step(self.done, log)
        late = distributed.broadcast(checkpoints.due(self.saved, self.save_minutes))
        if self.done % self.save_every == 0 or self.done == self.steps or late:
            self.save()

    # --- checkpoints ---------------------------------------------------------------------

    def save(self) -> None:
        """Write a checkpoint under another name; it gets its own when it is whole."""
        whole = self.work / f"checkpoint-{self.done}"
        draft = self.work / f"draft-{self.done}"
        self.accelerator.save_state(str(draft))
        distributed.wait()
        if distributed.is_main():
            save_file(learning(self.model), draft / "trained.safetensors")
            state = {"global_step": self.done, "log_history": self.history}
            (draft / STATE).write_text(json.dumps(state), encoding="utf-8")
            checkpoints.seal(draft)
            draft.rename(whole)
            for other in {*self.work.glob("checkpoint-*"), *self.work.glob("draft-*")} - {whole}:
                shutil.rmtree(other)
        distributed.wait()
        self.saved = time.time()

    def resume(self) -> None:
        """Go on from the newest checkpoint, if there is one."""
        found = last_checkpoint(self.work)
        if found is None:
            return
        scaler, there = self.accelerator.scaler, (Path(found) / "scaler.pt").exists()
        self.accelerator.scaler = scaler if there else None  # a new one where none was needed
        self.accelerator.load_state(found)
        self.accelerator.scaler = scaler
        saved = checkpoints.read_tensors(Path(found) / "trained.safetensors")
        checkpoints.require_fit(saved, learning(self.model), found)
        for name, weight in learning(self.model).items():
            weight.data.copy_(saved[name])
        state = json.loads((Path(found) / STATE).read_text(encoding="utf-8"))
        self.done, self.history = state["global_step"], state["log_history"]


def overflow_may_pass(accelerator: Accelerator) -> bool:
    """In float16 the scaler leaves out a step that overflowed and halves its scale; to 1 or so."""
    return accelerator.scaler is not None and accelerator.scaler.get_scale() >= 1


def learning(model: nn.Module) -> dict[str, nn.Parameter]:
    """What learns, by name."""
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict]:
    """What learns, as transformers' Trainer groups it: norms and biases do not decay."""
    decays = set(get_parameter_names(model, [nn.LayerNorm], UNDECAYED))
    named = learning(model).items()
    return [
        {"params": [p for n, p in named if n in decays], "weight_decay": weight_decay},
        {"params": [p for n, p in named if n not in decays], "weight_decay": 0.0},
    ]


def warn_of_idle(work: Path, history: list[dict]) -> None:
    """Say, now and then, that most steps so far taught nothing, where the last one did not."""
    idle = [taught_nothing(row) for row in history]
    if idle[-1] and sum(idle).bit_count() == 1:  # 1, 2, 4, 8, ...
        for told in lessons(history):
            log.warning("%s: %s", work.parent.name, told)


def save_trained(
    student: Student, folder: Path, history: list[dict], weights: dict | None = None
) -> None:
    """Write the adapter (weights: see `models.save_adapter`) and log.jsonl; all wait for it."""
    if distributed.is_main():
        rows = [row for row in history if "loss" in row]
        for told in (*lessons(rows), *drifts(rows)):
            log.info("%s: %s", folder.name, told)  # the page of the run warns of it
        models.save_adapter(student, folder, weights)
        write_lines(folder / "log.jsonl", rows)
    distributed.wait()
