"""The memory plan: what a run will take of a card, before anything is loaded.

`memory_plan` counts the student on the meta device, where it has shapes and no memory, and
adds up `phases`. The plan prints itself: the parts by phase, the largest settings that fit,
and what to lower first.
"""

import html
import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch

from finer1_lite import models
from finer1_lite.evals.tables import aligned
from finer1_lite.generation import Student
from finer1_lite.presets import Preset
from finer1_lite.students import lab_student, random_weights
from finer1_lite.tools import memory
from finer1_lite.tools.phases import TEXT_TOKENS, Load, kept, phases

GIB = 2**30
CONTEXT = GIB // 2  # CUDA's own, an allowance: it grows with the card and the driver
FRAGMENTS = 0.05  # of the peak: blocks that the allocator holds and nobody uses, an allowance
DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
MILDEST_FIRST = (  # the first four change no result
    "eval_batch",
    "sft.micro_batch",
    "tapo.micro_batch",
    "gradient_checkpointing",
    "tapo.groups",
    "pixels",
    "max_new_tokens",
)
LIMITS = {"pixels": 16_384 * 28 * 28, "max_new_tokens": 32_768}  # of Qwen2.5-VL
LARGEST = 4096  # of a setting that has no limit of its own


@dataclass(frozen=True)
class Plan:
    """A load on a card of `gpu` bytes."""

    load: Load
    gpu: int
    source: str

    @cached_property
    def phases(self) -> dict[str, dict[str, int]]:
        """Phase -> part -> bytes."""
        return phases(self.load)

    @property
    def peaks(self) -> dict[str, int]:
        """Phase -> bytes that torch will have allocated at its worst moment."""
        return {phase: sum(parts.values()) for phase, parts in self.phases.items()}

    @property
    def peak(self) -> int:
        return max(self.peaks.values())

    @property
    def needed(self) -> int:
        """The peak with the allowances."""
        return int(self.peak * (1 + FRAGMENTS)) + CONTEXT

    @property
    def fits(self) -> bool:
        return self.needed <= self.gpu

    def changed(self, **changes) -> "Plan":
        """The plan after other settings, written as in `Preset.with_`."""
        load = Load(self.load.sizes, self.load.preset.with_(**changes), self.load.text_tokens)
        return Plan(load, self.gpu, self.source)

    def largest(self, setting: str) -> int:
        """The largest value at which the plan fits, other settings as they are; 0: none.

        No more than makes sense: a model's limits, answers of a step, chains of a batch.
        """
        preset, key = self.load.preset, setting.replace(".", "__")
        step = 1 if setting != "pixels" else (self.load.sizes.patch * self.load.sizes.merge) ** 2
        own = {"sft.micro_batch": preset.sft.batch, "tapo.micro_batch": _answers(preset)}
        low, high = 0, (LIMITS | own).get(setting, LARGEST) // step + 1
        while high - low > 1:  # `low` fits, `high` does not or is beyond the limit
            middle = (low + high) // 2
            if self.changed(**{key: middle * step}).fits:
                low = middle
            else:
                high = middle
        return low * step

    def lowered(self) -> tuple[dict[str, tuple], "Plan"]:
        """({setting: (from, to)}, the plan after them).

        Always the mildest that lowers the peak of the moment, halved, until the plan fits or
        nothing is left.
        """
        found, plan = {}, self
        while not plan.fits:
            step = next(filter(None, (_lower(plan, name) for name in MILDEST_FIRST)), None)
            if step is None:
                break
            name, old, new, plan = step
            found[name] = (found.get(name, (old,))[0], new)
        return {name: found[name] for name in MILDEST_FIRST if name in found}, plan

    def to_dict(self) -> dict:
        """For a file: bytes everywhere."""
        s = self.load.sizes
        return {
            "source": self.source,
            "preset": self.load.preset.to_dict(),
            "gpu": self.gpu,
            "parameters": s.parameters,
            "phases": self.phases,
            "peaks": self.peaks,
            "peak": self.peak,
            "needed": self.needed,
            "fits": self.fits,
            "largest": {name: self.largest(name) for name in _counts()},
            "lower": {name: new for name, (_, new) in self.lowered()[0].items()},
        }

    def __str__(self) -> str:
        s, preset = self.load.sizes, self.load.preset
        head = (
            f"{self.source}, preset {preset.name}, on {self.gpu / GIB:g} GiB\n"
            f"{s.parameters:,} parameters; LoRA rank {s.rank}; hidden states of {8 * s.number} "
            f"bits; prompts of {self.load.visual} visual and {self.load.text_tokens} other tokens"
        )
        return "\n\n".join([head, self._table(), self._kept(), self._room(), self._advice()])

    def _repr_html_(self) -> str:
        return f"<pre>{html.escape(str(self))}</pre>"

    def _table(self) -> str:
        names = list(dict.fromkeys(name for parts in self.phases.values() for name in parts))
        unit, size, form = ("GiB", GIB, ".2f") if self.peak >= GIB else ("MiB", 2**20, ".1f")
        rows = [[unit, *self.phases]]
        for name in names:
            cells = [parts.get(name, 0) / size for parts in self.phases.values()]
            rows.append([name, *(f"{cell:{form}}" if cell else "" for cell in cells)])
        rows.append(["sum", *(f"{peak / size:{form}}" for peak in self.peaks.values())])
        return aligned(rows)

    def _kept(self) -> str:
        with_, without = (kept(self.load, on) / GIB for on in (True, False))
        return (
            f"activations kept by a micro-batch of {self.load.preset.tapo.micro_batch}: "
            f"{without:.2f} GiB; with gradient checkpointing {with_:.2f}"
        )

    def _room(self) -> str:
        worst = max(self.peaks, key=self.peaks.get)
        verdict = "fits" if self.fits else "does not fit"
        lines = [
            f"peak {self.peak / GIB:.2f} GiB ({worst}); with {FRAGMENTS:.0%} for fragments and "
            f"{CONTEXT / GIB:g} for CUDA {self.needed / GIB:.2f}: {verdict} {self.gpu / GIB:g}",
            "largest that fits, each by itself:",
        ]
        for name in _counts():
            now, most = _value(self.load.preset, name), self.largest(name)
            lines.append(f"  {name}: {most or 'none'} (now {now})")
        return "\n".join(lines)

    def _advice(self) -> str:
        if self.fits:
            return "nothing needs to be lowered"
        changes, after = self.lowered()
        lines = [
            f"  {name}={json.dumps(new)} (now {json.dumps(old)})"
            for name, (old, new) in changes.items()
        ]
        if after.fits:
            return "\n".join(
                [
                    "to lower, the mildest first:",
                    *lines,
                    f"with all of it {after.needed / GIB:.2f} GiB",
                ]
            )
        return "nothing to lower makes it fit: a smaller model or a larger card"


def _answers(preset: Preset) -> int:
    return preset.tapo.groups * (preset.tapo.anchor_rollouts + preset.tapo.positive_rollouts)


def _counts() -> list[str]:
    return [name for name in MILDEST_FIRST if name != "gradient_checkpointing"]


def _value(preset: Preset, name: str):
    part, _, leaf = name.rpartition(".")
    return getattr(getattr(preset, part) if part else preset, leaf)


def _lower(plan: Plan, name: str):
    """Half of a setting (checkpointing: on), where that lowers the peak; else None."""
    old = _value(plan.load.preset, name)
    new = True if name == "gradient_checkpointing" else old // 2
    if new == old or not new:
        return None
    after = plan.changed(**{name.replace(".", "__"): new})
    return (name, old, new, after) if after.peak < plan.peak else None


# --- counting without loading ----------------------------------------------------------


def memory_plan(
    preset: Preset,
    config=None,
    gpu_gib: float = 15.0,
    *,
    dtype: torch.dtype | None = None,
    text_tokens: int = TEXT_TOKENS,
) -> Plan:
    """The plan of a preset's run on a card of so many GiB.

    config: of the student; None: found by the preset's `student`, see `fullsize.find_config`.
    dtype: what the card computes in; None: 16 bits, float32 for the lab. text_tokens: of a
    prompt beside its picture. Raises ValueError where no configuration is found.
    """
    if dtype is None:
        dtype = torch.float32 if preset.student == "assets" else torch.bfloat16
    lab = preset.student == "assets"
    source = str(lab_student.asset_folder(0)) if lab else preset.student
    config = random_weights.find_config(source) if config is None else config
    sizes = memory.count(meta_student(config, preset, dtype), dtype.itemsize)
    return Plan(Load(sizes, preset, text_tokens), int(gpu_gib * GIB), preset.student)


def meta_student(config, preset: Preset, dtype: torch.dtype) -> Student:
    """The student that `models` would make, with its adapter and without any memory."""
    model = random_weights.on_meta(config, dtype, models.four_bits(preset.quantize, dtype))
    with torch.device("meta"):
        return models.add_adapter(Student(model, None), preset, seed=0)


def write(plan: Plan, path: Path) -> None:
    from finer1_lite.runtime.files import write_atomically

    write_atomically(path, json.dumps(plan.to_dict(), indent=1).encode())
