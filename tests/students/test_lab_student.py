"""The lab student: its words, its size, its files."""

import json
from pathlib import Path

import pytest
import torch
from transformers import Qwen2_5_VLForConditionalGeneration

from finer1_lite import paperbirds, prompts
from finer1_lite.models import load_processor
from finer1_lite.students import lab_student
from finer1_lite.students.lab_student import TAGS, PictureProcessor, asset_folder

ASSET = asset_folder(0)
needs_asset = pytest.mark.skipif(
    not (ASSET / "record.json").exists(), reason=f"no shipped student in {ASSET} yet"
)
WORDS = [
    *(word for mark, values in paperbirds.MARKS.items() for word in (mark, *values)),
    *(*paperbirds.EPITHETS, *paperbirds.GENERA),
]
TEXTS = [
    prompts.question("think", "bird", ["talen finch", "ruvok wren"]),
    paperbirds.describe({mark: values[-1] for mark, values in paperbirds.MARKS.items()}),
    "  two  spaces, a tab\tand\r\nline ends \n\n",
    "Löffler, Ōtaka, Дрозд, 白鷺, \u200bzero width, e\u0301 in two parts",
    "🐦‍⬛ 🦉🇨🇭",
    "".join(map(chr, range(32, 127))),
    "a.b , c 's do n't ?",  # a tokenizer that "cleans up" would close these gaps
]


@pytest.fixture(scope="module")
def tokenizer(student):
    return student.processor.tokenizer


@pytest.mark.parametrize("text", TEXTS)
def test_any_text_comes_back_as_it_was(tokenizer, text):
    ids = tokenizer(text).input_ids
    assert tokenizer.decode(ids) == text
    assert tokenizer.decode(ids, skip_special_tokens=True) == text


def test_decoding_keeps_the_tags_and_drops_the_special_tokens(tokenizer):
    chain = prompts.chain("crown red", ["a wren", "b wren"], ["fits", "has crown blue"], "a wren")
    ids = tokenizer(f"<|im_start|>{chain}<|im_end|>").input_ids
    assert tokenizer.decode(ids, skip_special_tokens=True) == chain


@pytest.mark.parametrize("text", [*TAGS, *(f" {word}" for word in WORDS), *paperbirds.EPITHETS])
def test_words_and_tags_are_single_tokens(tokenizer, text):
    assert len(tokenizer(text).input_ids) == 1


def test_a_name_is_two_tokens_wherever_it_stands(tokenizer):
    """After a tag there is no space, in a list there is one: both must be cheap to say."""
    for genus in paperbirds.GENERA:
        assert len(tokenizer(f"<answer>talen {genus}</answer>").input_ids) == 4
        assert len(tokenizer(f", talen {genus}").input_ids) == 3


def test_it_is_the_real_class_with_two_to_four_million_parameters(student):
    assert type(student.model) is Qwen2_5_VLForConditionalGeneration
    assert 2e6 < sum(p.numel() for p in student.model.parameters()) < 4e6
    head, words = student.model.lm_head.weight, student.model.get_input_embeddings().weight
    assert head.data_ptr() == words.data_ptr()
    assert len(student.processor.tokenizer) <= len(words)


def test_random_weights_depend_on_torchs_seed_alone(tokenizer, student):
    torch.manual_seed(0)
    again = lab_student.make_model(tokenizer)
    for a, b in zip(student.model.parameters(), again.parameters(), strict=True):
        assert torch.equal(a, b)


def test_processor_comes_back_from_a_folder(student, birds, tmp_path):
    student.processor.save_pretrained(tmp_path)
    loaded = load_processor(tmp_path, pixels=84 * 84)
    assert isinstance(loaded, PictureProcessor)
    chat = prompts.messages(prompts.question("answer", "bird"))
    batches = []
    for processor in (student.processor, loaded):
        text = processor.apply_chat_template(chat, add_generation_prompt=True, tokenize=False)
        images = [birds.test[0].image()]
        batches.append(processor(text=[text], images=images, return_tensors="pt"))
    assert batches[0].keys() == batches[1].keys()
    for key in batches[0]:
        assert torch.equal(batches[0][key], batches[1][key]), key


def test_a_saved_processor_names_stock_classes_and_older_folders_are_read(student, tmp_path):
    """They name PictureProcessor, which transformers does not know."""
    student.processor.save_pretrained(tmp_path)
    files = sorted(tmp_path.glob("*.json"))
    assert not [f for f in files if "Picture" in f.read_text(encoding="utf-8")]
    named = load_processor(tmp_path, family="qwen3_vl")
    named.save_pretrained(tmp_path / "qwen3")
    found = json.loads((tmp_path / "qwen3" / "processor_config.json").read_text())
    assert found["processor_class"] == "Qwen3VLProcessor"
    assert found["image_processor"]["image_processor_type"] == "Qwen2VLImageProcessor"
    for file in files:
        text = file.read_text(encoding="utf-8")
        file.write_text(text.replace("Qwen2_5_VLProcessor", "PictureProcessor"), encoding="utf-8")
    (tmp_path / "video_preprocessor_config.json").unlink()
    old = load_processor(tmp_path)
    assert isinstance(old, PictureProcessor)
    assert old.image_processor.size == student.processor.image_processor.size


def test_pixel_budget_reduces_a_picture(student, birds, tmp_path):
    student.processor.save_pretrained(tmp_path)
    picture = birds.test[0].image().resize((300, 200))
    for pixels in (84 * 84, 56 * 56):
        images = load_processor(tmp_path, pixels=pixels).image_processor([picture])
        _, high, wide = images["image_grid_thw"][0].tolist()
        assert 28 * 28 < 14 * 14 * high * wide <= pixels and wide > high


@needs_asset
def test_shipped_student_is_small_and_safe():
    files = [f for f in ASSET.rglob("*") if f.is_file()]
    assert sum(f.stat().st_size for f in files) <= 12 * 2**20
    assert any(f.suffix == ".safetensors" for f in files)
    allowed = {".safetensors", ".json", ".jinja", ".txt", ".md"}
    assert {f.suffix for f in files} <= allowed  # no pickle, nothing that runs


@needs_asset
def test_shipped_student_says_how_it_was_made_and_what_it_knows():
    record = json.loads((ASSET / "record.json").read_text(encoding="utf-8"))
    assert {"seed", "world_seed", "steps", "minutes", "probe"} <= record.keys()
    assert record["world_seed"] == 0 and record["steps"] > 0 and record["minutes"] > 0
    for half in ("seen", "unseen"):
        assert record["probe"][f"marks_{half}"] >= 0.95
        assert record["probe"][f"quiz_{half}"] >= 0.95


@needs_asset
def test_shipped_tokenizer_is_the_one_that_the_code_makes(tokenizer):
    """Words changed after the pretraining are words that the student never met."""
    shipped = PictureProcessor.from_pretrained(Path(ASSET)).tokenizer
    assert shipped.get_vocab() == tokenizer.get_vocab()
