"""Load a student: the lab's or any Qwen-VL, plain or in 4 bits, with or without adapter."""

import importlib.util
import logging
import os
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch
from peft import LoraConfig, PeftModel, get_peft_model, prepare_model_for_kbit_training
from transformers import AutoModelForImageTextToText, AutoProcessor, BitsAndBytesConfig

from finer1_lite import fullsize
from finer1_lite.labstudent import PictureProcessor
from finer1_lite.presets import Preset

log = logging.getLogger("finer1_lite")

# Language layers only: the vision tower of Qwen2.5-VL has gate_proj, up_proj and
# down_proj too, so bare names would adapt both.
LORA_TARGETS = r".*language_model.*\.(q_proj|k_proj|v_proj|o_proj|gate_proj|up_proj|down_proj)"


@dataclass
class Student:
    """A model and its processor."""

    model: torch.nn.Module
    processor: object

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device


@cache
def choose_device() -> torch.device:
    """CUDA where there is one; `FINER1_DEVICE` overrides. Prints why."""
    asked = os.environ.get("FINER1_DEVICE")
    name = asked or ("cuda" if torch.cuda.is_available() else "cpu")
    why = "FINER1_DEVICE" if asked else "torch.cuda.is_available()"
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


def load_processor(source: str | Path, pixels: int):
    """The stock processor where torchvision is installed, else pictures and text alone."""
    config = Path(source) / "processor_config.json"
    if fullsize.is_random(source):
        return fullsize.make_processor(pixels)
    own = config.is_file() and "PictureProcessor" in config.read_text(encoding="utf-8")
    if own or importlib.util.find_spec("torchvision") is None:
        processor = PictureProcessor.from_pretrained(source)
    else:
        processor = AutoProcessor.from_pretrained(source)
    images = processor.image_processor
    smallest = min(images.size["shortest_edge"], pixels)
    images.size = {"shortest_edge": smallest, "longest_edge": pixels}
    processor.tokenizer.padding_side = "left"
    return processor


def four_bits(quantize: str, dtype: torch.dtype) -> BitsAndBytesConfig | None:
    """What `quantize` asks of bitsandbytes; None for "none"."""
    if quantize not in ("none", "nf4"):
        raise ValueError(f"quantize is {quantize!r}: choose none or nf4")
    if quantize == "none":
        return None
    return BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype, llm_int8_skip_modules=["lm_head", ".*visual"],
    )  # fmt: skip


def load_student(source: str | Path, preset: Preset) -> Student:
    """Model and processor, ready for inference; `add_adapter` or `load_adapter` next.

    source: a folder or a hub name; `random:Qwen2.5-VL-3B` is that size with random weights.
    Weights are read from safetensors only.
    """
    device = choose_device()
    dtype = choose_dtype(device)
    quantization = four_bits(preset.quantize, dtype)
    if fullsize.is_random(source):
        model = fullsize.load(source, dtype, quantization, device)
    else:
        model = AutoModelForImageTextToText.from_pretrained(
            source, dtype=dtype, quantization_config=quantization, use_safetensors=True,
            device_map={"": device} if quantization else None,
        )  # fmt: skip
    if quantization is None:
        model = model.to(device)
    for module in model.modules():  # on some CPUs bitsandbytes packs layers in evaluation
        if hasattr(module, "support_avx512bf16_for_cpu"):  # mode: without any gradient
            module.support_avx512bf16_for_cpu = False
    model.config.use_cache = False  # generation passes its own cache
    return Student(model.eval(), load_processor(source, preset.pixels))


def add_adapter(student: Student, preset: Preset, seed: int) -> Student:
    """Wrap the language layers in fresh LoRA adapters (float32, B = 0)."""
    model = student.model
    if preset.quantize != "none":
        model = prepare_model_for_kbit_training(model, use_gradient_checkpointing=False)
    torch.manual_seed(seed)
    config = LoraConfig(
        r=preset.lora_rank, lora_alpha=2 * preset.lora_rank, lora_dropout=0.0,
        target_modules=LORA_TARGETS, task_type="CAUSAL_LM",
    )  # fmt: skip
    return Student(get_peft_model(model, config), student.processor)


def load_adapter(student: Student, folder: Path, trainable: bool = False) -> Student:
    """Put a saved adapter on a plain student."""
    model = PeftModel.from_pretrained(student.model, folder, is_trainable=trainable)
    return Student(model.eval(), student.processor)


def save_adapter(student: Student, folder: Path) -> None:
    """Adapter (safetensors) and processor, so that the pixel budget travels along.

    Of a base in a local folder only the folder's name is written down: no path of this
    machine travels with the adapter. PEFT's empty model card is left out.
    """
    config = student.model.active_peft_config
    if config.base_model_name_or_path and Path(config.base_model_name_or_path).is_dir():
        config.base_model_name_or_path = Path(config.base_model_name_or_path).name
    student.model.save_pretrained(folder)
    student.processor.save_pretrained(folder)
    (folder / "README.md").unlink(missing_ok=True)


def trainable_parameters(model) -> int:
    return sum(p.numel() for p in model.parameters() if p.requires_grad)
