"""Settings of a whole run, frozen and typed. Lab and GPU differ by a preset alone."""

import math
import sys
from dataclasses import asdict, dataclass, field, fields, replace

PRESETS = ("lab", "t4", "l4", "a100")  # sizes that a command line offers
MAY_BE_ZERO = ("warm_up_steps", "positive_rollouts", "negative_rollouts", "overlong_tokens")
CHOICES = {
    "quantize": ("none", "nf4"),
    "backend": ("transformers", "unsloth"),
    "tapo.scored_on": ("anchor", "own"),
    "tapo.prompt": ("think", "answer"),
    "tapo.positive": ("class", "distorted"),
    "tapo.negative": ("nearest", "random", "embedding", "confused", "masked"),
    "tapo.baseline": ("group", "picture"),
    "tapo.inter_class_on": ("all", "right"),
    "tapo.keep": ("variance", "all"),
}
LARGEST, SMALLEST = sys.float_info.max, sys.float_info.min
RANGES = {  # of the numbers that need not just be finite
    "tapo.temperature": (0.0, LARGEST, "from 0 on"),
    "tapo.top_p": (SMALLEST, 1.0, "above 0, up to 1"),
    "tapo.clip_low": (0.0, 1.0, "from 0 to 1"),
    "tapo.clip_high": (0.0, LARGEST, "from 0 on"),
    "tapo.clip_dual": (1.0 + sys.float_info.epsilon, math.inf, "above 1; inf switches it off"),
}
NO_NEGATIVE = dict(inter_class_weight=0.0, anchor_entropy_weight=0.0, negative_entropy_weight=0.0)
RECIPES = {  # named methods: settings of one trainer, nothing else
    "tapo": {},
    # DAPO (arXiv 2503.14476): all rollouts on the anchor, no negative.
    "dapo": dict(anchor_rollouts=8, positive_rollouts=0, **NO_NEGATIVE),
    # GRPO (arXiv 2402.03300): symmetric clip, no dual clip, every group kept.
    "grpo": dict(
        anchor_rollouts=8,
        positive_rollouts=0,
        clip_high=0.2,
        clip_dual=float("inf"),
        keep="all",
        draws=1,
        **NO_NEGATIVE,
    ),
    # CLS-RL (arXiv 2503.16188): DAPO on bare answers, no thinking.
    "cls_rl": dict(
        anchor_rollouts=8,
        positive_rollouts=0,
        prompt="answer",
        accuracy_weight=1.0,
        format_weight=0.0,
        **NO_NEGATIVE,
    ),
    # PAPO (arXiv 2507.06448): the anchor with patches masked out is the negative.
    "papo": dict(anchor_rollouts=8, positive_rollouts=0, negative="masked"),
    # NoisyRollout (arXiv 2504.13055): half of the rollouts on a distorted anchor.
    "noisy_rollout": dict(positive="distorted", **NO_NEGATIVE),
}


@dataclass(frozen=True)
class SFTSettings:
    """Stage 1. Released: full fine-tuning, 10 epochs, lr 5e-6, batch 64."""

    steps: int = 20
    batch: int = 16
    learning_rate: float = 1e-3
    micro_batch: int = 16


@dataclass(frozen=True)
class TAPOSettings:
    """Stage 2. Defaults are the paper's where it gives one (Fine-R1, section 3.2)."""

    steps: int = 30
    groups: int = 8  # anchors a step
    anchor_rollouts: int = 4  # n answers to the anchor ...
    positive_rollouts: int = 4  # ... and n to another picture of its class; 0: plain DAPO
    temperature: float = 1.0
    top_p: float = 1.0
    learning_rate: float = 1e-3
    accuracy_weight: float = 0.9
    format_weight: float = 0.1
    clip_low: float = 0.2
    clip_high: float = 0.28
    clip_dual: float = 3.0
    inter_class_weight: float = 0.01  # gamma; 0 with both entropies 0: no negative is read
    anchor_entropy_weight: float = 0.03  # eta 1
    negative_entropy_weight: float = 0.03  # eta 2
    negative_grad: bool = False  # released code: the negative's log-probs are constants
    negative_rollouts: int = 2  # of a group's n + m, scored on the negative too; 0: all of them
    scored_on: str = "anchor"  # which picture scores a positive's rollout: anchor | own
    prompt: str = "think"  # the question: a key of prompts.QUESTIONS
    positive: str = "class"  # class: another picture of it; distorted: the anchor with noise
    negative: str = "nearest"  # nearest | random | embedding | confused species, or masked anchor
    baseline: str = "group"  # advantages against the mean of the group, or of each picture
    inter_class_on: str = "all"  # rollouts that the hard negative pushes: all, or right ones
    keep: str = "variance"  # dynamic sampling keeps groups with reward variance; all: every group
    draws: int = 2  # dynamic sampling: rounds of prompts until the batch is full, at most
    updates: int = 1  # optimiser steps that share one batch of rollouts, a share each
    overlong_tokens: int = 0  # soft penalty grows to -1 over so many last tokens (DAPO)
    mask_cut: bool = False  # answers cut off at the limit carry no loss
    micro_batch: int = 16  # answers in one forward and backward pass

    @property
    def reads_negative(self) -> bool:
        """Whether a hard negative has any part in the loss."""
        return bool(self.inter_class_weight or self.negative_entropy_weight)


@dataclass(frozen=True)
class Preset:
    """Everything a run depends on but its data and its seeds."""

    name: str = "lab"
    student: str = "assets"  # "assets": the shipped lab student; else a folder or hub name
    pixels: int = 84 * 84  # a picture is reduced to this many pixels at most
    shots: int = 4  # training pictures a seen class
    warm_up_steps: int = 0  # text steps in which a lab student meets new words
    quantize: str = "none"  # none | nf4 (bitsandbytes, double quantisation)
    backend: str = "transformers"  # transformers | unsloth (optional, a CUDA GPU)
    gradient_checkpointing: bool = False  # recompute layers in backward: memory for time
    lora_rank: int = 16
    lora_vision: bool = False  # adapters on the vision tower too: learnt in stage 1, then frozen
    max_new_tokens: int = 96
    test_pictures: int = 432  # fresh pictures a split (drawn birds; folders give what they have)
    eval_batch: int = 144
    sft: SFTSettings = field(default_factory=SFTSettings)
    tapo: TAPOSettings = field(default_factory=TAPOSettings)

    @classmethod
    def lab(cls) -> "Preset":
        """Paper birds on two CPU cores."""
        return cls()

    @classmethod
    def lab_photos(cls) -> "Preset":
        """Real photographs with the lab student: new words, longer chains."""
        return cls(
            name="lab-photos",
            warm_up_steps=200,
            max_new_tokens=160,
            eval_batch=76,
            sft=SFTSettings(steps=80),
            tapo=TAPOSettings(steps=12, groups=4, learning_rate=2e-4, micro_batch=16),
        )

    @classmethod
    def t4(cls) -> "Preset":
        """Qwen2.5-VL-3B in 4 bits on 15 GB."""
        return cls(
            name="t4",
            student="Qwen/Qwen2.5-VL-3B-Instruct",
            pixels=256 * 28 * 28,
            quantize="nf4",
            gradient_checkpointing=True,
            max_new_tokens=512,
            eval_batch=8,
            sft=SFTSettings(steps=120, batch=16, learning_rate=1e-4, micro_batch=1),
            tapo=TAPOSettings(steps=100, groups=4, learning_rate=1e-5, micro_batch=4),
        )

    @classmethod
    def l4(cls) -> "Preset":
        """The same on 24 GB."""
        t4 = cls.t4()
        return replace(
            t4,
            name="l4",
            eval_batch=16,
            sft=replace(t4.sft, micro_batch=2),
            tapo=replace(t4.tapo, groups=8, micro_batch=8),
        )

    @classmethod
    def a100(cls) -> "Preset":
        """The same on 40 to 80 GB: the released n = 5 and longer answers."""
        l4 = cls.l4()
        return replace(
            l4,
            name="a100",
            max_new_tokens=1024,
            eval_batch=32,
            sft=replace(l4.sft, micro_batch=4),
            tapo=replace(
                l4.tapo, groups=16, anchor_rollouts=5, positive_rollouts=5, micro_batch=10
            ),
        )

    def recipe(self, name: str) -> "Preset":
        """The same preset with the settings of a named method; see `RECIPES`.

        n + m rollouts stay as many as the preset has.
        """
        if name not in RECIPES:
            raise ValueError(f"recipe {name!r}: one of {', '.join(RECIPES)}")
        changes = dict(RECIPES[name])
        if "anchor_rollouts" in changes:
            changes["anchor_rollouts"] = self.tapo.anchor_rollouts + self.tapo.positive_rollouts
        return self.with_(**{f"tapo__{key}": value for key, value in changes.items()})

    def with_(self, **changes) -> "Preset":
        """A copy with changes; nested ones as `sft__steps=10`. Raises on unknown names."""
        own, nested = {}, {"sft": {}, "tapo": {}}
        for key, value in changes.items():
            part, _, leaf = key.partition("__")
            if leaf and part in nested:
                nested[part][leaf] = value
            else:
                own[key] = value
        known = {f.name for f in fields(self)}
        unknown = [k for k in own if k not in known or k in nested]
        for part, given in nested.items():
            names = {f.name for f in fields(getattr(self, part))}
            unknown += [f"{part}__{k}" for k in given if k not in names]
        if unknown:
            raise ValueError(f"unknown settings: {', '.join(unknown)}")
        parts = {k: replace(getattr(self, k), **v) for k, v in nested.items() if v}
        return replace(self, **own, **parts).check()

    def check(self) -> "Preset":
        """The preset itself; ValueError listing every value that makes no sense."""
        values = {
            f"{part}{f.name}": (f, getattr(owner, f.name))
            for part, owner in (("", self), ("sft.", self.sft), ("tapo.", self.tapo))
            for f in fields(owner)
        }
        wanted = {name: _wanted(name, f, value) for name, (f, value) in values.items()}
        wanted = {name: text for name, text in wanted.items() if text}
        for name, text in self._contradictions(wanted):
            wanted.setdefault(name, text)
        if wanted:
            problems = [f"{name} = {values[name][1]!r}: {text}" for name, text in wanted.items()]
            raise ValueError("settings that make no sense:\n- " + "\n- ".join(problems))
        return self

    def _contradictions(self, faulty) -> list[tuple[str, str]]:
        """(name, what is wanted) of values that are well by themselves but not together."""
        s, found = self.tapo, []
        counts = (s.anchor_rollouts, s.positive_rollouts)
        if not {"tapo.anchor_rollouts", "tapo.positive_rollouts"} & set(faulty):
            if sum(counts) < 2:
                found.append(("tapo.anchor_rollouts", "two rollouts a group at least"))
            elif "tapo.negative_rollouts" not in faulty and s.negative_rollouts > sum(counts):
                found.append(("tapo.negative_rollouts", f"at most {sum(counts)}, the group's"))
            if s.baseline == "picture" and 1 in counts:
                found.append(("tapo.baseline", "wants two rollouts a picture at least"))
        if not {"tapo.updates", "tapo.groups"} & set(faulty) and s.updates > s.groups:
            found.append(("tapo.updates", f"at most tapo.groups, {s.groups}: a group each"))
        if not {"tapo.overlong_tokens", "max_new_tokens"} & set(faulty):
            if s.overlong_tokens > self.max_new_tokens:
                found.append(("tapo.overlong_tokens", f"at most {self.max_new_tokens}, the limit"))
        return found

    def to_dict(self) -> dict:
        return asdict(self)

    def __str__(self) -> str:
        rows = [f"{k} = {v}" for k, v in self.to_dict().items() if not isinstance(v, dict)]
        for part in ("sft", "tapo"):
            rows += [f"{part}.{k} = {v}" for k, v in self.to_dict()[part].items()]
        return "\n".join(rows)


def _wanted(name: str, f, value) -> str | None:
    """What a setting should have been; None where it is that."""
    whole = isinstance(value, int) and not isinstance(value, bool)
    if name in CHOICES:
        return None if value in CHOICES[name] else f"one of {', '.join(CHOICES[name])}"
    if f.type is int:
        least = 0 if f.name in MAY_BE_ZERO else 1
        return None if whole and value >= least else f"a whole number from {least} on"
    if f.type is float:
        low, high, words = RANGES.get(name, (-LARGEST, LARGEST, "that is finite"))
        right = (whole or isinstance(value, float)) and low <= value <= high
        return None if right else f"a number {words}"
    if f.type is bool and not isinstance(value, bool):
        return "true or false"
    return None
