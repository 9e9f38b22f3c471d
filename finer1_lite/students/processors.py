"""The part of a student that turns pictures and words into numbers."""

import importlib.util
import logging
from pathlib import Path
from typing import Any

from transformers import AutoProcessor, AutoTokenizer, Idefics3Processor
from transformers.models.idefics3.image_processing_pil_idefics3 import Idefics3ImageProcessorPil

from finer1_lite.students import random_weights
from finer1_lite.students.families import FAMILIES, Family
from finer1_lite.students.lab_student import STOCK, PictureProcessor
from finer1_lite.students.prefix_chat import PaliGemmaProcessor
from finer1_lite.students.tokens import settle_tokens

log = logging.getLogger("finer1_lite")
COUNTED = ("max_image_tokens", "max_soft_tokens")  # LFM2-VL and Gemma 4: not pixels, but tokens


def load_processor(
    source: str | Path, pixels: int | None = None, family: str = "qwen2_5_vl"
) -> Any:
    """The stock processor where torchvision is installed, else pictures and text alone.

    These also where they wrote the folder themselves, as the lab's and older ones: their
    processor_config.json says nothing of videos. pixels: the budget a picture is reduced to;
    None keeps the one that was saved. family: the model's type, whose processor is named when
    pictures and text alone are saved. ValueError where it wants what is not installed.
    """
    if random_weights.is_random(source):
        return random_weights.make_processor(str(source), pixels)
    known = FAMILIES.get(family, Family())
    processor = _without_tiles(source) if known.tiles else _stock(source, family)
    if known.prefix:
        parts = (processor.image_processor, processor.tokenizer, processor.chat_template)
        processor = PaliGemmaProcessor(*parts)
    images, saved = processor.image_processor, budget_of(processor)
    for tiles, without in (("max_patches", 1), ("do_image_splitting", False)):
        if hasattr(images, tiles):  # InternVL's, LFM2-VL's
            setattr(images, tiles, without)
    if pixels not in (None, saved):
        what = "not used: every picture has %d in %s"
        if known.budget:
            _set_budget(images, pixels, known)
            what = f"as asked, at most {budget_of(processor)} (not %d, the budget saved with %s)"
        log.info(f"pixels %d: {what}", pixels, saved, source)
    if known.template and processor.chat_template != known.template:
        if processor.chat_template:
            log.info("%s: a plain chat template in the place of its own", source)
        processor.chat_template = known.template
    settle_tokens(processor, source)
    processor.tokenizer.padding_side = "left"
    return processor


def budget_of(processor: Any) -> int:
    """The most pixels of a picture, after it was reduced."""
    images = processor.image_processor
    for name in COUNTED:
        if hasattr(images, name):
            return getattr(images, name) * _token_side(images) ** 2
    size = dict(images.size)
    if "shortest_edge" in size:
        return size["longest_edge"]  # Qwen-VL's: an area, whatever its name says
    side = size.get("longest_edge")
    return side**2 if side else size["height"] * size["width"]


def _set_budget(images: Any, pixels: int, family: Family) -> None:
    """The most pixels of a picture, from now on."""
    counted = [name for name in COUNTED if hasattr(images, name)]
    for name in counted:
        setattr(images, name, family.tokens(pixels, _token_side(images)))
    if hasattr(images, "min_image_tokens"):
        images.min_image_tokens = min(images.min_image_tokens, images.max_image_tokens)
    if not counted:
        smallest = min(images.size["shortest_edge"], pixels)
        images.size = {"shortest_edge": smallest, "longest_edge": pixels}


def _token_side(images: Any) -> int:
    """Pixels a side of what LFM2-VL or Gemma 4 makes one token of."""
    if hasattr(images, "max_soft_tokens"):
        return images.patch_size * images.pooling_kernel_size
    return images.encoder_patch_size * images.downsample_factor


def _stock(source: str | Path, family: str) -> Any:
    """Qwen-VL's by pictures and text alone if need be, and others as transformers has them."""
    config = Path(source) / "processor_config.json"
    own = config.is_file() and '"video_processor"' not in config.read_text(encoding="utf-8")
    bare = importlib.util.find_spec("torchvision") is None
    if family in STOCK and (own or bare):
        processor = PictureProcessor.from_pretrained(source)
        processor.family = family
        return processor
    try:
        processor = AutoProcessor.from_pretrained(source)
    except (ImportError, ValueError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise ValueError(f"{source}: no processor ({reason}); pip install torchvision") from error
    if not hasattr(processor, "image_processor"):
        raise ValueError(f"{source}: a processor without pictures; pip install torchvision")
    return processor


def _without_tiles(source: str | Path) -> Idefics3Processor:
    """SmolVLM's and Idefics3's: pictures by pillow, each whole, in one square of tokens.

    Their image processor for pillow asks for no torchvision, but transformers' own way to it
    does. In tiles a photograph would have up to seventeen times as many tokens.
    """
    images = Idefics3ImageProcessorPil.from_pretrained(source, do_image_splitting=False)
    images.size = images.max_image_size
    told, _ = Idefics3Processor.get_processor_dict(source)
    kept = {name: told[name] for name in ("image_seq_len", "chat_template") if name in told}
    return Idefics3Processor(images, AutoTokenizer.from_pretrained(source), **kept)
