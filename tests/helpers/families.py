"""Tiny students of random weights, one of each supported class of transformers."""

from functools import cache
from importlib.util import find_spec
from pathlib import Path

import torch
from transformers import (
    Gemma3Config,
    Gemma3ForConditionalGeneration,
    Gemma3Processor,
    Gemma4Config,
    Gemma4ForConditionalGeneration,
    Idefics3Config,
    Idefics3ForConditionalGeneration,
    Idefics3Processor,
    InternVLConfig,
    InternVLForConditionalGeneration,
    Lfm2VlConfig,
    Lfm2VlForConditionalGeneration,
    PaliGemmaConfig,
    PaliGemmaForConditionalGeneration,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
    Qwen2VLImageProcessorPil,
    Qwen3_5Config,
    Qwen3_5ForConditionalGeneration,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
    SmolVLMConfig,
    SmolVLMForConditionalGeneration,
)
from transformers.models.gemma3.image_processing_pil_gemma3 import Gemma3ImageProcessorPil
from transformers.models.idefics3.image_processing_pil_idefics3 import Idefics3ImageProcessorPil
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

from finer1_lite.generation import Student
from finer1_lite.students import lab_student
from finer1_lite.students.lab_student import CHAT_TEMPLATE, PictureProcessor
from finer1_lite.students.prefix_chat import TEMPLATE, PaliGemmaProcessor

FAMILIES = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl")
OTHERS = {  # model_type -> the model's classes
    "idefics3": (Idefics3Config, Idefics3ForConditionalGeneration),
    "smolvlm": (SmolVLMConfig, SmolVLMForConditionalGeneration),
    "qwen3_5": (Qwen3_5Config, Qwen3_5ForConditionalGeneration),
    "gemma3": (Gemma3Config, Gemma3ForConditionalGeneration),
    "paligemma": (PaliGemmaConfig, PaliGemmaForConditionalGeneration),
    "paligemma2": (PaliGemmaConfig, PaliGemmaForConditionalGeneration),  # of the same type
}
if find_spec("torchvision"):  # their processors ask for it
    OTHERS["internvl"] = (InternVLConfig, InternVLForConditionalGeneration)
    OTHERS["lfm2_vl"] = (Lfm2VlConfig, Lfm2VlForConditionalGeneration)
    OTHERS["gemma4"] = (Gemma4Config, Gemma4ForConditionalGeneration)
# SmolVLM's own, word for word
SMOLVLM_TEMPLATE = (
    "<|im_start|>{% for message in messages %}{{message['role'] | capitalize}}"
    "{% if message['content'][0]['type'] == 'image' %}{{':'}}{% else %}{{': '}}{% endif %}"
    "{% for line in message['content'] %}{% if line['type'] == 'text' %}{{line['text']}}"
    "{% elif line['type'] == 'image' %}{{ '<image>' }}{% endif %}{% endfor %}"
    "<end_of_utterance>\n{% endfor %}{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}"
)
TEXT = dict(
    hidden_size=64,
    intermediate_size=96,
    num_hidden_layers=3,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=1024,
    bos_token_id=None,
)
ROPE = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 3, 3]}


def save(student: Student, folder: Path) -> Path:
    """A folder as a hub has it."""
    for part in (student.model, student.processor):
        part.save_pretrained(folder)
    return folder


def smolvlm_processor(tokenizer) -> Idefics3Processor:
    """Pictures of 64 pixels a side in 4 tokens, without tiles."""
    marks = ["<global-img>", "<fake_token_around_image>", "<image>", "<end_of_utterance>"]
    add_marks(tokenizer, marks)
    tokenizer.eos_token, tokenizer.pad_token = "<end_of_utterance>", "<|im_end|>"
    images = Idefics3ImageProcessorPil(
        size={"longest_edge": 64}, max_image_size={"longest_edge": 64}, do_image_splitting=False
    )
    return Idefics3Processor(images, tokenizer, image_seq_len=4, chat_template=SMOLVLM_TEMPLATE)


def internvl_processor(tokenizer):
    """Pictures of 56 pixels a side in 4 tokens, with the marks that its tokenizer names."""
    from transformers import GotOcr2ImageProcessorPil, InternVLProcessor, InternVLVideoProcessor

    marks = dict(start_image_token="<img>", end_image_token="</img>", video_token="<video>")
    marks["context_image_token"] = "<IMG_CONTEXT>"
    tokenizer._set_model_specific_special_tokens(marks)
    add_marks(tokenizer, list(marks.values()))
    template = CHAT_TEMPLATE.replace(
        "<|vision_start|><|image_pad|><|vision_end|>", "<IMG_CONTEXT>\n"
    )
    return InternVLProcessor(
        GotOcr2ImageProcessorPil(size={"height": 56, "width": 56}, max_patches=1),
        tokenizer,
        InternVLVideoProcessor(),
        image_seq_length=4,
        chat_template=template,
    )


def lfm2_processor(tokenizer):
    """Pictures of at most 64 pixels a side in 4 tokens; the tile is one, and of no use."""
    from transformers import Lfm2VlImageProcessor, Lfm2VlProcessor

    marks = ["<image>", "<|image_start|>", "<|image_end|>", "<|img_thumbnail|>"]
    add_marks(tokenizer, marks)
    sizes = dict(min_image_tokens=4, max_image_tokens=16, encoder_patch_size=16, tile_size=64)
    sizes |= dict(max_num_patches=64, min_tiles=2, max_tiles=2, do_image_splitting=False)
    template = CHAT_TEMPLATE.replace("<|vision_start|><|image_pad|><|vision_end|>", "<image>")
    return Lfm2VlProcessor(Lfm2VlImageProcessor(**sizes), tokenizer, chat_template=template)


def gemma3_processor(tokenizer) -> Gemma3Processor:
    """Pictures of 64 pixels a side in 4 tokens."""
    marks = dict(boi_token="<start_of_image>", eoi_token="<end_of_image>")
    marks |= dict(image_token="<image_soft_token>")
    template = gemma_template(tokenizer, marks, "<start_of_image>", "<end_of_turn>")
    images = Gemma3ImageProcessorPil(size={"height": 64, "width": 64})
    return Gemma3Processor(images, tokenizer, image_seq_length=4, chat_template=template)


def gemma4_processor(tokenizer):
    """Pictures in at most 70 tokens, the fewest that it allows; no sound was ever heard here."""
    from transformers import Gemma4AudioFeatureExtractor as Ears
    from transformers import Gemma4ImageProcessorPil, Gemma4Processor, Gemma4VideoProcessor

    marks = dict(boi_token="<|image>", image_token="<|image|>", eoi_token="<image|>")
    marks |= dict(boa_token="<|audio>", audio_token="<|audio|>", eoa_token="<audio|>")
    template = gemma_template(tokenizer, marks, "<|image|>", "<turn|>")
    images = Gemma4ImageProcessorPil(max_soft_tokens=70)
    parts = (Ears(), images, tokenizer, Gemma4VideoProcessor())
    return Gemma4Processor(*parts, chat_template=template)


def paligemma_processor(tokenizer) -> PaliGemmaProcessor:
    """Pictures of 64 pixels a side in 16 tokens."""
    tokenizer.add_special_tokens({"bos_token": "<bos>"})
    images = SiglipImageProcessorPil(size={"height": 64, "width": 64})
    images.image_seq_length = 16
    return PaliGemmaProcessor(images, tokenizer, chat_template=TEMPLATE)


def gemma_template(tokenizer, marks: dict, image: str, end: str) -> str:
    """The lab's turns with these marks in them."""
    tokenizer._set_model_specific_special_tokens(marks)
    add_marks(tokenizer, [*marks.values(), end])
    tokenizer.eos_token = end
    template = CHAT_TEMPLATE.replace("<|vision_start|><|image_pad|><|vision_end|>", image)
    return template.replace("<|im_end|>", end)


def add_marks(tokenizer, marks: list[str]) -> None:
    """Special tokens beside those that it has."""
    marks = {"additional_special_tokens": marks}
    tokenizer.add_special_tokens(marks, replace_extra_special_tokens=False)


@cache
def processor_for(family: str) -> PictureProcessor:
    """The lab's words with each family's patches, and the token that the lab has no use for."""
    tokenizer = lab_student.make_tokenizer()
    add_marks(tokenizer, ["<|vision_pad|>"])
    if family in ("idefics3", "smolvlm"):
        return smolvlm_processor(tokenizer)
    own = dict(internvl=internvl_processor, lfm2_vl=lfm2_processor)
    own |= dict(gemma3=gemma3_processor, gemma4=gemma4_processor, paligemma=paligemma_processor)
    own |= dict(paligemma2=paligemma_processor)
    if family in own:
        return own[family](tokenizer)
    patch = 16 if family in ("qwen3_vl", "qwen3_5") else 14
    images = Qwen2VLImageProcessorPil(
        min_pixels=(2 * patch) ** 2, max_pixels=(6 * patch) ** 2, patch_size=patch, merge_size=2
    )
    processor = PictureProcessor(images, tokenizer, chat_template=CHAT_TEMPLATE)
    processor.family = family
    return processor


def tiny(family: str) -> Student:
    """Three language layers of width 64; the pictures matter to what it says."""
    processor = processor_for(family)
    torch.manual_seed(1)
    model = _model(family, processor.tokenizer).eval()
    with torch.no_grad():  # as first drawn, every answer would be one word repeated
        for name, weight in model.named_parameters():
            if weight.ndim > 1 and "embed" not in name and "lm_head" not in name:
                weight.mul_(2 if family == "gemma4" else 4)  # whose logits end at 30
            if "mm_input_projection" in name:  # Gemma 3's begins at zero
                weight.normal_(std=0.1)
    return Student(model, processor)


def _model(family: str, tokenizer):
    ids = tokenizer.convert_tokens_to_ids
    if family not in (*FAMILIES, "qwen3_5"):
        config, model = OTHERS[family]
        kinds = dict(internvl="qwen2", lfm2_vl="lfm2", gemma3="gemma3_text", gemma4="gemma4_text")
        kinds |= dict(paligemma="gemma", paligemma2="gemma2")
        text = TEXT | dict(
            model_type=kinds.get(family, "llama"),
            vocab_size=-(-len(tokenizer) // 64) * 64,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
        vision = dict(
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=3,
            num_attention_heads=2,
            image_size=56 if family == "internvl" else 64,
            patch_size=14 if family == "internvl" else 16,
        )
        if family == "internvl":
            image = dict(image_token_id=ids("<IMG_CONTEXT>"), image_seq_length=4)
            return model(config(text_config=text, vision_config=vision, **image))
        if family == "lfm2_vl":
            text |= dict(layer_types=["conv", "full_attention", "conv"])
            image = dict(image_token_id=ids("<image>"), projector_hidden_size=64)
            vision |= dict(num_patches=64)
            return model(config(text_config=text, vision_config=vision, **image))
        if family == "gemma3":  # a window shorter than the prompt
            text |= dict(head_dim=16, sliding_window=24, query_pre_attn_scalar=16)
            text["layer_types"] = ["sliding_attention", "full_attention", "sliding_attention"]
            image = dict(image_token_id=ids("<image_soft_token>"), mm_tokens_per_image=4)
            image |= dict(eos_token_id=tokenizer.eos_token_id)
            return model(config(text_config=text, vision_config=vision, **image))
        if family.startswith("paligemma"):  # the second's prompt is longer than its window
            text |= dict(head_dim=16)
            if family == "paligemma2":
                text |= dict(sliding_window=24, query_pre_attn_scalar=16)
                text |= dict(final_logit_softcapping=None)  # as `models.load_student` has it
            image = dict(image_token_id=ids("<image>"), projection_dim=64)
            vision |= dict(model_type="siglip_vision_model", projection_dim=64)
            return model(config(text_config=text, vision_config=vision, **image))
        if family == "gemma4":  # the third layer reads the first one's keys and values
            layers = ["sliding_attention", "full_attention", "sliding_attention", "full_attention"]
            text |= dict(head_dim=16, global_head_dim=32, sliding_window=24, layer_types=layers)
            text |= dict(num_hidden_layers=4, num_kv_shared_layers=2, final_logit_softcapping=30.0)
            text |= dict(hidden_size_per_layer_input=8, use_bidirectional_attention="vision")
            text |= dict(vocab_size_per_layer_input=text["vocab_size"])
            vision |= dict(num_key_value_heads=2, head_dim=16)
            del vision["image_size"]
            names = dict(image="<|image|>", video="<|video|>", audio="<|audio|>")
            image = {f"{kind}_token_id": ids(name) for kind, name in names.items()}
            image |= dict(eos_token_id=tokenizer.eos_token_id)
            return model(config(text_config=text, vision_config=vision, **image))
        return model(
            config(
                text_config=text,
                vision_config=vision,
                scale_factor=2,
                image_token_id=ids("<image>"),
                pad_token_id=tokenizer.pad_token_id,
            )
        )
    text = TEXT | dict(
        vocab_size=-(-len(tokenizer) // 64) * 64,
        eos_token_id=ids("<|im_end|>"),
        pad_token_id=ids("<|endoftext|>"),
        rope_parameters=ROPE,
    )
    tokens = dict(
        image_token_id=ids("<|image_pad|>"),
        video_token_id=ids("<|video_pad|>"),
        vision_start_token_id=ids("<|vision_start|>"),
        vision_end_token_id=ids("<|vision_end|>"),
    )
    if family == "qwen2_5_vl":
        config = lab_student.make_config(tokenizer)
        config.text_config.vocab_size = text["vocab_size"]
        return lab_student.Qwen2_5_VLForConditionalGeneration(config)
    if family == "qwen2_vl":
        vision = dict(depth=3, embed_dim=32, hidden_size=64, num_heads=2, mlp_ratio=2)
        return Qwen2VLForConditionalGeneration(
            Qwen2VLConfig(text_config=text, vision_config=vision, **tokens)
        )
    text |= dict(head_dim=16, rope_parameters=ROPE | {"mrope_interleaved": True})
    vision = dict(
        depth=3,
        hidden_size=32,
        intermediate_size=64,
        num_heads=2,
        out_hidden_size=64,
        num_position_embeddings=64,
    )
    if family == "qwen3_5":  # two layers of linear attention, one of the other kind
        text |= dict(
            head_dim=32,
            layer_types=["linear_attention", "linear_attention", "full_attention"],
            linear_num_key_heads=2,
            linear_num_value_heads=4,
            linear_key_head_dim=16,
            linear_value_head_dim=16,
        )
        text["rope_parameters"] |= {"partial_rotary_factor": 0.5}
        config = Qwen3_5Config(text_config=text, vision_config=vision, **tokens)
        return Qwen3_5ForConditionalGeneration(config)
    vision |= dict(deepstack_visual_indexes=[0, 1])
    return Qwen3VLForConditionalGeneration(
        Qwen3VLConfig(text_config=text, vision_config=vision, **tokens)
    )
