"""One row of the bench: a trainer in a process of its own, timed phase by phase.

A process a row, because the peak of memory belongs to a process. The rows' steps are taken in
turn (see `bench`), so each process waits for its word before every step.
"""

import itertools
import math
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from datasets import Dataset
from transformers import PrinterCallback, TrainerCallback
from trl import GRPOConfig, GRPOTrainer

from finer1_lite import generation, models, paperbirds, prompts, rewards, tapo, triplets
from finer1_lite.generation import Student
from finer1_lite.presets import Preset
from finer1_lite.runtime.console import hide_bars, quiet
from finer1_lite.species import Collection, Photo
from finer1_lite.students import lab_student

try:
    import resource
except ImportError:  # Windows
    resource = None

SEED = 0
NEVER = -1e4  # a logit that is never drawn, and finite: entropies stay numbers
TRL = "trl dapo"
TRAINERS = {  # name -> recipe and changes; TRL's own trainer has those of our DAPO
    TRL: ("dapo", {}),
    "dapo": ("dapo", {}),
    "tapo": ("tapo", {}),
    "tapo, exact": ("tapo", {"tapo__negative_rollouts": 0}),  # all of a group on the negative
    "tapo, negative_grad": ("tapo", {"tapo__negative_grad": True}),
}
PHASES = ("generate", "score", "update")
OURS = {"sample_groups": "generate", "batch_loss": "score"}  # functions of `tapo` -> phase
THEIRS = {  # methods of TRL's trainer
    "_generate_and_score_completions": "generate",
    "_get_per_token_logps_and_entropies": "score",
}
MIB = 2**20


@dataclass(frozen=True)
class Job:
    """What one row measures. The preset says all but the trainer and the picture's side."""

    trainer: str
    preset: Preset
    side: int  # pixels a side
    threads: int
    natural: bool = False  # completions end where they end, pictures have three shapes

    @property
    def completions(self) -> int:
        """Completions a step, the same number for every trainer."""
        s = self.preset.tapo
        return s.groups * (s.anchor_rollouts + s.positive_rollouts)

    @property
    def tokens(self) -> int:
        """Tokens that a step's completions have, where none ends early."""
        return self.completions * self.preset.max_new_tokens

    @property
    def micro_batch(self) -> int:
        """Completions in one pass: the preset's, or the next smaller number that divides all."""
        most = min(self.preset.tapo.micro_batch, self.completions)
        return max(n for n in range(1, most + 1) if self.completions % n == 0)

    @property
    def settings(self) -> Preset:
        """The preset with the trainer's recipe, no options and a micro-batch that divides all."""
        recipe, changes = TRAINERS[self.trainer]
        same = {"tapo__with_options": False, "tapo__micro_batch": self.micro_batch}
        return self.preset.recipe(recipe).with_(**changes, **same)


def work(pipe: Connection, job: Job) -> None:
    """The whole life of a row's process: load the student, take a step when told to."""
    quiet()
    hide_bars()
    torch.set_num_threads(job.threads)
    # Ends when whoever asks for steps is gone: nothing is saved after the last one.
    with tempfile.TemporaryDirectory() as folder, suppress(EOFError, BrokenPipeError):
        train(job, load(job.preset), pipe, Path(folder))


def load(preset: Preset) -> Student:
    """The shipped lab student after stage 1; any other student with a fresh adapter."""
    if preset.student != "assets":
        return models.add_adapter(models.load_student(preset.student, preset), preset, SEED)
    base = lab_student.asset_folder(0)
    student = models.load_student(base, preset)
    return models.load_adapter(student, base.parent / "adapters-world0" / "sft", trainable=True)


def pictures(preset: Preset, side: int, natural: bool = False) -> Collection:
    """Paper birds of `side` pixels a side, drawn beforehand: drawing is nobody's cost.

    natural: of three, two are a third less wide or high, in whole visual tokens of Qwen-VL.
    """
    birds = paperbirds.collection(paperbirds.make_world(0), shots=preset.shots, test=36)
    less = max(28, side * 2 // 3 // 28 * 28) if natural else side
    sizes = itertools.cycle([(side, side), (side, less), (less, side)])
    drawn = [Photo(p.id, p.species, p.image().resize(next(sizes)).copy) for p in birds.train]
    return replace(birds, train=tuple(drawn))


# --- the trainers --------------------------------------------------------------------


def train(job: Job, student: Student, pipe: Connection, folder: Path) -> None:
    """All steps of a job, with a meter in the functions of its trainer."""
    birds = pictures(job.preset, job.side, job.natural)
    meter = Meter(student, pipe, job.natural, job.preset.max_new_tokens)
    if job.trainer == TRL:
        generation.core_of(student.model).set_attn_implementation("sdpa")  # as others load it
        trainer = trl_trainer(job, student, birds, folder)
        trainer.add_callback(meter)
        with meter.timing(trainer, THEIRS):
            trainer.train()
    else:
        with meter.timing(tapo, OURS):
            tapo.train_tapo(student, birds, job.settings, SEED, folder, on_step=meter.on_step_end)


def trl_trainer(job: Job, student: Student, birds: Collection, folder: Path) -> GRPOTrainer:
    """TRL's GRPOTrainer with DAPO's loss: same anchors, rewards, clips and update as ours."""
    s = job.settings.tapo
    args = GRPOConfig(
        str(folder),
        loss_type="dapo",
        beta=0.0,
        epsilon=s.clip_low,
        epsilon_high=s.clip_high,
        num_generations=s.anchor_rollouts,
        max_completion_length=job.preset.max_new_tokens,
        temperature=s.temperature,
        top_p=s.top_p,
        per_device_train_batch_size=s.micro_batch,
        gradient_accumulation_steps=job.completions // s.micro_batch,
        gradient_checkpointing=job.preset.gradient_checkpointing,
        gradient_checkpointing_kwargs={"use_reentrant": False},
        shuffle_dataset=False,
        generation_kwargs={"use_cache": True},
        reward_weights=[s.accuracy_weight, s.format_weight],
        max_steps=s.steps,
        learning_rate=s.learning_rate,
        lr_scheduler_type="constant_with_warmup",
        warmup_steps=3,
        weight_decay=0.01,
        logging_steps=1,
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
        use_cpu=student.device.type == "cpu",
        dataloader_pin_memory=False,
        seed=SEED,
        bf16=student.model.dtype == torch.bfloat16,
        fp16=student.model.dtype == torch.float16,
    )

    def accuracy(completions: list, label: list[str], **_: Any) -> list[float]:
        return rewards.accuracy(completions, label, birds.names)

    def form(completions: list, **_: Any) -> list[float]:
        return rewards.format(completions)

    trainer = GRPOTrainer(
        student.model,
        [accuracy, form],
        args,
        anchor_rows(job.preset, birds),
        processing_class=student.processor,
    )
    trainer.remove_callback(PrinterCallback)
    models.widen_adapter(student.model)  # the same precision for all
    return trainer


def anchor_rows(preset: Preset, birds: Collection) -> Dataset:
    """The anchors that our trainer draws, step after step, in TRL's form."""
    s = preset.tapo
    steps = [triplets.draw_triplets(birds, s.groups, SEED, step) for step in range(s.steps)]
    prompt = [{"role": "user", "content": prompts.question(s.prompt, birds.coarse)}]
    anchors = [triplet.anchor for drawn in steps for triplet in drawn]
    rows = [{"images": [p.image()], "prompt": prompt, "label": p.species} for p in anchors]
    return Dataset.from_list(rows)


# --- the meter -----------------------------------------------------------------------


class Meter(TrainerCallback):
    """Times a step's phases, counts what the vision tower sees, steps when told to.

    All of a step's time belongs to one phase: `generate` up to the rewards, `score` the
    forward passes, `update` the backward passes, the optimiser and whatever else there is.
    Where a meter is, no completion ends early, the end of the turn is never drawn, unless natural
    lengths are asked for.
    """

    def __init__(
        self, student: Student, pipe: Connection, natural: bool = False, limit: int = 2**20
    ) -> None:
        self.device = student.device
        self.pipe = pipe
        self.spent = Counter()  # phase -> seconds of a step
        self.seen = Counter()  # phase -> pictures that the vision tower has encoded
        self.calls = Counter()  # phase -> its calls
        self.phase = "update"
        self.since = 0.0
        self.peaks: dict[str, float] = {}  # of each phase, MiB, over all steps
        core = generation.core_of(student.model)
        core.model.visual.register_forward_pre_hook(self._count, with_kwargs=True)
        never = {*generation.end_tokens(core, student.processor)}
        banned = generation.suppress_tokens(student.processor)
        self.never = sorted(banned if natural else never.union(banned))
        self.tokenizer, self.limit = student.processor.tokenizer, limit
        self.tokens = 0  # of a step's completions
        core.lm_head.register_forward_hook(self._suppress)

    @contextmanager
    def timing(self, owner: Any, phases: dict[str, str]) -> Iterator[None]:
        """Within it, the owner's functions of these names are phases; begins when told to."""
        timed = {
            name: partial(self.call, phase, getattr(owner, name)) for name, phase in phases.items()
        }
        rewarded = rewards.accuracy

        def counted(completions: list, *args: Any, **kwargs: Any) -> list[float]:
            texts = [rewards.text_of(completion) for completion in completions]
            ids = self.tokenizer(texts, add_special_tokens=False)["input_ids"]
            self.tokens += sum(min(len(row) + 1, self.limit) for row in ids)  # and the turn's end
            return rewarded(completions, *args, **kwargs)

        with patch.multiple(owner, **timed), patch.object(rewards, "accuracy", counted):
            self.start_mb = memory_mb(self.device)
            forget_peak()  # what loading took is not the trainer's
            self._wait()
            yield

    def call(self, phase: str, function: Callable, *args: Any, **kwargs: Any) -> Any:
        """Call the function; its time is that of a phase."""
        outer = self.phase
        self._switch(phase)
        try:
            return function(*args, **kwargs)
        finally:
            self._switch(outer)

    def on_step_end(self, *_: Any, **__: Any) -> None:
        """Send what was read; wait for the word to the next step."""
        self._switch("update")
        reading = {
            **{f"{phase}_s": self.spent[phase] for phase in PHASES},
            "step_s": sum(self.spent.values()),
            "cpu_s": time.process_time() - self.cpu,
            "peak_mb": max(self.peaks.values()),
            "start_mb": self.start_mb,
            **{f"{phase}_mb": peak for phase, peak in self.peaks.items()},
            "vision_calls": sum(self.calls.values()),
            "pictures": sum(self.seen.values()),
            "pictures_generate": self.seen["generate"],
            "tokens": self.tokens,
        }
        self.pipe.send(reading)
        self._wait()

    def _wait(self) -> None:
        """Until the word comes; the clock starts then."""
        self.pipe.recv()
        for counted in (self.spent, self.seen, self.calls):
            counted.clear()
        self.tokens = 0
        self.cpu = time.process_time()
        self.since = time.perf_counter()

    def _switch(self, phase: str) -> None:
        """The time since the last call was the present phase's; another begins."""
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        peak = memory_mb(self.device, peak=True)
        self.peaks[self.phase] = max(self.peaks.get(self.phase, 0.0), peak)
        forget_peak()
        now = time.perf_counter()
        self.spent[self.phase] += now - self.since
        self.phase = phase
        self.since = now

    def _count(self, module: torch.nn.Module, args: tuple, kwargs: dict) -> None:
        self.calls[self.phase] += 1
        self.seen[self.phase] += len(kwargs["grid_thw"] if "grid_thw" in kwargs else args[1])

    def _suppress(self, module: torch.nn.Module, args: tuple, logits: torch.Tensor) -> None:
        if not torch.is_grad_enabled():
            logits[..., self.never] = NEVER


def memory_mb(device: torch.device, peak: bool = False) -> float:
    """Memory that is held, or the largest since `forget_peak`, MiB: torch's own on a GPU.

    Else the process's, resident: on macOS the peak stands for both, on Windows there is none
    (nan). (On Linux `ru_maxrss` would not do: a child starts with its parent's.)
    """
    if device.type == "cuda":
        held = torch.cuda.max_memory_allocated if peak else torch.cuda.memory_allocated
        return held(device) / MIB
    try:
        lines = Path("/proc/self/status").read_text("utf-8").splitlines()
    except OSError:
        peak_of = resource and resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # bytes
        return math.nan if peak_of is None else peak_of / MIB
    name = "VmHWM" if peak else "VmRSS"
    return next(int(line.split()[1]) for line in lines if line.startswith(name)) / 1024


def forget_peak() -> None:
    """The peak starts anew, where Linux lets it."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5", "utf-8")
