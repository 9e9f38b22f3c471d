"""The families of models that can be students: what the code has to know of each."""

import logging
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import nn
from transformers import AutoConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES

from finer1_lite.students import lab_student, prefix_chat, random_weights

log = logging.getLogger("finer1_lite")
# Language layers only: the vision tower of Qwen2.5-VL has gate_proj, up_proj and
# down_proj too, so bare names would adapt both.
LORA_TARGETS = r".*language_model.*\.(q_proj|k_proj|v_proj|o_proj|gate_proj|up_proj|down_proj)"
# Attention and MLP of the vision blocks under the names of all three families. The merger
# is left alone.
VISION_TARGETS = (
    r".*visual\.blocks\..*\.(qkv|proj|fc1|fc2|linear_fc1|linear_fc2|gate_proj|up_proj|down_proj)"
)
TOWERS = ("visual", "vision_model", "vision_tower")  # of `core.model`
BRIDGES = ("connector", "multi_modal_projector", "embed_vision")
NO_WORDS = (*TOWERS, *BRIDGES, "audio_tower", "embed_audio")  # never in 4 bits


@dataclass(frozen=True)
class Family:
    """A vision tower, whose features stand among the embeddings of a causal decoder.

    The defaults are those of a family that nobody tried here: its self-test decides.
    """

    lora: str = LORA_TARGETS.replace("language_model", "(language_model|text_model)")
    vision: str = (
        r".*(vision_model|vision_tower)\..*layers?\.\d+\..*\."
        r"(q_proj|k_proj|v_proj|out_proj|projection_layer|fc1|fc2)"
    )
    budget: bool = False  # a picture has as many tokens as its pixels allow, not always the same
    tiles: bool = False  # the processor cuts a picture into tiles, unless it is told not to
    template: str | None = None  # of a chat, where a family has none, or one that thinks unasked
    # A picture's tokens look at one another both ways, by masks that the model makes itself: what
    # its forward pass calls the numbers that say which these are.
    masks: str = ""
    prefix: bool = False  # so do all tokens of a prompt: those numbers are 0 on it, 1 behind it
    packs: bool = False  # its language layers see what one mask lets them see: `attention.packs`
    steps: tuple[int, ...] = ()  # of a picture's tokens, where no other numbers are allowed

    def tokens(self, pixels: int, side: int) -> int:
        """Most tokens of a picture of so many pixels; side: that of a token, in pixels."""
        most = max(1, pixels // side**2)
        allowed = [number for number in self.steps if number <= most] or self.steps[:1]
        return allowed[-1] if self.steps else most


QWEN = Family(LORA_TARGETS, VISION_TARGETS, budget=True, packs=True)
LINEAR = r".*language_model.*\.linear_attn\.(in_proj_qkv|in_proj_z|in_proj_b|in_proj_a|out_proj)"
QWEN_LINEAR = replace(
    QWEN, lora=f"{LORA_TARGETS}|{LINEAR}", template=lab_student.CHAT_TEMPLATE, packs=False
)
SMOLVLM = Family(tiles=True, packs=True)
GEMMA4 = Family(
    vision=r".*vision_tower\..*_proj\.linear",
    masks="mm_token_type_ids",
    budget=True,
    steps=(70, 140, 280, 560, 1120),
)
PALIGEMMA = Family(masks="token_type_ids", prefix=True, template=prefix_chat.TEMPLATE)
CONVOLUTIONS = r".*language_model.*\.(q_proj|k_proj|v_proj|in_proj|out_proj|w1|w2|w3)"
FAMILIES = {  # by `model_type` of config.json
    "qwen2_vl": QWEN,
    "qwen2_5_vl": QWEN,
    "qwen3_vl": QWEN,
    "qwen3_5": QWEN_LINEAR,
    "idefics3": SMOLVLM,
    "smolvlm": SMOLVLM,
    "internvl": Family(packs=True),  # transformers' own, "-hf"; its processor wants torchvision
    "lfm2_vl": Family(CONVOLUTIONS, budget=True),  # torchvision here too
    "gemma3": Family(masks="token_type_ids"),
    "gemma4": GEMMA4,  # and here
    "paligemma": PALIGEMMA,
}
SUPPORTED = (
    "a Qwen2-VL, Qwen2.5-VL or (dense) Qwen3-VL, a (dense) Qwen3.5, SmolVLM, Idefics3, InternVL, "
    "LFM2-VL, Gemma 3 or 4, or PaliGemma"
)


def family_of(core: nn.Module) -> Family:
    """The family of a model."""
    return FAMILIES.get(core.config.model_type, Family())


def recurrent(core: nn.Module) -> bool:
    """Whether some language layers keep a state in place of keys and values.

    It changes in place, so that no gradient may pass through it from one call to the next.
    """
    kinds = getattr(core.config.get_text_config(), "layer_types", None) or ()
    return any(kind.startswith("linear") or "attention" not in kind for kind in kinds)


def tower_of(core: nn.Module) -> nn.Module:
    """The vision tower of a model; ValueError where it has none of `TOWERS`."""
    for name in TOWERS:
        if hasattr(core.model, name):
            return getattr(core.model, name)
    raise ValueError(f"a {core.config.model_type} has no {', '.join(TOWERS)}: choose {SUPPORTED}")


def in_tower(parameter: str) -> bool:
    """Whether a parameter of this name belongs to a vision tower."""
    return any(f".{name}." in parameter for name in TOWERS)


def check_family(source: str | Path) -> str:
    """The model's type. ValueError unless `source` is a model that can be a student."""
    if random_weights.is_random(source):
        return random_weights.known_config(str(source)).model_type
    try:
        found = AutoConfig.from_pretrained(source, trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        reason = str(error).split("\n")[0]
        mend = f"give a folder (config.json, safetensors) or the hub name of {SUPPORTED}"
        raise ValueError(f"{source}: no model can be read there ({reason}); {mend}") from error
    return check_config(source, found)


def check_config(source: str | Path, config: Any) -> str:
    """The type of a configuration; ValueError unless it is of a model that reads pictures.

    One that is none of `FAMILIES` is let through with a note: its self-test decides. Experts
    are refused: no adapter of ours would reach them.
    """
    found = config.model_type
    if getattr(config.get_text_config(), "enable_moe_block", False):  # Gemma 4's
        raise ValueError(f"{source} is a {found} of experts: choose {SUPPORTED}")
    if found not in FAMILIES:
        if found not in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES or "_moe" in found:
            raise ValueError(f"{source} is a {found}: choose {SUPPORTED}")
        log.info(
            "%s is a %s, none of the families tried here: its self-test decides", source, found
        )
    return found
