"""Settings of a whole run, frozen and typed. Lab and GPU differ by a preset alone."""

import math
from collections.abc import Container
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from finer1_lite.prompts import WITH_CHAIN

Size = Literal["lab", "laptop", "colab", "t4", "l4", "a100"]  # that a command line offers
FOR_CPU = ("lab", "laptop")
Quantize = Literal["none", "nf4"]
Count = Annotated[int, Field(ge=1)]
CountOrNone = Annotated[int, Field(ge=0)]

ALONE = dict(anchor_rollouts=8, positive_rollouts=0)
NO_NEGATIVE = dict(inter_class_weight=0.0, anchor_entropy_weight=0.0, negative_entropy_weight=0.0)
GRPO = dict(clip_high=0.2, clip_dual=math.inf, keep="all", draws=1) | ALONE | NO_NEGATIVE
RECIPES = {  # named methods: settings of one trainer, nothing else
    "tapo": {},
    # DAPO (arXiv 2503.14476): all rollouts on the anchor, no negative.
    "dapo": ALONE | NO_NEGATIVE,
    # The two with a reward for the right name only where the chain leads to it.
    "tapo_agreement": dict(reward_agreement=1.0),
    "dapo_agreement": dict(reward_agreement=1.0) | ALONE | NO_NEGATIVE,
    # GRPO (arXiv 2402.03300): mean of completions' means, one clip, every group kept.
    "grpo": GRPO | dict(loss_type="grpo"),
    # Dr. GRPO (arXiv 2503.20783): no division by a completion's length or a group's std.
    "dr_grpo": GRPO | dict(loss_type="dr_grpo", advantage_scale="none"),
    # GSPO (arXiv 2507.18071): one ratio a completion; GRPO's gradient where tapo.updates is 1.
    "gspo": GRPO | dict(loss_type="gspo", clip_low=3e-4, clip_high=4e-4),
    # CISPO (arXiv 2506.13585): weights of at most 5 (arXiv 2510.13786); likewise DAPO's there.
    "cispo": dict(loss_type="cispo", clip_low=1.0, clip_high=4.0) | ALONE | NO_NEGATIVE,
    # CLS-RL (arXiv 2503.16188): DAPO on bare answers, no thinking.
    "cls_rl": dict(prompt="answer", accuracy_weight=1.0, format_weight=0.0) | ALONE | NO_NEGATIVE,
    # PAPO (arXiv 2507.06448): the anchor with patches masked out is the negative.
    "papo": dict(negative="masked") | ALONE,
    # NoisyRollout (arXiv 2504.13055): half of the rollouts on a distorted anchor.
    "noisy_rollout": dict(positive="distorted") | NO_NEGATIVE,
}


def setting(default: Any, description: str, **limits: Any) -> Any:
    """A field with its default, its description and, of a number, its limits."""
    return Field(default, description=description, **limits)


class Settings(BaseModel):
    """Frozen; no value is converted, but a whole number may stand for a number."""

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid", allow_inf_nan=False)


class SFTSettings(Settings):
    """Stage 1. Released: full fine-tuning, 10 epochs, lr 5e-6, batch 64."""

    steps: Count = setting(40, "optimiser steps")
    batch: Count = setting(16, "rows a step: a chain stands in up to three")
    learning_rate: float = setting(1e-3, "highest rate of AdamW; a cosine follows", ge=0)
    micro_batch: Count = setting(16, "rows in one forward and backward pass, at most")
    with_options: bool = setting(True, "each chain also answers a choice among its candidates")
    with_descriptions: bool = setting(True, "each analysis also answers a request to describe")


class TAPOSettings(Settings):
    """Stage 2. Defaults are the paper's where it gives one (Fine-R1, section 3.2)."""

    steps: Count = setting(30, "optimiser steps")
    groups: Count = setting(8, "anchors a step")
    anchor_rollouts: Count = setting(4, "n completions about the anchor")
    positive_rollouts: CountOrNone = setting(4, "n about another picture of its class; 0: DAPO")
    temperature: float = setting(1.0, "of sampling; 0: the likeliest token", ge=0)
    top_p: float = setting(1.0, "nucleus of sampling", gt=0, le=1)
    learning_rate: float = setting(1e-3, "rate of AdamW, constant after a warm-up", ge=0)
    accuracy_weight: float = setting(0.9, "of the right name in the reward")
    format_weight: float = setting(0.1, "of the right form in the reward")
    reward_agreement: float = setting(
        0.0, "share of a right name's pay due only where the chain leads to it", ge=0, le=1
    )
    rewards: str = setting("", "your own, paid besides: MODULE:FUNCTION=WEIGHT, several by spaces")
    loss_type: Literal["dapo", "grpo", "dr_grpo", "gspo", "cispo"] = setting(
        "dapo", "of the policy: a row of losses.LOSS_TYPES"
    )
    clip_low: float = setting(0.2, "the ratio is clipped below 1 - clip_low", ge=0, le=1)
    clip_high: float = setting(0.28, "and above 1 + clip_high", ge=0)
    clip_dual: float = setting(3.0, "of negative advantages; inf: off", gt=1, allow_inf_nan=True)
    inter_class_weight: float = setting(0.01, "gamma; 0 with eta 2 at 0: no negative is read")
    anchor_entropy_weight: float = setting(0.03, "eta 1")
    negative_entropy_weight: float = setting(0.03, "eta 2")
    negative_grad: bool = setting(False, "released: the negative's log-probs are constants")
    negative_rollouts: CountOrNone = setting(2, "scored on the negative too; 0: the whole group")
    scored_on: Literal["anchor", "own"] = setting("anchor", "what scores a positive's rollout")
    positive_ratio: Literal["one", "clipped"] = setting(
        "one", "of a positive's rollout on the anchor; clipped: its importance weight"
    )
    prompt: Literal["think", "answer"] = setting("think", "a key of prompts.QUESTIONS")
    with_options: bool = setting(True, "every second group is a choice among four names")
    positive: Literal["class", "distorted"] = setting("class", "distorted: the anchor with noise")
    negative: Literal["nearest", "random", "masked"] = setting(
        "nearest", "how another species is chosen; masked: the anchor without some patches"
    )
    baseline: Literal["group", "picture"] = setting("group", "whose mean advantages compare with")
    advantage_scale: Literal["std", "none"] = setting("std", "what divides reward minus mean")
    inter_class_on: Literal["all", "right"] = setting("all", "rollouts that the negative pushes")
    keep: Literal["variance", "all"] = setting("variance", "groups kept by dynamic sampling")
    draws: Count = setting(2, "dynamic sampling: rounds until the batch is full, at most")
    updates: Count = setting(1, "optimiser steps that share a batch of rollouts, a part each")
    overlong_tokens: CountOrNone = setting(0, "soft penalty: to -1 over so many last tokens (DAPO)")
    mask_cut: bool = setting(False, "truncated completions carry no loss")
    micro_batch: Count = setting(16, "completions in one forward and backward pass")

    @property
    def reads_negative(self) -> bool:
        """Whether a hard negative has any part in the loss."""
        return bool(self.inter_class_weight or self.negative_entropy_weight)


class Preset(Settings):
    """Everything a run depends on but data and seeds; ValueError lists what makes no sense."""

    name: str = setting("lab", "of the preset")
    student: str = setting("assets", "assets: the shipped lab student; else a folder or hub name")
    pixels: Count = setting(84 * 84, "a picture is reduced to this many at most", le=2**20)
    shots: Count = setting(4, "training pictures a seen class")
    warm_up_steps: CountOrNone = setting(0, "text steps in which a lab student meets new words")
    quantize: Quantize = setting("none", "nf4: bitsandbytes, double quantisation")
    backend: Literal["transformers", "unsloth"] = setting("transformers", "unsloth: on CUDA alone")
    gradient_checkpointing: bool = setting(False, "recompute layers in backward: memory for time")
    lora_rank: Count = setting(16, "of the adapters")
    lora_vision: bool = setting(False, "adapters on the vision tower: learnt in stage 1 alone")
    keep_features: bool = setting(False, "a frozen tower looks at a picture once")
    max_new_tokens: Count = setting(160, "length limit of a completion")
    test_pictures: Count = setting(
        288, "fresh paper birds a split; of a folder at most so many in all"
    )
    eval_batch: Count = setting(144, "questions answered at a time")
    sft: SFTSettings = setting(SFTSettings(), "stage 1")
    tapo: TAPOSettings = setting(TAPOSettings(), "stage 2")

    def __init__(self, **values: Any) -> None:
        problems: dict[str, str] = {}
        try:
            super().__init__(**values)
        except ValidationError as error:
            problems = {".".join(map(str, e["loc"])): _problem(e) for e in error.errors()}
        problems |= _contradictions(values, problems)
        if problems:
            rows = [f"- {name} = {problem}" for name, problem in problems.items()]
            raise ValueError("\n".join(["settings that make no sense:", *rows]))

    @classmethod
    def lab(cls) -> "Preset":
        """Paper birds on two CPU cores."""
        return cls()

    @classmethod
    def lab_photos(cls) -> "Preset":
        """Real photographs with the lab student: new words, longer chains."""
        sft = SFTSettings(steps=80)
        tapo = TAPOSettings(steps=12, groups=4, learning_rate=2e-4)
        return cls(name="lab-photos", sft=sft, tapo=tapo, warm_up_steps=200, eval_batch=76)

    @classmethod
    def laptop(cls) -> "Preset":
        """SmolVLM-256M on two CPU cores, for 12 classes x 4 photographs, each in 64 tokens."""
        sft = SFTSettings(steps=32, batch=8, learning_rate=2e-4, micro_batch=2)
        rollouts = dict(groups=4, anchor_rollouts=2, positive_rollouts=2, draws=1)
        tapo = TAPOSettings(steps=8, learning_rate=5e-5, micro_batch=4, **rollouts)
        own = dict(pixels=512 * 512, keep_features=True, test_pictures=60, eval_batch=20)
        student = "HuggingFaceTB/SmolVLM-256M-Instruct"
        return cls(name="laptop", student=student, sft=sft, tapo=tapo, **own)

    @classmethod
    def colab(cls) -> "Preset":
        """Qwen2.5-VL-3B in 4 bits on 15 GB, for 30 classes x 4 photographs in one sitting.

        120 chains are up to 360 rows of SFT: 40 steps of 16 show each of them about twice.
        """
        sft = SFTSettings(steps=40, learning_rate=1e-4, micro_batch=4)
        tapo = TAPOSettings(steps=30, groups=8, draws=1, learning_rate=1e-5, micro_batch=8)
        # bitsandbytes unpacks no weight for up to 64 rows: two batches of 60 cost what one would
        sizes = dict(pixels=160 * 28 * 28, max_new_tokens=256, test_pictures=120, eval_batch=60)
        memory = dict(quantize="nf4", gradient_checkpointing=True, keep_features=True)
        own = dict(name="colab", student="Qwen/Qwen2.5-VL-3B-Instruct")
        return cls(sft=sft, tapo=tapo, **own, **memory, **sizes)

    @classmethod
    def t4(cls) -> "Preset":
        """The same with more of a picture, and a second draw for groups that teach nothing."""
        return cls.colab().with_(name="t4", pixels=256 * 28 * 28, tapo__draws=2, sft__micro_batch=2)

    @classmethod
    def l4(cls) -> "Preset":
        """The same on 24 GB."""
        return cls.t4().with_(name="l4", eval_batch=120, sft__micro_batch=4)

    @classmethod
    def a100(cls) -> "Preset":
        """The same on 40 to 80 GB: the released n = 5, more groups and longer completions."""
        rollouts = dict(tapo__groups=16, tapo__anchor_rollouts=5, tapo__positive_rollouts=5)
        return cls.l4().with_(name="a100", max_new_tokens=512, tapo__micro_batch=10, **rollouts)

    def recipe(self, name: str) -> "Preset":
        """The same preset with the settings of a named method of `RECIPES`, n + m kept."""
        if name not in RECIPES:
            raise ValueError(f"recipe {name!r}: one of {', '.join(RECIPES)}")
        changes = dict(RECIPES[name])
        if "anchor_rollouts" in changes:
            changes["anchor_rollouts"] = self.tapo.anchor_rollouts + self.tapo.positive_rollouts
        return self.with_(**{f"tapo__{key}": value for key, value in changes.items()})

    def with_(self, **changes: Any) -> "Preset":
        """A copy with changes; nested as `sft__steps` or `sft.steps`. ValueError as of `Preset`."""
        stages = {"sft": self.sft.model_dump(), "tapo": self.tapo.model_dump()}
        values = self.model_dump(exclude_unset=True) | stages  # what was not asked stays so
        for key, value in ((key.replace(".", "__"), value) for key, value in changes.items()):
            stage, _, name = key.partition("__")
            if name and stage in stages:
                stages[stage][name] = value
            else:
                values[f"{key} as a whole" if key in stages else key] = value
        return Preset(**values)

    def to_dict(self) -> dict[str, Any]:
        """Every setting by its name; those of a stage in a dictionary of their own."""
        return self.model_dump()


def _problem(error: Any) -> str:
    """A value and what is wanted in its place, from an error of pydantic's."""
    wanted = error["msg"].removeprefix("Input should be ")
    if error["type"] == "literal_error":
        wanted = "one of " + wanted.replace("'", "").replace(" or ", ", ")
    if error["type"] == "extra_forbidden":
        wanted = "there is no such setting"
    return f"{error['input']!r}: {wanted}"


def _contradictions(values: dict[str, Any], faulty: Container[str]) -> dict[str, str]:
    """As `_problem`, of values that are well by themselves but not together."""
    if "tapo" in faulty:
        return {}
    whole = {name: field.default for name, field in Preset.model_fields.items()} | values
    limit = math.inf if "max_new_tokens" in faulty else whole["max_new_tokens"]
    s = dict(TAPOSettings()) | dict(whole["tapo"])
    s |= {name: math.inf for name in s if f"tapo.{name}" in faulty}  # beside it all is well
    counts = (s["anchor_rollouts"], s["positive_rollouts"])
    size = math.inf if math.inf in counts else sum(counts)
    rules = {
        "anchor_rollouts": (size < 2, "two rollouts a group at least"),
        "negative_rollouts": (1 < size < s["negative_rollouts"], f"at most {size}, the group's"),
        "baseline": (s["baseline"] == "picture" and 1 in counts, "two rollouts a picture at least"),
        "updates": (s["updates"] > s["groups"], f"at most tapo.groups, {s['groups']}: one each"),
        "overlong_tokens": (s["overlong_tokens"] > limit, f"at most {limit}, the limit"),
        "reward_agreement": (
            0 < s["reward_agreement"] <= 1 and s["prompt"] not in WITH_CHAIN,
            f"needs a prompt with a chain: {', '.join(WITH_CHAIN)}",
        ),
    }
    wrong = {f"tapo.{name}": (s[name], text) for name, (is_so, text) in rules.items() if is_so}
    return {name: f"{v!r}: {text}" for name, (v, text) in wrong.items() if name not in faulty}
