"""Features that are kept: looked at once, the same as looked at again, never of a moving tower."""

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


def student_of(tmp_path, preset):
    """A tiny student as a command loads it, and the pictures that its tower was shown."""
    folder = tmp_path / "base"
    if not folder.exists():
        save(tiny("smolvlm"), folder)
    student = models.add_adapter(models.load_student(folder, preset), preset, seed=0)
    shown = []
    tower = tower_of(generation.core_of(student.model))
    tower.register_forward_pre_hook(
        lambda _, args, kwargs: shown.extend(kwargs["pixel_values"]), with_kwargs=True
    )
    return student, shown


def test_both_stages_and_answers_look_at_each_picture_once(birds, world, tmp_path):
    student, shown = student_of(tmp_path, KEEPING)
    few = Collection("bird", birds.species, birds.train[:8], birds.test[:4], birds.distance)
    chains = cot.make_chains(few, cot.oracle(world), seed=0)
    preset = KEEPING.with_(sft__steps=3, sft__batch=8, sft__micro_batch=4, tapo__keep="all")
    student = sft.train_sft(
        student, sft.chain_rows(few, chains, preset.sft), preset, 0, tmp_path / "sft"
    )
    Stage(student, birds, tmp_path / "tapo", preset, steps=3).train()
    for _ in range(2):
        evaluate.ask(student, *asked(birds, 4), max_new_tokens=4)
    assert len(shown) > 8
    assert len({picture.numpy().tobytes() for picture in shown}) == len(shown)


@pytest.mark.parametrize("name", [*FAMILIES, *OTHERS])
def test_what_is_kept_is_what_would_be_seen(name, birds):
    """In every family, DeepStack's too, and every picture once."""
    plain, kept, calls = tiny(name), tiny(name), []
    features.keep_features(kept.model)
    tower_of(kept.model).register_forward_hook(lambda *_: calls.append(1))
    inputs = plain_inputs(plain, *asked(birds, 4))
    for _ in range(2):
        logits = [one.model(**inputs).logits for one in (kept, plain)]
        torch.testing.assert_close(*logits, rtol=0, atol=1e-4)
        four = [generation.encode_prompts(one.model, one.processor, *asked(birds, 4))
                for one in (kept, plain)]  # fmt: skip
        for ours, theirs in zip(*(batch.image_features for batch in four), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)
    assert len(calls) == 4


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
