"""One row of the bench: a trainer in a process of its own, timed phase by phase.

A process a row, because the peak of memory belongs to a process. The rows' steps are
taken in turn (see `bench`), so each process waits for its word before every step.
"""

import resource
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
from datasets import Dataset, Features, Image, List, Value
from transformers import PrinterCallback, TrainerCallback, TrainingArguments
from trl import GRPOConfig, GRPOTrainer

from finer1_lite import generation, logprobs, models, paperbirds, prompts, rewards, triplets
from finer1_lite.generation import Student
from finer1_lite.presets import Preset
from finer1_lite.species import Collection, Photo
from finer1_lite.students import lab_student
from finer1_lite.tapo import TAPOTrainer

SEED = 0
VOCABULARY, SCORED = 152_000, 1024  # of the scoring test: Qwen2.5's words, tokens scored
NEVER = -1e4  # a logit that is never drawn, and finite: entropies stay numbers
TRAINERS = {  # name -> recipe and settings; None: TRL's own trainer
    "trl dapo": None,
    "dapo": ("dapo", {}),
    "tapo": ("tapo", {}),
    "tapo, negative_grad": ("tapo", {"tapo__negative_grad": True}),
}


@dataclass(frozen=True)
class Job:
    """What one row measures. The preset says all but the trainer and the picture's side."""

    trainer: str
    preset: Preset
    side: int  # pixels a side
    threads: int

    @property
    def answers(self) -> int:
        """Answers a step, the same for every trainer."""
        tapo = self.preset.tapo
        return tapo.groups * (tapo.anchor_rollouts + tapo.positive_rollouts)

    @property
    def tokens(self) -> int:
        """Tokens that a step's answers have."""
        return self.answers * self.preset.max_new_tokens


def work(pipe, job: Job) -> None:
    """The whole life of a row's process: build the trainer, take a step when told to."""
    from finer1_lite.runtime.console import quiet

    quiet()
    torch.set_num_threads(job.threads)
    meter = Meter(pipe)
    try:
        with tempfile.TemporaryDirectory() as folder:
            build(job, meter, Path(folder)).train()
    except (EOFError, BrokenPipeError):  # whoever asked for steps is gone
        return


def build(job: Job, meter: "Meter", folder: Path):
    """The trainer of a row, with the meter inside."""
    student, birds = load(job.preset), pictures(job.preset, job.side)
    make = trl_trainer if TRAINERS[job.trainer] is None else own_trainer
    trainer = make(job, student, birds, folder, meter)
    trainer.remove_callback(PrinterCallback)
    return trainer


def load(preset: Preset) -> Student:
    """The shipped lab student after stage 1; any other student with a fresh adapter."""
    if preset.student != "assets":
        return models.add_adapter(models.load_student(preset.student, preset), preset, SEED)
    base = lab_student.asset_folder(0)
    student = models.load_student(base, preset)
    return models.load_adapter(student, base.parent / "adapters-world0" / "sft", trainable=True)


def pictures(preset: Preset, side: int) -> Collection:
    """Paper birds of this size, drawn beforehand: drawing is nobody's cost."""
    birds = paperbirds.collection(paperbirds.make_world(0), shots=preset.shots, test=36)
    drawn = [Photo(p.id, p.species, p.image().resize((side, side)).copy) for p in birds.train]
    return replace(birds, train=tuple(drawn))


# --- the trainers --------------------------------------------------------------------


def own_trainer(job: Job, student, birds: Collection, folder: Path, meter: "Meter") -> TAPOTrainer:
    recipe, changes = TRAINERS[job.trainer]
    preset = job.preset.recipe(recipe).with_(**changes, tapo__micro_batch=micro_batch(job))
    args = TrainingArguments(
        str(folder),
        per_device_train_batch_size=1,
        remove_unused_columns=False,
        **_arguments(job, student),
    )
    trainer = TAPOTrainer(student, birds, preset, SEED, args, callbacks=[meter])
    meter.attach(student, collect="generate", prepare="score", _loss="score", to=trainer)
    return trainer


def trl_trainer(job: Job, student, birds: Collection, folder: Path, meter: "Meter") -> GRPOTrainer:
    """TRL's GRPOTrainer with DAPO's loss: same anchors, rewards, clips and update."""
    s, size = job.preset.tapo, micro_batch(job)
    args = GRPOConfig(
        str(folder),
        loss_type="dapo",
        beta=0.0,
        epsilon=s.clip_low,
        epsilon_high=s.clip_high,
        num_generations=s.anchor_rollouts + s.positive_rollouts,
        num_iterations=1,
        max_completion_length=job.preset.max_new_tokens,
        temperature=s.temperature,
        top_p=s.top_p,
        per_device_train_batch_size=size,
        gradient_accumulation_steps=job.answers // size,
        gradient_checkpointing=job.preset.gradient_checkpointing,
        shuffle_dataset=False,
        gradient_checkpointing_kwargs={"use_reentrant": False},
        generation_kwargs={"use_cache": True},
        reward_weights=[s.accuracy_weight, s.format_weight],
        **_arguments(job, student),
    )

    def accuracy(completions, label, **_):
        return rewards.accuracy(completions, label, birds.names)

    def form(completions, **_):
        return rewards.format(completions)

    trainer = GRPOTrainer(
        student.model,
        [accuracy, form],
        args,
        _anchor_rows(job.preset, birds),
        processing_class=student.processor,
        callbacks=[meter],
    )
    models.widen_adapter(student.model)  # the same precision for all
    meter.attach(
        student,
        _generate_and_score_completions="generate",
        _get_per_token_logps_and_entropies="score",
        to=trainer,
    )
    return trainer


def _anchor_rows(preset: Preset, birds: Collection) -> Dataset:
    """The anchors that our trainer draws, step after step, in TRL's form."""
    s = preset.tapo
    draw = partial(triplets.draw_triplets, birds, s.groups, SEED)
    anchors = [t.anchor for step in range(s.steps) for t in draw(step)]
    asked = [{"role": "user", "content": prompts.question(s.prompt, birds.coarse)}]
    rows = [{"images": [p.image()], "prompt": asked, "label": p.species} for p in anchors]
    turns = [{"role": Value("string"), "content": Value("string")}]
    features = Features({"images": List(Image()), "prompt": turns, "label": Value("string")})
    return Dataset.from_list(rows, features=features)


def _arguments(job: Job, student: Student) -> dict:
    """What both kinds of trainer are told alike."""
    s, dtype, device = job.preset.tapo, student.model.dtype, student.device.type
    return dict(
        max_steps=s.steps,
        learning_rate=s.learning_rate,
        lr_scheduler_type="constant",
        weight_decay=0.01,
        max_grad_norm=1.0,
        logging_steps=1,
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
        use_cpu=device == "cpu",
        dataloader_pin_memory=False,
        seed=SEED,
        bf16=dtype == torch.bfloat16,
        fp16=dtype == torch.float16,
    )


def micro_batch(job: Job) -> int:
    """Answers in one pass: the preset's, or the next smaller number that divides them all."""
    most = min(job.preset.tapo.micro_batch, job.answers)
    return max(n for n in range(1, most + 1) if job.answers % n == 0)


# --- the meter -----------------------------------------------------------------------


class Meter(TrainerCallback):
    """Times a step's phases, counts what the vision tower sees, steps when told to.

    All of a step's time belongs to one phase: `generate` up to the rewards, `score` the
    forward passes, `update` the backward passes, the optimiser and whatever else there is.
    """

    def __init__(self, pipe):
        self.pipe, self.phase, self.since = pipe, "update", 0.0
        self.spent, self.seen, self.calls = Counter(), Counter(), Counter()
        self.peaks: dict[str, float] = {}  # of each phase, MiB, over all steps

    def attach(self, student: Student, *, to, **phases: str) -> None:
        """Wrap methods of a trainer; watch the vision tower; no answer ends early."""
        self.student = student
        for method, phase in phases.items():
            setattr(to, method, partial(self._timed, phase, getattr(to, method)))
        core = generation.core_of(student.model)
        core.model.visual.register_forward_pre_hook(self._count, with_kwargs=True)
        tok = student.processor.tokenizer
        ends = {tok.eos_token_id, *_listed(core.generation_config.eos_token_id)}
        never = sorted(ends.union(generation.suppress_tokens(student.processor)))

        def suppress(module, args, logits):
            if not torch.is_grad_enabled():
                logits[..., never] = NEVER

        core.lm_head.register_forward_hook(suppress)

    def _timed(self, phase: str, method, *args, **kwargs):
        outer = self.phase
        self._switch(phase)
        try:
            return method(*args, **kwargs)
        finally:
            self._switch(outer)

    def _switch(self, phase: str) -> None:
        if self.student.device.type == "cuda":
            torch.cuda.synchronize()
        self.peaks[self.phase] = max(self.peaks.get(self.phase, 0.0), peak_mb(self.student.device))
        forget_peak()
        now = time.perf_counter()
        self.spent[self.phase] += now - self.since
        self.phase, self.since = phase, now

    def _count(self, module, args, kwargs) -> None:
        grids = kwargs["grid_thw"] if "grid_thw" in kwargs else args[1]
        self.calls[self.phase] += 1
        self.seen[self.phase] += len(grids)

    def on_train_begin(self, args, state, control, **kwargs):
        cuda = self.student.device.type == "cuda"
        self.start_mb = torch.cuda.memory_allocated() / 2**20 if cuda else memory_mb("VmRSS")
        self.peaks.clear()
        forget_peak()
        self._wait()

    def on_step_end(self, args, state, control, **kwargs):
        self._switch("update")
        self.pipe.send(self._reading())
        if state.global_step < args.max_steps:
            self._wait()

    def _wait(self) -> None:
        """Until the word comes; the clock starts then."""
        self.pipe.recv()
        for counted in (self.spent, self.seen, self.calls):
            counted.clear()
        self.since, self.cpu = time.perf_counter(), time.process_time()

    def _reading(self) -> dict:
        return {
            **{f"{phase}_s": self.spent[phase] for phase in ("generate", "score", "update")},
            "step_s": sum(self.spent.values()),
            "cpu_s": time.process_time() - self.cpu,
            "peak_mb": max(self.peaks.values()),
            "start_mb": self.start_mb,
            **{f"{phase}_mb": peak for phase, peak in self.peaks.items()},
            "vision_calls": sum(self.calls.values()),
            "pictures": sum(self.seen.values()),
            "pictures_generate": self.seen["generate"],
            "pictures_score": self.seen["score"],
        }


def _listed(ids) -> list[int]:
    return [] if ids is None else ids if isinstance(ids, list) else [ids]


def memory_mb(what: str) -> float:
    """Resident memory of this process: VmRSS now, VmHWM at its peak, in MiB.

    Elsewhere than on Linux the peak stands for both. (`ru_maxrss` alone would not do on
    Linux: a child starts with its parent's.)
    """
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20  # macOS: bytes
    return next(int(line.split()[1]) for line in lines if line.startswith(what)) / 1024


def peak_mb(device: torch.device) -> float:
    """Largest memory since `forget_peak`, MiB: torch's own on a GPU, else the process's."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    return memory_mb("VmHWM")


def forget_peak() -> None:
    """What loading took is not the trainer's: the peak starts anew, where Linux lets it."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        pass


def scoring_mb(naive: bool) -> float:
    """How far scoring lifts the peak of a process that does nothing else. MiB"""
    torch.manual_seed(SEED)
    _learn(*_scoring(64, 8), naive)  # what the libraries load at their first call is not counted
    head, hidden, tokens = _scoring(VOCABULARY, SCORED)
    before = memory_mb("VmRSS")
    forget_peak()
    _learn(head, hidden, tokens, naive)
    return memory_mb("VmHWM") - before


def _scoring(vocabulary: int, tokens: int):
    head = torch.nn.Linear(64, vocabulary, bias=False).requires_grad_(False)
    hidden = torch.randn(tokens, 64, requires_grad=True)
    return head, hidden, torch.randint(vocabulary, (tokens,))


def _learn(head, hidden, tokens, naive: bool) -> None:
    """Log-probabilities and their gradient, by the plain log-softmax or by ours."""
    if naive:
        logps = head(hidden).float().log_softmax(-1).gather(-1, tokens[:, None])[:, 0]
    else:
        logps, _ = logprobs.token_scores(head, hidden, tokens)
    logps.sum().backward()
