"""The memory plan: what a run will take of a card, before anything is loaded.

`memory_plan` counts the student on the meta device, where it has shapes and no memory, and
adds up the phases of `memory.Load`. The plan prints itself: the parts by phase, the largest
settings that fit, and what to lower first.
"""

import bisect
import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from operator import attrgetter
from typing import Any

import pandas as pd
import torch
from transformers import PretrainedConfig

from finer1_lite import generation, models
from finer1_lite.data import images
from finer1_lite.generation import Student
from finer1_lite.presets import Preset
from finer1_lite.students import attention, lab_student, random_weights
from finer1_lite.students.families import check_config, recurrent
from finer1_lite.tools import memory
from finer1_lite.tools.memory import TEXT_TOKENS, Load

log = logging.getLogger("finer1_lite")
GIB = 2**30
CONTEXT = GIB // 2  # CUDA's own, an allowance: it grows with the card and the driver
FRAGMENTS = 0.05  # of the peak: blocks that the allocator holds and nobody uses, an allowance
CHECKPOINTING = "gradient_checkpointing"
MILDEST_FIRST = (  # the first four change no result
    "eval_batch",
    "sft.micro_batch",
    "tapo.micro_batch",
    CHECKPOINTING,
    "tapo.groups",
    "pixels",
    "max_new_tokens",
)
COUNTS = tuple(name for name in MILDEST_FIRST if name != CHECKPOINTING)
CARDS = {  # GiB that CUDA has of a card
    "t4": 14.6,
    "l4": 22.0,
    "a10": 22.0,
    "a100-40": 39.4,
    "a100": 79.1,
    "h100": 79.1,
    "h200": 139.8,
    "v100": 15.7,
    "3060": 11.7,
    "3090": 23.6,
    "4090": 23.5,
}
LIMITS = {"pixels": images.MOST, "max_new_tokens": 32_768}  # ours, and of Qwen2.5-VL
LARGEST = 4096  # of a setting that has no limit of its own
SMALL_CARDS = (6, 8, 12)  # GiB


@dataclass(frozen=True)
class Plan:
    """A load on a card of `gpu` bytes. Printed, it is a page of text."""

    load: Load
    gpu: int

    @property
    def peaks(self) -> dict[str, int]:
        """Phase -> bytes that torch will have allocated at its worst moment."""
        return {phase: sum(parts.values()) for phase, parts in self.load.phases.items()}

    @property
    def peak(self) -> int:
        """Bytes at the worst moment of all phases."""
        return max(self.peaks.values())

    @property
    def needed(self) -> int:
        """The peak with the allowances."""
        return int(self.peak * (1 + FRAGMENTS)) + CONTEXT

    @property
    def fits(self) -> bool:
        """Whether the card is large enough."""
        return self.needed <= self.gpu

    def setting(self, name: str) -> int | bool:
        """The value of a setting such as `tapo.groups`."""
        return attrgetter(name)(self.load.preset)

    def changed(self, name: str, value: int | bool) -> "Plan":
        """The plan after another value of a setting such as `tapo.groups`."""
        preset = self.load.preset.with_(**{name.replace(".", "__"): value})
        return replace(self, load=replace(self.load, preset=preset))

    def largest(self, name: str) -> int:
        """The largest value at which the plan fits, other settings as they are; 0: none.

        No more than makes sense: a model's limits, completions of a step, chains of a batch.
        """
        preset = self.load.preset
        rollouts = preset.tapo.anchor_rollouts + preset.tapo.positive_rollouts
        own = {"sft.micro_batch": preset.sft.batch}
        own["tapo.micro_batch"] = preset.tapo.groups * rollouts
        side = self.load.sizes.patch * self.load.sizes.merge  # of a visual token
        unit = side**2 if name == "pixels" else 1
        values = range(unit, (LIMITS | own).get(name, LARGEST) + 1, unit)
        if name == "tapo.micro_batch":  # a picture's completions in two parts may take more
            return max((value for value in values if self.changed(name, value).fits), default=0)
        fitting = bisect.bisect(values, 0, key=lambda value: not self.changed(name, value).fits)
        return fitting * unit

    def lowered(self) -> tuple[dict[str, tuple[int | bool, int | bool]], "Plan"]:
        """({setting: (from, to)}, the plan after them).

        Always the mildest that lowers the peak of the moment, halved, until the plan fits or
        nothing is left.
        """
        plan = self
        while not plan.fits:
            milder = (
                plan.changed(name, name == CHECKPOINTING or max(1, plan.setting(name) // 2))
                for name in MILDEST_FIRST
            )
            after = next((found for found in milder if found.peak < plan.peak), None)
            if after is None:
                break
            plan = after
        values = {name: (self.setting(name), plan.setting(name)) for name in MILDEST_FIRST}
        return {name: (old, new) for name, (old, new) in values.items() if old != new}, plan

    def to_dict(self) -> dict:
        """For a file: bytes everywhere."""
        return {
            "source": self.load.preset.student,
            "preset": self.load.preset.to_dict(),
            "gpu": self.gpu,
            "parameters": self.load.sizes.parameters,
            "phases": self.load.phases,
            "peaks": self.peaks,
            "peak": self.peak,
            "needed": self.needed,
            "fits": self.fits,
            "largest": {name: self.largest(name) for name in COUNTS},
            "lower": {name: new for name, (_, new) in self.lowered()[0].items()},
        }

    def __str__(self) -> str:
        load = self.load
        s = load.sizes
        head = (
            f"{load.preset.student}, preset {load.preset.name}, on {self.gpu / GIB:g} GiB\n"
            f"{s.parameters:,} parameters; LoRA rank {s.rank}; hidden states of {8 * s.number} "
            f"bits; prompts of {load.visual} visual and {load.text_tokens} other tokens"
        )
        kept = (
            f"activations kept by a micro-batch of {load.preset.tapo.micro_batch}: "
            f"{load.kept(False) / GIB:.2f} GiB; with gradient checkpointing "
            f"{load.kept(True) / GIB:.2f}"
        )
        return "\n\n".join([head, self._table(), kept, self._room(), self._advice()])

    def _table(self) -> str:
        """A line a part, a column a phase; blank where a phase has no such part."""
        unit, size, digits = ("GiB", GIB, 2) if self.peak >= GIB else ("MiB", 2**20, 1)
        table = (pd.DataFrame(self.load.phases) / size).rename_axis(columns=unit)
        table.loc["sum"] = table.sum()
        return table.to_string(float_format=f" {{:.{digits}f}}".format, na_rep="")

    def _room(self) -> str:
        """The peak against the card, and the largest settings."""
        worst = max(self.peaks, key=self.peaks.get)
        verdict = "fits" if self.fits else "does not fit"
        lines = [
            f"peak {self.peak / GIB:.2f} GiB ({worst}); with {FRAGMENTS:.0%} for fragments and "
            f"{CONTEXT / GIB:g} for CUDA {self.needed / GIB:.2f}: {verdict} {self.gpu / GIB:g}",
            "largest that fits, each by itself:",
        ]
        lines += [f"  {n}: {self.largest(n) or 'none'} (now {self.setting(n)})" for n in COUNTS]
        return "\n".join(lines)

    def _advice(self) -> str:
        """What to lower, where anything needs to be."""
        if self.fits:
            return "nothing needs to be lowered"
        changes, after = self.lowered()
        if not after.fits:
            return "nothing to lower makes it fit: a smaller model or a larger card"
        lines = ["to lower, the mildest first:"]
        for name, (old, new) in changes.items():
            lines.append(f"  {name}={json.dumps(new)} (now {json.dumps(old)})")
        return "\n".join([*lines, f"with all of it {after.needed / GIB:.2f} GiB"])


def memory_plan(
    preset: Preset,
    gpu_gib: float = 15.0,
    *,
    dtype: torch.dtype | None = None,
    text_tokens: int = TEXT_TOKENS,
) -> Plan:
    """The plan of a preset's run on a card of so many GiB.

    dtype: what the card computes in; None: 16 bits, float32 for the lab. text_tokens: of a
    prompt beside its picture. Raises ValueError where the configuration of the preset's
    `student` is not found, or is of a model that cannot be one.
    """
    lab = preset.student == "assets"
    if dtype is None:
        dtype = torch.float32 if lab else torch.bfloat16
    source = str(lab_student.asset_folder(0)) if lab else preset.student
    config = random_weights.find_config(source)
    check_config(source, config)
    student = meta_student(config, preset, dtype)
    if recurrent(generation.core_of(student.model)):
        log.info("layers of linear attention are counted as those of full attention")
    sizes = memory.count(student, dtype.itemsize)
    return Plan(Load(sizes, preset, text_tokens), int(gpu_gib * GIB))


def card_gib(named: str) -> float:
    """GiB of a card: a number, or a name of `CARDS`. ValueError with the names otherwise."""
    known = CARDS.get(named.casefold().removeprefix("rtx").strip(" -"))
    try:
        return known or float(named)
    except ValueError:
        raise ValueError(f"--gpu {named}: GiB, or one of {', '.join(CARDS)}") from None


def choices(changes: Mapping[str, Any]) -> str:
    """Which presets of a GPU, so changed, fit the cards that people have; a line a size."""
    needed = {}
    for name in ("colab", "t4", "l4", "a100"):
        needed[name] = memory_plan(getattr(Preset, name)().with_(**changes)).needed / GIB
    fit = {gib: [name for name, least in needed.items() if least <= gib] for gib in SMALL_CARDS}
    return "\n".join(f"presets for {g} GiB: {', '.join(fit[g]) or 'none'}" for g in fit)


def meta_student(config: PretrainedConfig, preset: Preset, dtype: torch.dtype) -> Student:
    """The student that `models` would make, with its adapter and without any memory."""
    model = random_weights.on_meta(config, dtype, models.four_bits(preset.quantize, dtype))
    if preset.backend == "transformers":
        attention.group_heads(model)
    with torch.device("meta"):
        return models.add_adapter(Student(model, None), preset, seed=0)
