"""unsloth in place of plain transformers for loading and adapters: optional, on a CUDA GPU.

It replaces classes of transformers, TRL and PEFT when it is imported, so it must come before
them; nothing heavy is imported at the head of this module. Completions are written by our own
loop over its layers: its `generate` would encode a picture and prefill a prompt once for each.
Written against unsloth 2026.10, whose defaults it relies on. A GPU has seen stage 1, not stage 2.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
from collections.abc import Callable, Iterable
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path

    import torch

    from finer1_lite.generation import Student
    from finer1_lite.presets import Preset

REWRITTEN = ("transformers", "trl", "peft")  # what unsloth patches
WAY_OUT = "or --set backend=transformers"
LONGEST = 4096  # tokens of a training row, picture and all; longer ones are truncated


def import_first(settings: Iterable[str]) -> None:
    """Import unsloth now if one of a command line's KEY=VALUE settings asks for it."""
    if "backend=unsloth" in (item.replace('"', "").replace(" ", "") for item in settings):
        unsloth()


def unsloth() -> ModuleType:
    """The module, patches done. ValueError where it is missing, too late or cannot run."""
    if "unsloth" in sys.modules:
        return sys.modules["unsloth"]
    if importlib.util.find_spec("unsloth") is None:
        raise ValueError(f"backend=unsloth: it is not installed; pip install unsloth, {WAY_OUT}")
    early = [name for name in REWRITTEN if name in sys.modules]
    if early:
        raise ValueError(
            f"backend=unsloth: {', '.join(early)} had been imported before unsloth, whose patches "
            f"would miss them; start anew and `import unsloth` first, {WAY_OUT}"
        )
    # Logits, not hidden states, from its forward passes; the self-test looks at them.
    os.environ.setdefault("UNSLOTH_RETURN_LOGITS", "1")
    try:
        return importlib.import_module("unsloth")
    except (ImportError, NotImplementedError, RuntimeError) as error:
        reason = str(error).split("\n")[0]
        raise ValueError(f"backend=unsloth cannot run here ({reason}); a GPU, {WAY_OUT}") from error


def load(
    source: str | Path, preset: Preset, device: torch.device, dtype: torch.dtype
) -> torch.nn.Module:
    """The model alone, loaded by FastVisionModel from exactly this source."""
    if device.type != "cuda":
        raise ValueError(f"backend=unsloth wants a CUDA GPU, this is {device.type}; {WAY_OUT}")
    model, _ = unsloth().FastVisionModel.from_pretrained(
        model_name=str(source),
        dtype=dtype,
        load_in_4bit=preset.quantize == "nf4",
        max_seq_length=LONGEST,
        device_map={"": device},
        trust_remote_code=False,
        use_exact_model_name=True,  # not a copy on the hub that somebody quantised before
    )
    return model


def add_adapter(model: torch.nn.Module, preset: Preset, seed: int) -> torch.nn.Module:
    """Fresh LoRA adapters, as `models.add_adapter` makes them."""
    return unsloth().FastVisionModel.get_peft_model(
        model,
        r=preset.lora_rank,
        lora_alpha=2 * preset.lora_rank,
        lora_dropout=0.0,
        finetune_vision_layers=preset.lora_vision,
        random_state=seed,
    )


def sft_options(preset: Preset) -> dict[str, Any]:
    """What TRL's SFTConfig wants besides, so that unsloth's collator gets the rows as they are."""
    if preset.backend != "unsloth":
        return {}
    skip = {"skip_prepare_dataset": True}
    return dict(remove_unused_columns=False, dataset_text_field="", dataset_kwargs=skip)


def collator(student: Student, preset: Preset) -> Callable[[list], dict] | None:
    """The collator of unsloth, which masks the prompt of our rows; None: TRL's own."""
    if preset.backend != "unsloth":
        return None
    found = unsloth()
    found.FastVisionModel.for_training(student.model)
    make = importlib.import_module("unsloth.trainer").UnslothVisionDataCollator
    placed = importlib.import_module("trl.data_utils").prepare_multimodal_messages
    return make(
        student.model,
        student.processor,
        resize="max",  # pictures are left alone: the pixel budget is the processor's business
        completion_only_loss=True,
        # TRL's own marks where a picture stands before a bare question; this one does not.
        formatting_func=lambda row: row | {"prompt": placed(row["prompt"], row["images"])},
    )
