"""Load a student of a known family, plain or in 4 bits, with or without adapter."""

import gc
import json
import logging
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict
from safetensors import SafetensorError
from torch import nn
from transformers import AutoConfig, AutoModelForImageTextToText, BitsAndBytesConfig

from finer1_lite.data.images import MOST
from finer1_lite.generation import Student
from finer1_lite.presets import Preset
from finer1_lite.runtime import checkpoints
from finer1_lite.runtime.devices import choose_device, choose_dtype
from finer1_lite.runtime.files import DataError
from finer1_lite.students import attention, random_weights, selftest, unsloth
from finer1_lite.students.card import ADAPTER, is_adapter, is_hub_name, read_card, resolved
from finer1_lite.students.families import LORA_TARGETS as LORA_TARGETS  # for notebooks
from finer1_lite.students.families import NO_WORDS, QWEN, check_family, family_of, in_tower
from finer1_lite.students.features import keep_features
from finer1_lite.students.lab_student import asset_folder
from finer1_lite.students.processors import budget_of, load_processor

log = logging.getLogger("finer1_lite")
CONFIG = "config.json"  # of a model's folder
WEIGHTS = "adapter_model.safetensors"
PICKLED = "adapter_model.bin"
BROKEN = "; they are no student: get them anew, or train again at a lower learning rate"
PASSED: set[str] = set()  # sources whose self-test has been seen to pass
SAMPLING = ("do_sample", "temperature", "top_p", "top_k", "min_p", "repetition_penalty")


def four_bits(quantize: str, dtype: torch.dtype) -> BitsAndBytesConfig | None:
    """What `quantize` asks of bitsandbytes; None for "none"."""
    if quantize == "none":
        return None
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
        llm_int8_skip_modules=["lm_head", *(f".*{part}" for part in NO_WORDS)],
    )


def load_student(source: str | Path, preset: Preset) -> Student:
    """Model and processor, ready for inference; `add_adapter` or `load_adapter` next.

    source: a folder or a hub name; `random:Qwen2.5-VL-3B` is that size with random weights.
    Weights are read from safetensors only. Where float16 was chosen and a short answer about
    a picture overflows it, the model computes in float32 instead, and says so. Raises
    ValueError for other kinds of models. Of no Qwen-VL, it must first be its own forward pass.
    """
    check_family(source)
    device = choose_device()
    dtype = choose_dtype(device)
    student = _load(source, preset, device, dtype)
    problem = selftest.overflow(student) if dtype == torch.float16 else ""
    if problem:
        log.info("dtype float32 after all: in float16 %s", problem)
        del student
        gc.collect()  # its memory is wanted
        student = _load(source, preset, device, torch.float32)
    if family_of(student.model) != QWEN and str(source) not in PASSED:
        selftest.require_alike(student, source)
        PASSED.add(str(source))
    return student


def _load(source: str | Path, preset: Preset, device: torch.device, dtype: torch.dtype) -> Student:
    """Model and processor in this precision."""
    if preset.backend == "unsloth":
        model = unsloth.load(source, preset, device, dtype)
    else:
        model = read_weights(source, device, dtype, preset.quantize)
        attention.group_heads(model)
    model.config.use_cache = False  # generation passes its own cache
    if preset.keep_features:
        keep_features(model)
    told = model.generation_config.to_diff_dict()
    unused = ", ".join(f"{name} {told[name]}" for name in SAMPLING if name in told)
    if unused:
        log.info("%s: its saved generation settings are not used (%s)", source, unused)
    asked = "pixels" in preset.model_fields_set or random_weights.is_random(source)
    pixels = preset.pixels if asked else None
    processor = load_processor(source, pixels, model.config.model_type)
    kept = budget_of(processor)
    if pixels is None and kept != preset.pixels:
        log.info("pixels %d: the budget saved with %s", kept, source)
    if kept > MOST:
        log.info("pixels: files are read in %d at most all the same", MOST)
    return Student(model.eval(), processor)


def read_weights(
    source: str | Path, device: torch.device, dtype: torch.dtype | str, quantize: str = "none"
) -> nn.Module:
    """The plain model, its language layers in 4 bits where asked, or as it was saved quantised.

    dtype: also "auto". DataError where weights are missing, left over or torn; ValueError where
    any is nan or inf.
    """
    if quantize != "none" and device.type == "mps":
        raise ValueError(f"quantize {quantize} needs CUDA or a CPU, not mps: set quantize=none")
    quantization = four_bits(quantize, dtype)
    if random_weights.is_random(source):
        model = random_weights.load(source, dtype, quantization, device)
    else:
        saved = getattr(AutoConfig.from_pretrained(source), "quantization_config", None)
        options: dict[str, Any] = (
            {} if saved or not quantization else {"quantization_config": quantization}
        )
        if saved:
            method = saved.get("quant_method") if isinstance(saved, dict) else saved.quant_method
            log.info("%s: quantised by %s, loaded as it is saved", source, method)
        if saved or quantization:
            options["device_map"] = {"": device}
        model = _read(source, dtype, options)
        quantization = quantization or saved
    if not quantization:
        model = model.to(device)
    checkpoints.require_finite(model.named_parameters(), f"{source}: ", BROKEN)
    if family_of(model).prefix:  # its own forward pass leaves out a bound that TRL's loss reads
        model.config.get_text_config().final_logit_softcapping = None
    for module in model.modules():  # on some CPUs bitsandbytes packs layers in evaluation
        if hasattr(module, "support_avx512bf16_for_cpu"):  # mode: without any gradient
            module.support_avx512bf16_for_cpu = False
    return model


def _read(source: str | Path, dtype: torch.dtype | str, options: dict[str, Any]) -> nn.Module:
    """The model of transformers, with every weight from the files: it only logs what it made up."""
    try:
        model, found = AutoModelForImageTextToText.from_pretrained(
            source,
            dtype=dtype,
            use_safetensors=True,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # listed below, with all else
            **options,
        )
    except (SafetensorError, ImportError) as error:  # torn, or quantised by what is not installed
        raise ValueError(f"{source}: its weights cannot be read: {error}") from error
    other = [f"{name} {list(a)} for {list(b)}" for name, a, b in found["mismatched_keys"]]
    what = f"{source}: matrices that do not fit its config.json"
    more = [n for n in found["unexpected_keys"] if not n.endswith("inv_freq")]  # computed anew
    checkpoints.require_same(what, found["missing_keys"], more, other)
    return model


def add_adapter(student: Student, preset: Preset, seed: int) -> Student:
    """Wrap the language layers in fresh LoRA adapters (float32, B = 0).

    With `preset.lora_vision` the vision blocks too: stage 1 trains them, stage 2 keeps
    them as they are (`prepare_for_stage_two`).

    What stays outside the 4 bits (vision tower, embeddings, norms) keeps its dtype. PEFT's
    `prepare_model_for_kbit_training` would widen all of it to float32, 1.9 GB more on a
    Qwen2.5-VL-3B; norms and log-softmax compute in float32 anyway, and PEFT freezes the base.
    """
    if preset.backend == "unsloth":
        return Student(unsloth.add_adapter(student.model, preset, seed), student.processor)
    torch.manual_seed(seed)
    family = family_of(student.model)
    config = LoraConfig(
        r=preset.lora_rank,
        lora_alpha=2 * preset.lora_rank,
        lora_dropout=0.0,
        target_modules=f"{family.lora}|{family.vision}" if preset.lora_vision else family.lora,
        task_type="CAUSAL_LM",
    )
    return Student(get_peft_model(student.model, config), student.processor)


def load_adapter(student: Student, folder: Path, trainable: bool = False) -> Student:
    """Put a saved adapter on a plain student, with the pixel budget that it was trained at."""
    model = load_adapter_on(student.model, folder, trainable)
    processor = student.processor
    if (Path(folder) / "processor_config.json").is_file():
        processor = load_processor(folder, family=student.model.config.model_type)
        saved, given = budget_of(processor), budget_of(student.processor)
        if saved != given:
            log.info("pixels %d: the budget saved with %s (not %d)", saved, folder, given)
    return Student(model.eval(), processor)


def load_trained(source: str | Path, preset: Preset, base: str | None = None) -> Student:
    """A student from a model's folder, a hub name, or an adapter's folder, which finds its base.

    base: the model below the adapter, instead of the one that `base_of` finds.
    """
    if not is_adapter(source):
        return load_student(source, preset)
    return load_adapter(load_student(base_of(source, base), preset), Path(source))


def load_adapter_on(model: nn.Module, folder: Path, trainable: bool = False) -> PeftModel:
    """A plain model with a saved adapter, all of whose matrices are its own.

    DataError where the file cannot be read or its matrices are not those that this base and
    adapter_config.json make, of which PEFT only warns; ValueError where any is nan or inf.
    """
    if not (Path(folder) / WEIGHTS).exists() and (Path(folder) / PICKLED).exists():
        mend = f"save it as {WEIGHTS}: a pickle may run code"
        raise DataError([f"{folder}: holds {PICKLED}; {mend}"], "weights that are not read:")
    given = checkpoints.read_tensors(Path(folder) / WEIGHTS)
    adapted = PeftModel.from_pretrained(
        model, folder, is_trainable=trainable, ignore_mismatched_sizes=True
    )
    wanted = get_peft_model_state_dict(adapted, save_embedding_layers=False)
    whole = adapted.state_dict()  # embeddings that were saved along stand in it under their names
    wanted |= {name: whole[name] for name in given.keys() - wanted if name in whole}
    checkpoints.require_fit(given, wanted, f"{folder} does not fit this base; name its own")
    return adapted


def prepare_for_stage_two(student: Student, preset: Preset) -> None:
    """What holds for every student of TAPO; ValueError where its self-test finds it unfit.

    Vision adapters stay as stage 1 left them: stage 2 encodes a picture once, without gradient,
    for its answers and all their scores; training the tower would mean a pass with gradient
    through it for every micro-batch.
    """
    named = student.model.named_parameters()
    vision = [weight for name, weight in named if in_tower(name) and weight.requires_grad]
    for weight in vision:
        weight.requires_grad_(False)
    if vision:
        log.info("stage 2 leaves the %d matrices of the vision adapters as they are", len(vision))
    if preset.backend != "transformers" or family_of(student.model) != QWEN:
        selftest.require_trainable(student)
    if preset.gradient_checkpointing:
        student.model.gradient_checkpointing_enable({"use_reentrant": False})
    student.model.eval()  # no dropout: rollouts and scores come from the same network


def widen_adapter(model: nn.Module) -> None:
    """Trainable weights in float32 at least.

    TRL's SFTTrainer turns adapters on 4-bit weights to bfloat16, whatever the card: small
    updates are then rounded away, and a loss scaler, as float16 wants it, refuses them.
    """
    for weight in model.parameters():
        if weight.requires_grad:
            weight.data = weight.data.to(torch.promote_types(weight.dtype, torch.float32))


def base_of(folder: str | Path, asked: str | None = None) -> str:
    """The base below an adapter: a folder that is there, or a hub name OWNER/NAME.

    As asked, else by the card, else by adapter_config.json: a folder, a hub name, or the bare
    name of a folder, which is looked for in the run, beside it and among the shipped students,
    and never asked of a hub. DataError naming --base where it is nowhere.
    """
    folder = Path(folder)
    if not is_adapter(folder):
        raise DataError([f"{folder}: holds no adapter ({ADAPTER})"], "no base:")
    if asked:
        return asked
    card = read_card(folder)
    config = json.loads((folder / ADAPTER).read_text(encoding="utf-8"))
    named = [resolved(card.base, folder)] if card else []
    named += [config["base_model_name_or_path"]] if config.get("base_model_name_or_path") else []
    for name in named:
        if random_weights.is_random(name) or is_hub_name(name) or (Path(name) / CONFIG).is_file():
            return name
    near = [*folder.resolve().parents[:3], asset_folder(0).parent]
    places = [place / Path(name).name for name in named for place in near]
    for place in places:
        if (place / CONFIG).is_file():
            return str(place)
    what = f"its base model {' or '.join(named)} is not here" if named else "names no base model"
    raise DataError([f"{folder}: {what}; give --base FOLDER or --base OWNER/NAME"], "no base:")


def save_adapter(student: Student, folder: Path, weights: dict | None = None) -> None:
    """Adapter (safetensors) and processor, so that the pixel budget travels along.

    weights: the model's, where it holds but a part of them itself. Of a base in a local folder
    "./NAME" is written down: no path of this machine travels along, and plain PEFT says that
    there is no such folder, where it would ask a hub for somebody's model of a bare NAME.
    PEFT's empty card goes.
    """
    config = student.model.active_peft_config
    if config.base_model_name_or_path and Path(config.base_model_name_or_path).is_dir():
        config.base_model_name_or_path = f"./{Path(config.base_model_name_or_path).resolve().name}"
    student.model.save_pretrained(folder, state_dict=weights)
    student.processor.save_pretrained(folder)
    (folder / "README.md").unlink(missing_ok=True)


def trainable_parameters(model: nn.Module) -> int:
    """How many numbers learn."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad)
