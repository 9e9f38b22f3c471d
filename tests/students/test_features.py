"""Features that are kept: looked at once, the same as looked at again, never of a moving tower."""

import gc
import weakref
from types import SimpleNamespace

import pytest
import torch
from families import FAMILIES, OTHERS, save, tiny
from PIL import Image
from prompted import asked, plain_inputs
from tiny_tapo import TINY, Stage
from transformers import LlavaConfig

from finer1_lite import cot, evaluate, generation, models, sft
from finer1_lite.species import Collection
from finer1_lite.students import features
from finer1_lite.students.families import tower_of

KEEPING = TINY.with_(keep_features=True)


def loaded(tmp_path, preset, name="smolvlm"):
    """A tiny base as a command loads it, and the pictures that its tower was shown."""
    folder = tmp_path / "base"
    if not folder.exists():
        save(tiny(name), folder)
    student, shown = models.load_student(folder, preset), []

    def look(module, given, named):
        pixels = given[0] if given else named["pixel_values"]
        shown.extend(pixels if pixels.ndim == 4 else [pixels])  # Qwen's: patches of one picture

    tower_of(student.model).register_forward_pre_hook(look, with_kwargs=True)
    return student, shown


def student_of(tmp_path, preset, name="smolvlm"):
    """The same with a fresh adapter."""
    student, shown = loaded(tmp_path, preset, name)
    return models.add_adapter(student, preset, seed=0), shown


@pytest.mark.parametrize("name", ["smolvlm", "qwen2_5_vl"])
def test_both_stages_and_answers_look_at_each_picture_once(name, birds, world, tmp_path):
    student, shown = student_of(tmp_path, KEEPING, name)
    few = Collection("bird", birds.species, birds.train[:8], birds.test[:4], birds.distance)
    chains = cot.make_chains(few, cot.oracle(world), seed=0)
    preset = KEEPING.with_(sft__steps=3, sft__batch=8, sft__micro_batch=4, tapo__keep="all")
    student = sft.train_sft(
        student, sft.chain_rows(few, chains, preset.sft), preset, 0, tmp_path / "sft"
    )
    Stage(student, birds, tmp_path / "tapo", preset, steps=3).train()
    for _ in range(2):
        list(evaluate.ask(student, *asked(birds, 4), max_new_tokens=4))
    assert len(shown) > 8
    assert len({picture.numpy().tobytes() for picture in shown}) == len(shown)


@pytest.mark.parametrize("name", [*FAMILIES, *OTHERS])
def test_what_is_kept_is_what_would_be_seen(name, birds):
    """In every family, DeepStack's too, and every picture once."""
    plain, kept, calls = tiny(name), tiny(name), []
    count = 3
    features.keep_features(kept.model)
    tower_of(kept.model).register_forward_hook(lambda *_: calls.append(1))
    inputs = plain_inputs(plain, *asked(birds, count))
    for _ in range(2):
        logits = [one.model(**inputs).logits for one in (kept, plain)]
        torch.testing.assert_close(*logits, rtol=0, atol=1e-5)
        both = [
            generation.encode_prompts(one.model, one.processor, *asked(birds, count))
            for one in (kept, plain)
        ]
        for ours, theirs in zip(*(batch.image_features for batch in both), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)
    assert len(calls) == count


def test_a_plain_base_looks_once_and_its_memory_is_free_when_it_goes(birds, tmp_path):
    """An evaluation asks it before any adapter has frozen it, and loads another one then."""
    student, shown = loaded(tmp_path, KEEPING, "qwen2_5_vl")
    for _ in range(2):
        list(evaluate.ask(student, *asked(birds, 3), max_new_tokens=2))
    assert len(shown) == 3
    still = weakref.ref(student.model)
    gc.collect()
    gc.disable()
    try:
        del student
        assert still() is None
    finally:
        gc.enable()


def test_what_a_trainer_passes_along_is_no_picture(birds, tmp_path):
    student, shown = loaded(tmp_path, KEEPING, "qwen2_5_vl")
    inputs = plain_inputs(student, *asked(birds, 2))
    alone = student.model(**inputs).logits
    among = student.model(**inputs, num_items_in_batch=torch.tensor(7)).logits
    assert torch.equal(alone, among) and len(shown) == 2


def test_a_tower_with_adapters_looks_each_time(birds, tmp_path):
    student, shown = student_of(tmp_path, KEEPING.with_(lora_vision=True))
    for _ in range(2):
        generation.encode_prompts(student.model, student.processor, *asked(birds, 3))
    assert len(shown) == 6


def test_pictures_that_differ_by_a_pixel_are_two(tmp_path):
    student, shown = student_of(tmp_path, KEEPING)
    pictures = [Image.new("RGB", (64, 64), (9, 9, 9)) for _ in range(2)]
    pictures[1].putpixel((5, 5), (200, 9, 9))
    generation.encode_prompts(student.model, student.processor, ["What is it?"] * 2, pictures)
    assert len(shown) == 2


def test_a_family_that_nobody_tried_is_left_as_it_is_and_it_is_said(caplog):
    model = SimpleNamespace(config=LlavaConfig())
    with caplog.at_level("INFO", "finer1_lite"):
        features.keep_features(model)
    assert "features are not kept: it is none of a Qwen2-VL" in caplog.text
    assert not hasattr(model, "model")
