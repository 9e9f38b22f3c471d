"""The families of models that can be students, and where their adapters sit."""

from pathlib import Path

from transformers import AutoConfig

from finer1_lite.students import random_weights

FAMILIES = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl")  # `model_type` of config.json
SUPPORTED = "a Qwen2-VL, Qwen2.5-VL or (dense) Qwen3-VL"
# Language layers only: the vision tower of Qwen2.5-VL has gate_proj, up_proj and
# down_proj too, so bare names would adapt both.
LORA_TARGETS = r".*language_model.*\.(q_proj|k_proj|v_proj|o_proj|gate_proj|up_proj|down_proj)"
# Attention and MLP of the vision blocks under the names of all three families. The merger
# is left alone.
VISION_TARGETS = (
    r".*visual\.blocks\..*\.(qkv|proj|fc1|fc2|linear_fc1|linear_fc2|gate_proj|up_proj|down_proj)"
)


def check_family(source: str | Path) -> str:
    """The model's type. ValueError unless `source` is one of `SUPPORTED`."""
    if random_weights.is_random(source):
        return "qwen2_5_vl"
    try:
        found = AutoConfig.from_pretrained(source, trust_remote_code=False).model_type
    except (OSError, ValueError, KeyError) as error:
        reason = str(error).split("\n")[0]
        mend = f"give a folder (config.json, safetensors) or the hub name of {SUPPORTED}"
        raise ValueError(f"{source}: no model can be read there ({reason}); {mend}") from error
    if found not in FAMILIES:
        raise ValueError(f"{source} is a {found}: choose {SUPPORTED}")
    return found
