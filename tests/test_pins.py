"""The pinned stack: installed versions, and every third-party call that the code leans on.

A library that renames an argument or a method fails here, by name, and not in the middle
of a training.
"""

import inspect
import re
from importlib.metadata import PackageNotFoundError, version

import anywidget
import datasets
import openai
import py3langid
import pytest
import torch
import yake
from huggingface_hub import HfApi
from paths import ROOT
from peft import LoraConfig, LoraModel, PeftModel, get_peft_model
from rapidfuzz import fuzz
from transformers import (
    AutoModelForImageTextToText,
    AutoProcessor,
    BitsAndBytesConfig,
    DynamicCache,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2_5_VLModel,
    Qwen2_5_VLProcessor,
    Qwen2VLImageProcessorPil,
    Qwen2VLModel,
    Qwen3VLModel,
    Qwen3VLTextModel,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)
from trl import SFTConfig, SFTTrainer

PINS = re.findall(r"^([\w.-]+)==([\w.]+)", (ROOT / "requirements.txt").read_text(), re.MULTILINE)
COMMON = """max_steps per_device_train_batch_size learning_rate lr_scheduler_type warmup_steps
    weight_decay max_grad_norm logging_steps save_steps save_total_limit seed report_to
    disable_tqdm use_cpu dataloader_pin_memory bf16 fp16 output_dir"""
CALLS = {  # what we call -> the arguments that we name
    TrainingArguments: COMMON + " logging_first_step remove_unused_columns adam_beta2",
    SFTConfig: COMMON
    + """ gradient_accumulation_steps completion_only_loss max_length
        gradient_checkpointing data_seed""",
    SFTTrainer: "model args train_dataset processing_class callbacks",
    Trainer: "model args train_dataset data_collator callbacks",
    Trainer.train: "resume_from_checkpoint",
    Trainer.training_step: "model inputs num_items_in_batch",
    Trainer.compute_loss: "model inputs return_outputs num_items_in_batch",
    Trainer.log: "logs start_time",
    Trainer._get_train_sampler: "train_dataset",
    TrainerCallback.on_step_end: "args state control kwargs",
    TrainerCallback.on_log: "args state control kwargs",
    DynamicCache.batch_repeat_interleave: "repeats",
    DynamicCache.batch_select_indices: "indices",
    HfApi.create_repo: "repo_id private exist_ok",
    HfApi.repo_info: "repo_id",
    HfApi.upload_folder: "repo_id folder_path allow_patterns commit_message",
    Qwen3VLTextModel.forward: "visual_pos_masks deepstack_visual_embeds inputs_embeds",
    Qwen2_5_VLForConditionalGeneration.forward: "input_ids attention_mask pixel_values labels",
    LoraConfig: "r lora_alpha lora_dropout target_modules task_type",
    PeftModel.from_pretrained: "model model_id is_trainable",
    LoraModel.merge_and_unload: "safe_merge",
    get_peft_model: "model peft_config",
    BitsAndBytesConfig: """load_in_4bit bnb_4bit_quant_type bnb_4bit_use_double_quant
        bnb_4bit_compute_dtype llm_int8_skip_modules""",
    datasets.load_dataset_builder: "path name revision",
    datasets.load_from_disk: "dataset_path",
    datasets.Dataset.to_iterable_dataset: "num_shards",
    datasets.IterableDataset.select_columns: "column_names",
    datasets.IterableDataset.cast_column: "column feature",
    datasets.IterableDataset.load_state_dict: "state_dict",
    datasets.IterableDataset.state_dict: "",
    datasets.Image: "decode",
    openai.OpenAI: "base_url api_key max_retries timeout",
    yake.KeywordExtractor: "lan n dedup_lim top",
    yake.KeywordExtractor.extract_keywords: "text",
    fuzz.token_sort_ratio: "s1 s2",
    py3langid.set_languages: "langs",
    py3langid.classify: "instance",
}
for family in (Qwen2VLModel, Qwen2_5_VLModel, Qwen3VLModel):
    CALLS[family.get_rope_index] = "input_ids mm_token_type_ids image_grid_thw attention_mask"
    CALLS[family.get_image_features] = "pixel_values image_grid_thw"


@pytest.mark.parametrize("package, pinned", PINS)
def test_installed_version_is_the_pinned_one(package, pinned):
    try:
        found = version(package).split("+")[0]  # 2.13.0+cpu is 2.13.0
    except PackageNotFoundError:
        pytest.fail(f"{package} is not installed: pip install -r requirements.txt")
    assert found == pinned, f"{package} {found}: pip install -r requirements.txt"


def test_the_stack_that_was_tried_together_is_pinned():
    expected = {"torch", "transformers", "trl", "peft", "bitsandbytes", "datasets", "accelerate"}
    assert expected <= {package for package, _ in PINS}


@pytest.mark.parametrize("call", CALLS, ids=lambda call: call.__qualname__)
def test_call_knows_our_arguments(call):
    known = inspect.signature(call).parameters
    missing = [name for name in CALLS[call].split() if name not in known]
    assert not missing, f"{call.__qualname__} no longer knows {', '.join(missing)}"


def test_what_we_override_is_called_by_the_library():
    """An override of a method that nobody calls is dead code without any error."""
    source = inspect.getsource(Trainer)
    for name in ("training_step", "compute_loss", "log", "_get_train_sampler"):
        assert re.search(rf"self\.{name}\b", source), name
    assert "get_attributes" in inspect.getsource(inspect.getmodule(Qwen2_5_VLProcessor.__mro__[1]))


def test_checkpoints_hold_the_files_that_we_look_for_in_the_order_that_we_trust():
    """`trainer_state.json` comes last: where it is whole, all else is."""
    source = inspect.getsource(Trainer._save_checkpoint)
    calls = ("save_model", "_save_optimizer_and_scheduler", "_save_rng_state", "save_to_json")
    places = [source.index(f"{name}(") for name in calls]
    assert places == sorted(places)


def test_the_model_has_the_parts_that_rollouts_reach_for(student):
    core = student.model
    for path in ("lm_head", "model.language_model", "model.visual", "model.get_rope_index"):
        part = core
        for name in path.split("."):
            part = getattr(part, name)
    cache = core.model.language_model(input_ids=torch.tensor([[1, 2]]), use_cache=True)
    assert isinstance(cache.past_key_values, DynamicCache)


def test_picture_features_come_one_tensor_a_picture(student, birds):
    images = [p.image() for p in birds.test[:2]]
    pixels = student.processor.image_processor(images, return_tensors="pt")
    with torch.no_grad():
        found = student.model.model.get_image_features(
            pixels["pixel_values"], pixels["image_grid_thw"]
        ).pooler_output
    assert [tuple(f.shape) for f in found] == [(9, 192)] * 2


def test_the_parts_of_openai_and_anywidget_that_are_reached_for():
    client = openai.OpenAI(base_url="http://localhost/v1", api_key="none")
    assert callable(client.chat.completions.with_streaming_response.create)
    assert issubclass(openai.APITimeoutError, openai.APIError)
    assert issubclass(openai.APIStatusError, openai.APIError)
    assert hasattr(anywidget.AnyWidget, "_esm") or "_esm" in inspect.getsource(anywidget.AnyWidget)


def test_the_picture_processor_works_without_torchvision():
    images = Qwen2VLImageProcessorPil(min_pixels=784, max_pixels=7056, patch_size=14, merge_size=2)
    assert images.size == {"shortest_edge": 784, "longest_edge": 7056}
    assert callable(AutoProcessor.from_pretrained)
    assert callable(AutoModelForImageTextToText.from_pretrained)
