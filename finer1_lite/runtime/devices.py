"""Where a model computes, and in which numbers; each choice says why."""

import logging
import os
import platform
from functools import cache

import torch

from finer1_lite.runtime import distributed
from finer1_lite.runtime.files import DataError

log = logging.getLogger("finer1_lite")
VARIABLE = "FINER1_DEVICE"  # what `--device` sets, for child processes too
DEVICES = ("auto", "cuda", "mps", "cpu")
NOT_FOUND = "no CUDA GPU was found"
# A cache that grows with every token leaves gaps between blocks of fixed size. Read when a card is
# first used; Windows has no such thing, and what a user says of it stands.
if platform.system() == "Linux" and not any("_ALLOC_CONF" in name for name in os.environ):
    os.environ["PYTORCH_ALLOC_CONF"] = "expandable_segments:True"
# cuDNN's gradient is nan where a query sees next to nothing (pytorch 196678, seen on Hopper)
torch.backends.cuda.enable_cudnn_sdp(False)


def available() -> list[str]:
    """What this machine computes on."""
    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    return [name for name, found in there.items() if found] + ["cpu"]


def asked() -> str:
    """What `--device` or the variable names ("auto"); DataError where that is not here."""
    name = os.environ.get(VARIABLE) or "auto"
    here = available()
    if name not in {"auto", *here}:
        allowed = f"choose of {', '.join(DEVICES)}; this machine has {', '.join(here)}"
        allowed += "; CUDA_VISIBLE_DEVICES chooses a card" if "cuda" in here else ""
        raise DataError([f"{name!r}: {allowed}"], f"--device, or {VARIABLE}, cannot be used:")
    return name


def prepare(preset: str | None) -> None:
    """ValueError where a command's device, or a GPU for its preset, is not here; loads nothing.

    preset: the name of one that is made for a GPU.
    """
    choose_device.cache_clear()
    if asked() == "auto" and preset is not None and "cuda" not in available():
        raise ValueError(
            f"--preset {preset} is made for a CUDA GPU and {NOT_FOUND}; lab and laptop are made "
            "for a CPU, and --device cpu goes on all the same (slowly)"
        )


@cache
def choose_device() -> torch.device:
    """CUDA where there is one, else the CPU, or what is asked for. Prints why."""
    name = asked()
    why = f"as --device or {VARIABLE} says"
    if name == "auto":
        name = "cuda" if "cuda" in available() else "cpu"
        why = f"{NOT_FOUND}, so the CPU is used"
        why += "; --device mps uses this Mac's GPU" if "mps" in available() else ""
    if name == "cuda" and distributed.world()[1] > 1:  # a card of its own for each process
        name = f"cuda:{os.environ['LOCAL_RANK']}"
    device = torch.device(name)
    if device.type == "cuda":
        gib = torch.cuda.get_device_properties(device).total_memory / 2**30
        why = f"{torch.cuda.get_device_name(device)}, {gib:.0f} GiB"
    elif device.type == "mps":
        why = "this Mac's GPU; nobody has tried this on one yet"
    log.info("device %s: %s", device, why)
    return device


@cache
def choose_dtype(device: torch.device) -> torch.dtype:
    """float32 on a CPU and on mps, bfloat16 from Ampere on, float16 before. Prints why."""
    if device.type != "cuda":
        untried, exact = "half precision is untried on mps", "exact and repeatable on a CPU"
        dtype, why = torch.float32, untried if device.type == "mps" else exact
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
