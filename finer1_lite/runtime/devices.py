"""Where a model computes, and in which numbers; each choice says why."""

import logging
import os
import platform
from functools import cache

import torch

from finer1_lite.runtime import distributed

log = logging.getLogger("finer1_lite")


@cache
def choose_device() -> torch.device:
    """CUDA where there is one; `FINER1_DEVICE` overrides. Prints why."""
    chosen = os.environ.get("FINER1_DEVICE")
    name = chosen or ("cuda" if torch.cuda.is_available() else "cpu")
    why = "FINER1_DEVICE" if chosen else "torch.cuda.is_available()"
    name = distributed.device_name(name)
    log.info("device %s (%s)", name, why)
    return torch.device(name)


@cache
def choose_dtype(device: torch.device) -> torch.dtype:
    """float32 on a CPU, bfloat16 from Ampere on, float16 before. Prints why."""
    if device.type != "cuda":
        dtype, why = torch.float32, "exact and repeatable on a CPU"
    elif torch.cuda.get_device_capability(device) >= (8, 0):
        dtype, why = torch.bfloat16, "this card computes in it (Ampere or later)"
    else:
        dtype, why = torch.float16, "this card has no bfloat16 (before Ampere)"
    log.info("dtype %s: %s", str(dtype).removeprefix("torch."), why)
    return dtype


def machine() -> dict[str, str | int | None]:
    """Facts of this machine, for the record of what was measured on it."""
    device = choose_device()
    card = {"card": torch.cuda.get_device_name(device)} if device.type == "cuda" else {}
    facts = {"platform": platform.platform(), "processors": os.cpu_count()}
    return facts | {"python": platform.python_version(), "device": device.type} | card
