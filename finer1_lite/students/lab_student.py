"""The lab student: a real Qwen2.5-VL of three million parameters, with its own tokenizer.

Only the numbers are small. The class, the chat template and the tokens of the picture are
those of the full size, so that every later line of code serves both.
"""

import itertools
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    PreTrainedTokenizerFast,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2_5_VLProcessor,
    Qwen2VLImageProcessorPil,
)
from transformers.processing_utils import ProcessorMixin

from finer1_lite import paperbirds, prompts
from finer1_lite.data import drawing

SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
VISION = ("<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>")
TAGS = ("<think>", "</think>", "<answer>", "</answer>")

CHAT_TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% if m.content is string %}{{ m.content }}{% else %}{% for c in m.content %}"
    "{% if c.type == 'image' %}<|vision_start|><|image_pad|><|vision_end|>"
    "{% else %}{{ c.text }}{% endif %}{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


STOCK = {  # `model_type` -> the classes of transformers that a saved processor names
    "qwen2_vl": ("Qwen2VLProcessor", "Qwen2VLVideoProcessor"),
    "qwen2_5_vl": ("Qwen2_5_VLProcessor", "Qwen2VLVideoProcessor"),
    "qwen3_vl": ("Qwen3VLProcessor", "Qwen3VLVideoProcessor"),
    "qwen3_5": ("Qwen3VLProcessor", "Qwen3VLVideoProcessor"),
}
VIDEO = "video_preprocessor_config.json"


class PictureProcessor(Qwen2_5_VLProcessor):
    """Image processor and tokenizer only.

    The stock processor insists on a video processor, which needs torchvision; the lab
    shows no videos. What is saved names the stock classes of `family`, a key of `STOCK`, so
    that transformers loads it where there is torchvision, without this project.
    """

    family = "qwen2_5_vl"

    @classmethod
    def get_attributes(cls) -> list[str]:
        """The parts that are saved and loaded."""
        return ["image_processor", "tokenizer"]

    def __init__(
        self,
        image_processor: Any = None,
        tokenizer: Any = None,
        chat_template: str | None = None,
        **kwargs: Any,
    ) -> None:
        self.image_token = "<|image_pad|>"
        self.video_token = "<|video_pad|>"
        self.image_token_id = tokenizer.convert_tokens_to_ids(self.image_token)
        self.video_token_id = tokenizer.convert_tokens_to_ids(self.video_token)
        ProcessorMixin.__init__(self, image_processor, tokenizer, chat_template=chat_template)

    def save_pretrained(self, save_directory: str | Path, **kwargs: Any) -> None:
        """Write the folder of a stock processor; its videos would be cut as the pictures are.

        The videos have a file of their own, by which `models.load_processor` knows the folder.
        """
        super().save_pretrained(save_directory, **kwargs)
        folder = Path(save_directory)
        stock, video = STOCK[self.family]
        for path in (folder / "processor_config.json", folder / "tokenizer_config.json"):
            text = path.read_text(encoding="utf-8")
            text = text.replace(f'"{type(self).__name__}"', f'"{stock}"')
            path.write_text(text, encoding="utf-8")
        shared = ("patch_size", "merge_size", "temporal_patch_size", "image_mean", "image_std")
        settings = {name: getattr(self.image_processor, name) for name in shared}
        settings |= {"video_processor_type": video, "processor_class": stock}
        (folder / VIDEO).write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")


def make_tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level BPE in which every word of the lab is one token.

    Bytes are the fall-back, so any text can be written. The names of all worlds are in it:
    the tokenizer does not depend on the world seed.
    """
    words = [w for mark, values in paperbirds.MARKS.items() for w in (mark, *values)]
    words += [*paperbirds.EPITHETS, *paperbirds.GENERA, "bird", "fits", "the", "a", "has", "it"]
    texts = [f" {w}" for w in words] + words
    questions = [*prompts.QUESTIONS.values(), prompts.DESCRIBE, prompts.LIST]
    questions += [prompts.CAPTION, prompts.LOOKS]
    texts += [q.replace("{coarse}", "bird").replace("{name}", "") for q in questions]
    texts += [*prompts.SECTIONS, "Options:", "user\n", "assistant\n", "A photo of a", "This is a"]
    texts += ["picture", "A bird has", "Here is the", "sitting in a tree"]
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=4000,  # more than the words need: merging goes on until each is one token
        special_tokens=[*SPECIAL, *VISION],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    core.train_from_iterator(texts * 3, trainer)
    core.add_tokens(list(TAGS))  # not special: decoding a completion keeps them
    return wrap(core)


def learn_words(
    tokenizer: PreTrainedTokenizerFast, words: Iterable[str]
) -> PreTrainedTokenizerFast:
    """A tokenizer in which these words are single tokens, alone and after a space.

    Appends merges to the BPE, which cannot change how the words it knew are split. (Tokens
    added beside the BPE would be found inside longer words.)
    """
    state = json.loads(tokenizer.backend_tokenizer.to_str())
    vocabulary, merges = state["model"]["vocab"], state["model"]["merges"]
    for tag in state["added_tokens"]:  # outside the vocabulary they would be renumbered
        vocabulary.setdefault(tag["content"], tag["id"])
    ids = itertools.count(len(tokenizer))
    for form in sorted(form for word in words for form in (word, f" {word}")):
        pieces = Tokenizer.from_str(json.dumps(state)).encode(form).tokens
        while len(pieces) > 1:
            joined = pieces[0] + pieces[1]
            if joined not in vocabulary:
                vocabulary[joined] = next(ids)
            merges.append(pieces[:2])
            pieces = [joined, *pieces[2:]]
    return wrap(Tokenizer.from_str(json.dumps(state)))


def wrap(core: Tokenizer) -> PreTrainedTokenizerFast:
    """A tokenizer as transformers wants it: special tokens, chat template, padding left."""
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        additional_special_tokens=[SPECIAL[1], *VISION],
        chat_template=CHAT_TEMPLATE,
        padding_side="left",
    )


def make_processor(
    pixels: int = drawing.SIZE**2, tokenizer: PreTrainedTokenizerFast | None = None
) -> PictureProcessor:
    """A processor; `pixels` is the budget a picture is reduced to (its shape is kept)."""
    images = Qwen2VLImageProcessorPil(
        min_pixels=28 * 28, max_pixels=pixels, patch_size=14, merge_size=2
    )
    return PictureProcessor(images, tokenizer or make_tokenizer(), chat_template=CHAT_TEMPLATE)


def make_config(tokenizer: PreTrainedTokenizerFast) -> Qwen2_5_VLConfig:
    """4 vision layers of width 128 and 4 language layers of width 192."""
    ids = tokenizer.convert_tokens_to_ids
    text = dict(hidden_size=192, intermediate_size=512, num_hidden_layers=4)
    text |= dict(num_attention_heads=6, num_key_value_heads=2, max_position_embeddings=2048)
    text |= dict(vocab_size=-(-len(tokenizer) // 64) * 64, tie_word_embeddings=True)
    text |= dict(bos_token_id=None, eos_token_id=ids("<|im_end|>"))
    rope = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [4, 6, 6]}
    vision = dict(hidden_size=128, intermediate_size=256, depth=4, num_heads=4, patch_size=14)
    vision |= dict(out_hidden_size=192, window_size=112, fullatt_block_indexes=[1, 3])
    return Qwen2_5_VLConfig(
        text_config=text | dict(pad_token_id=ids("<|endoftext|>"), rope_parameters=rope),
        vision_config=vision,
        image_token_id=ids("<|image_pad|>"),
        video_token_id=ids("<|video_pad|>"),
        vision_start_token_id=ids("<|vision_start|>"),
        vision_end_token_id=ids("<|vision_end|>"),
        tie_word_embeddings=True,
    )


def make_model(tokenizer: PreTrainedTokenizerFast) -> Qwen2_5_VLForConditionalGeneration:
    """Random weights; seed torch before the call."""
    return Qwen2_5_VLForConditionalGeneration(make_config(tokenizer))


def asset_folder(world_seed: int, root: Path | None = None) -> Path:
    """Where the pretrained weights of a world lie: shipped in `assets/` for world 0."""
    root = root or Path(__file__).parents[2] / "assets"
    return root / f"lab-student-world{world_seed}"
