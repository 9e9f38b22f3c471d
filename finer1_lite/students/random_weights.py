"""Full-size students without a hub: of known shapes, by public numbers, with random weights.

Memory and speed do not depend on what the weights are. So a student of the true shapes, with
its 4-bit layers, adapters and vocabulary, runs wherever there is a card; `plan` counts the
same student on the meta device, where tensors have a shape and no memory.

The numbers are those of the published config.json files of Qwen/Qwen2.5-VL-3B-Instruct,
-7B-Instruct and HuggingFaceTB/SmolVLM-256M-Instruct. `tiny` is no published model: the vocabulary
and layout of the first two at small widths, with which the same code runs on a CPU.
"""

import json
from pathlib import Path

import bitsandbytes as bnb
import torch
from tokenizers import Tokenizer
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForImageTextToText,
    BitsAndBytesConfig,
    Idefics3Config,
    Idefics3Processor,
    PreTrainedConfig,
    Qwen2_5_VLConfig,
)
from transformers import PreTrainedTokenizerFast as Tokens
from transformers.models.idefics3.image_processing_pil_idefics3 import Idefics3ImageProcessorPil
from transformers.quantizers import AutoHfQuantizer

from finer1_lite.students import lab_student

PREFIX = "random:"  # of a student's source: `random:Qwen2.5-VL-3B`
TOKENS = {  # special tokens of Qwen2 and Qwen2.5-VL, and where they stand in the vocabulary
    "<|endoftext|>": 151643,
    "<|im_start|>": 151644,
    "<|im_end|>": 151645,
    "<|vision_start|>": 151652,
    "<|vision_end|>": 151653,
    "<|image_pad|>": 151655,
    "<|video_pad|>": 151656,
}
SMOL = "SmolVLM"  # how its sizes are named
SMOL_TOKENS = {
    "<global-img>": 49152,
    "<fake_token_around_image>": 49189,
    "<image>": 49190,
    "<end_of_utterance>": 49279,
}
SMOL_TURN = (  # as SmolVLM's own but for white space
    "{% for m in messages %}{{ m.role | capitalize }}: {% for p in m.content %}"
    "{{ p.text or '<image>' }}{% endfor %}<end_of_utterance>\n{% endfor %}"
    "{{ 'Assistant:' if add_generation_prompt else '' }}"
)
_TEXT = (
    "vocab_size",
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "intermediate_size",
)
_VISION = ("depth", "hidden_size", "num_heads", "intermediate_size", "fullatt_block_indexes")
_TOWER = (32, 1280, 16, 3420, (7, 15, 23, 31))
SIZES = {  # name -> (language part, tied to the embeddings?, vision part)
    "Qwen2.5-VL-3B": ((151_936, 2048, 36, 16, 2, 11_008), True, _TOWER),
    "Qwen2.5-VL-7B": ((152_064, 3584, 28, 28, 4, 18_944), False, _TOWER),
    "Qwen2.5-VL-tiny": ((151_936, 128, 4, 4, 2, 384), True, (4, 64, 4, 128, (1, 3))),
    "SmolVLM-256M": ((49_280, 576, 30, 9, 3, 1536), False, (12, 768, 12, 3072, ())),
}


def known_config(name: str) -> Qwen2_5_VLConfig | Idefics3Config:
    """The configuration of a known size, built in code. Raises ValueError on other names."""
    name = name.removeprefix(PREFIX)
    if name not in SIZES:
        raise ValueError(f"no numbers for {name!r}: known are {', '.join(SIZES)}")
    text, tied, vision = SIZES[name]
    text = dict(zip(_TEXT, text, strict=True))
    vision = dict(zip(_VISION, vision, strict=True))
    if name.startswith(SMOL):
        return _smol_config(text, tied, vision)
    third = text["hidden_size"] // text["num_attention_heads"] // 8  # of a head: 2 to 3 to 3
    sections = [third, 3 * third // 2, 3 * third // 2]
    text |= dict(max_position_embeddings=128_000, rms_norm_eps=1e-6, tie_word_embeddings=tied)
    text["pad_token_id"] = TOKENS["<|endoftext|>"]
    text["rope_parameters"] = dict(rope_type="default", rope_theta=1e6, mrope_section=sections)
    vision |= dict(patch_size=14, spatial_merge_size=2, window_size=112, tokens_per_second=2)
    vision["out_hidden_size"] = text["hidden_size"]
    return Qwen2_5_VLConfig(text_config=text, vision_config=vision, tie_word_embeddings=tied)


def _smol_config(text: dict, tied: bool, vision: dict) -> Idefics3Config:
    """A picture of 512 x 512 pixels in 64 tokens, before a Llama."""
    tower = dict(image_size=512, patch_size=16, intermediate_size=vision["intermediate_size"])
    tower |= dict(num_hidden_layers=vision["depth"], num_attention_heads=vision["num_heads"])
    text |= dict(model_type="llama", max_position_embeddings=8192, rms_norm_eps=1e-5)
    text["rope_parameters"] = dict(rope_type="default", rope_theta=1e5)
    text["pad_token_id"] = 2
    return Idefics3Config(
        text_config=text,
        vision_config=tower | dict(hidden_size=vision["hidden_size"]),
        scale_factor=4,
        image_token_id=SMOL_TOKENS["<image>"],
        tie_word_embeddings=tied,
    )


def find_config(source: str | Path) -> PreTrainedConfig:
    """The configuration of a student: a known size, a folder, or a name on the hub.

    `Qwen/Qwen2.5-VL-3B-Instruct` and `random:Qwen2.5-VL-3B` are known sizes too, so that no
    hub is asked. Raises ValueError that says where it was looked for.
    """
    name = str(source).removeprefix(PREFIX)
    known = name.removeprefix("Qwen/").removeprefix("HuggingFaceTB/").removesuffix("-Instruct")
    if known in SIZES:
        return known_config(known)
    try:
        return AutoConfig.from_pretrained(name)
    except (OSError, ValueError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise ValueError(
            f"no configuration of {name!r}: it is no known size ({', '.join(SIZES)}), no folder "
            f"with a config.json, and the hub did not give one ({reason})"
        ) from None


def on_meta(
    config: PreTrainedConfig, dtype: torch.dtype, quantization: BitsAndBytesConfig | None = None
) -> nn.Module:
    """The model of a configuration without any memory, its 4-bit layers in their places.

    The steps are those of `from_pretrained`.
    """
    with torch.device("meta"):
        model = AutoModelForImageTextToText.from_config(config, dtype=dtype)
    if quantization is not None:
        quantizer = AutoHfQuantizer.from_config(quantization, pre_quantized=False)
        quantizer.preprocess_model(model, dtype=dtype, device_map={"": "meta"})
        quantizer.postprocess_model(model)
        model.hf_quantizer = quantizer
        for module in model.modules():  # as loading a checkpoint leaves them
            if isinstance(module, bnb.nn.Linear4bit) and module.bias is not None:
                module.bias.data = module.bias.data.to(dtype)
    return model


def load(
    source: str,
    dtype: torch.dtype,
    quantization: BitsAndBytesConfig | None = None,
    device: torch.device | str = "cpu",
) -> nn.Module:
    """The student `random:NAME` with transformers' initial weights, the same at every call.

    A module at a time is filled and, where it is a 4-bit layer, quantised: beside the model
    itself at most one layer of it lives in `dtype`, and nothing on the CPU.
    """
    torch.manual_seed(0)
    config = known_config(source)
    model = on_meta(config, dtype, quantization)
    for module in model.modules():
        if isinstance(module, bnb.nn.Linear4bit):
            _fill_4bit(module, config, dtype, device)
        elif [*module.parameters(recurse=False), *module.buffers(recurse=False)]:
            module.to_empty(device=device, recurse=False)
            model._init_weights(module)
    model.tie_weights()
    return model.requires_grad_(False).eval()


def _fill_4bit(
    layer: nn.Module, config: PreTrainedConfig, dtype: torch.dtype, device: torch.device | str
) -> None:
    """Draw the weight of a 4-bit layer and pack it; its bias is zero."""
    deviation = getattr(config.get_text_config(), "initializer_range", 0.02)
    drawn = torch.empty(layer.weight.shape, dtype=dtype, device=device).normal_(0.0, deviation)
    settings = layer.weight.__dict__
    layer.weight = bnb.nn.Params4bit(drawn, requires_grad=False, **settings).to(drawn.device)
    if layer.bias is not None:
        bias = torch.zeros(layer.bias.shape, dtype=dtype, device=device)
        layer.bias = nn.Parameter(bias, requires_grad=False)


def make_processor(source: str, pixels: int) -> lab_student.PictureProcessor | Idefics3Processor:
    """Pictures as that model takes them; the lab's words, special tokens at the model's numbers.

    Most of Qwen's 151,936 numbers stand for no text, so a completion drawn at random decodes to
    little. That is enough for memory and speed, which see numbers only.
    """
    words = lab_student.make_tokenizer()
    if not source.startswith(PREFIX + SMOL):
        return lab_student.make_processor(pixels, _numbered(words, TOKENS))
    marks = {"additional_special_tokens": list(SMOL_TOKENS)}
    words.add_special_tokens(marks, replace_extra_special_tokens=False)
    tokenizer, side = _numbered(words, SMOL_TOKENS), {"longest_edge": 512}
    tokenizer.eos_token = "<end_of_utterance>"
    images = Idefics3ImageProcessorPil(size=side, max_image_size=side, do_image_splitting=False)
    return Idefics3Processor(images, tokenizer, image_seq_len=64, chat_template=SMOL_TURN)


def _numbered(words: Tokens, places: dict[str, int]) -> Tokens:
    """The tokenizer with these special tokens of its own at a model's numbers."""
    state = json.loads(words.backend_tokenizer.to_str())
    vocabulary = state["model"]["vocab"]
    for tag in state["added_tokens"]:
        word = tag["content"]
        tag["id"] = vocabulary[word] = places.get(word, tag["id"])
    return lab_student.wrap(Tokenizer.from_str(json.dumps(state)))


def is_random(source: str | Path) -> bool:
    """Whether a student's source names one of these."""
    return str(source).startswith(PREFIX)
