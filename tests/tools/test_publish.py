"""An adapter becomes a plain model, which transformers loads without this project."""

import importlib.util
import json
import os
import subprocess
import sys

import pytest
import torch
from families import FAMILIES, tiny
from prompted import asked, plain_inputs
from tiny_tapo import TINY, stir
from transformers import AutoModelForImageTextToText, AutoTokenizer, GenerationConfig

from finer1_lite import evaluate, models, prompts
from finer1_lite.__main__ import main
from finer1_lite.students.card import read_card, resolved
from finer1_lite.students.lab_student import STOCK, asset_folder
from finer1_lite.tools import publish

SHIPPED = asset_folder(0).parent / "adapters-world0" / "tapo"


def trained(name, folder, preset=TINY):
    """A base and an adapter with weights of its own, in two folders."""
    student = tiny(name)
    for part in (student.model, student.processor):
        part.save_pretrained(folder / "base")
    adapted = models.add_adapter(models.load_student(folder / "base", preset), preset, seed=0)
    stir(adapted.model)
    models.save_adapter(adapted, folder / "trained")
    return adapted


def logits(student, model, birds):
    with torch.no_grad():
        return model.eval()(**plain_inputs(student, *asked(birds, 2))).logits


# --- merge ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("lora_vision", [False, True])
def test_a_merged_model_says_what_the_adapter_says(name, lora_vision, birds, tmp_path):
    adapted = trained(name, tmp_path, TINY.with_(lora_vision=lora_vision, pixels=64 * 64))
    GenerationConfig(max_new_tokens=7).save_pretrained(tmp_path / "base")
    out = publish.merge(tmp_path / "trained", tmp_path / "plain", str(tmp_path / "base"))
    assert sorted(f.name for f in out.iterdir()) == [
        "chat_template.jinja",
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "processor_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "video_preprocessor_config.json",
    ]
    plain = AutoModelForImageTextToText.from_pretrained(out)
    assert not hasattr(plain, "peft_config") and plain.generation_config.max_new_tokens == 7
    torch.testing.assert_close(
        logits(adapted, plain, birds), logits(adapted, adapted.model, birds), rtol=0, atol=1e-4
    )
    assert AutoTokenizer.from_pretrained(out).padding_side == "left"
    assert models.load_processor(out).image_processor.size["longest_edge"] == 64 * 64
    assert not [f for f in out.glob("*.json") if str(tmp_path) in f.read_text(encoding="utf-8")]
    stock, video = STOCK[name]
    for file in (
        "processor_config.json",
        "tokenizer_config.json",
        "video_preprocessor_config.json",
    ):
        assert json.loads((out / file).read_text())["processor_class"] == stock, file
    assert (
        json.loads((out / "video_preprocessor_config.json").read_text())["video_processor_type"]
        == video
    )


def test_the_shipped_adapter_merges_from_the_command_line(birds, tmp_path, capsys):
    """Its base is saved in float16: in float32 the sum is exact, in float16 it is rounded."""
    assert main(["merge", str(SHIPPED), str(tmp_path / "exact"), "--dtype", "float32"]) == 0
    assert main(["merge", str(SHIPPED), str(tmp_path / "short")]) == 0
    assert f"model: {tmp_path / 'short'}" in capsys.readouterr().out
    adapted = models.load_adapter(models.load_student(asset_folder(0), TINY), SHIPPED)
    expected = logits(adapted, adapted.model, birds).log_softmax(-1)
    gaps = []
    for name, kept in (("exact", torch.float32), ("short", torch.float16)):
        plain = AutoModelForImageTextToText.from_pretrained(tmp_path / name)
        assert plain.dtype == kept
        gap = logits(adapted, plain.float(), birds).log_softmax(-1) - expected
        gaps.append(gap.abs().max().item())
    assert gaps[0] < 1e-4 < gaps[1] < 0.1
    given, kept = read_card(SHIPPED), read_card(tmp_path / "short")
    assert kept.classes == given.classes and kept.settings["quantize"] == "none"
    assert resolved(kept.base, tmp_path / "short") == resolved(given.base, SHIPPED)
    assert "A merged model" in (tmp_path / "short" / "README.md").read_text("utf-8")


def test_an_adapter_of_four_bits_merges_into_the_base_itself(birds, tmp_path):
    pytest.importorskip("bitsandbytes")
    adapted = trained("qwen2_5_vl", tmp_path, TINY.with_(quantize="nf4"))
    out = publish.merge(tmp_path / "trained", tmp_path / "plain", str(tmp_path / "base"))
    plain = AutoModelForImageTextToText.from_pretrained(out)
    assert plain.dtype == torch.float32 and not hasattr(plain.config, "quantization_config")
    base = models.load_student(tmp_path / "base", TINY)
    on_base = models.load_adapter(base, tmp_path / "trained")
    ours = logits(adapted, plain, birds)
    torch.testing.assert_close(ours, logits(adapted, on_base.model, birds), rtol=0, atol=1e-4)
    assert (ours - logits(adapted, adapted.model, birds)).abs().max() > 1e-3  # the rounding


def test_merge_names_every_fault_and_writes_nothing(tmp_path, caplog):
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "mine.txt").write_text("mine")
    (tmp_path / "new.part").mkdir()
    assert main(["merge", str(tmp_path / "no"), str(tmp_path / "new")]) == 2
    assert "new.part: is there; remove it" in caplog.text
    (tmp_path / "new.part").rmdir()  # and it still was there
    assert main(["merge", str(tmp_path / "no"), str(tmp_path / "there")]) == 2
    assert "no: is no folder" in caplog.text and "there: is there already" in caplog.text
    assert [f.name for f in tmp_path.rglob("*")] == ["there", "mine.txt"]


def test_a_merge_that_fails_leaves_nothing(tmp_path):
    trained("qwen2_vl", tmp_path)
    with pytest.raises(ValueError, match="trained does not fit this base; .*size mismatch"):
        publish.merge(tmp_path / "trained", tmp_path / "plain", str(asset_folder(0)))
    with pytest.raises(ValueError, match="no model can be read"):
        publish.merge(tmp_path / "trained", tmp_path / "plain", str(tmp_path / "nowhere"))
    assert {f.name for f in tmp_path.iterdir()} == {"base", "trained"}


def test_what_is_no_adapter_is_said_before_anything_is_read(tmp_path, caplog):
    assert main(["merge", str(asset_folder(0)), str(tmp_path / "out"), "--base", "a/b"]) == 2
    assert "holds no adapter (adapter_config.json)" in caplog.text and not any(tmp_path.iterdir())


# --- without this project ------------------------------------------------------------------

PARTS = """
import sys, torch, transformers
from transformers import AutoModelForImageTextToText, AutoTokenizer
model_folder, folder, adapter, picture, question = sys.argv[1:]
model = AutoModelForImageTextToText.from_pretrained(model_folder, dtype=torch.float32)
if adapter:
    from peft import PeftModel
    model = PeftModel.from_pretrained(model, adapter)
tokenizer = AutoTokenizer.from_pretrained(folder)
pictures = transformers.Qwen2VLImageProcessorPil.from_pretrained(folder)
seen = pictures([transformers.image_utils.load_image(picture)], return_tensors="pt")
ask = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": question}]}]
text = tokenizer.apply_chat_template(ask, tokenize=False, add_generation_prompt=True)
pads = int(seen["image_grid_thw"].prod()) // pictures.merge_size ** 2
ids = tokenizer(text.replace("<|image_pad|>", "<|image_pad|>" * pads), return_tensors="pt")
kinds = (ids["input_ids"] == model.config.image_token_id).long()
out = model.generate(**ids, **seen, mm_token_type_ids=kinds, max_new_tokens=24, do_sample=False)
print(tokenizer.decode(out[0, ids["input_ids"].shape[1]:], skip_special_tokens=True))
"""
WHOLE = """
import sys, torch
if sys.argv[4]:  # a torchvision for another torch: all but its compiled operators
    sys.path.insert(0, sys.argv[4])
    stand_in = torch.library.Library("torchvision", "DEF")
    for name in ("nms", "qnms"):
        stand_in.define(name + "(Tensor a, Tensor b, float c) -> Tensor")
import transformers
from transformers import AutoProcessor, pipeline
folder, picture, question = sys.argv[1:4]
assert type(AutoProcessor.from_pretrained(folder)).__name__ == "Qwen2_5_VLProcessor"
ask = pipeline("image-text-to-text", model=folder, dtype=torch.float32)
shown = transformers.image_utils.load_image(picture)  # by pillow: that torchvision cannot
content = [{"type": "image", "image": shown}, {"type": "text", "text": question}]
said = ask(text=[{"role": "user", "content": content}], max_new_tokens=24, do_sample=False)
print(said[0]["generated_text"][-1]["content"])
"""
TORCHVISION = os.environ.get("PLAIN_TORCHVISION", "")  # a folder that holds one


def elsewhere(code, *arguments, cwd):
    """What the code prints in a process that cannot import this project."""
    guard = "import importlib.util as u; assert u.find_spec('finer1_lite') is None\n"
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    command = [sys.executable, "-c", guard + code, *map(str, arguments)]
    done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout.rstrip("\n")


@pytest.fixture(scope="module")
def merged(tmp_path_factory, birds):
    """The shipped adapter and what it says: (merged folder, picture, question, completion)."""
    folder = tmp_path_factory.mktemp("elsewhere")
    out = publish.merge(SHIPPED, folder / "merged", dtype="float32")
    birds.test[0].image().save(folder / "bird.png")
    question = prompts.question("think", "bird")
    student = models.load_adapter(models.load_student(asset_folder(0), TINY), SHIPPED)
    pictures = [birds.test[0].image()]
    (said,) = evaluate.ask(student, [question], pictures, max_new_tokens=24)
    return out, folder / "bird.png", question, said.completions[0]


@pytest.mark.slow
def test_transformers_alone_says_what_the_adapter_says(merged):
    """Without torchvision: model, tokenizer and picture part, as a Qwen-VL's processor wants it."""
    out, picture, question, said = merged
    assert elsewhere(PARTS, out, out, "", picture, question, cwd=out.parent) == said


@pytest.mark.slow
def test_plain_peft_says_what_the_adapter_says(merged):
    out, picture, question, said = merged
    given = (asset_folder(0), SHIPPED, SHIPPED, picture, question)
    assert elsewhere(PARTS, *given, cwd=out.parent) == said


@pytest.mark.skipif(
    not (TORCHVISION or importlib.util.find_spec("torchvision")),
    reason="every Qwen-VL processor of transformers wants torchvision; PLAIN_TORCHVISION=FOLDER",
)
def test_a_plain_pipeline_says_what_the_adapter_says(merged):
    out, picture, question, said = merged
    assert elsewhere(WHOLE, out, picture, question, TORCHVISION, cwd=out.parent) == said
