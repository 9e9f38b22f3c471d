"""An adapter becomes a plain model; only a model's files reach the hub, and only on request."""

import json
from types import SimpleNamespace

import huggingface_hub
import pytest
import torch
from families import FAMILIES, tiny
from prompted import asked, plain_inputs
from tiny_tapo import TINY, stir
from transformers import AutoModelForImageTextToText, AutoTokenizer, GenerationConfig

from finer1_lite import models
from finer1_lite.__main__ import main
from finer1_lite.runtime.files import DataError
from finer1_lite.students.lab_student import asset_folder
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
    ]
    plain = AutoModelForImageTextToText.from_pretrained(out)
    assert not hasattr(plain, "peft_config") and plain.generation_config.max_new_tokens == 7
    torch.testing.assert_close(
        logits(adapted, plain, birds), logits(adapted, adapted.model, birds), rtol=0, atol=1e-4
    )
    assert AutoTokenizer.from_pretrained(out).padding_side == "left"
    assert models.load_processor(out).image_processor.size["longest_edge"] == 64 * 64
    assert not [f for f in out.glob("*.json") if str(tmp_path) in f.read_text(encoding="utf-8")]


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
    assert main(["merge", str(tmp_path / "no"), str(tmp_path / "there")]) == 2
    assert "no: holds no adapter" in caplog.text and "there: is there already" in caplog.text
    assert [f.name for f in tmp_path.rglob("*")] == ["there", "mine.txt"]


def test_a_merge_that_fails_leaves_nothing(tmp_path):
    trained("qwen2_vl", tmp_path)
    with pytest.raises(ValueError, match="trained does not fit this base; .*size mismatch"):
        publish.merge(tmp_path / "trained", tmp_path / "plain", str(asset_folder(0)))
    with pytest.raises(ValueError, match="no model can be read"):
        publish.merge(tmp_path / "trained", tmp_path / "plain", str(tmp_path / "nowhere"))
    assert {f.name for f in tmp_path.iterdir()} == {"base", "trained"}


# --- push ----------------------------------------------------------------------------------

TOKEN = "hf_notARealTokenOnlyForThisTest"


class FakeHub:
    """What HfApi would have been asked."""

    calls: list = []
    public: tuple[str, ...] = ()

    def create_repo(self, name, **settings):
        self.calls.append(("create", name, settings))
        return SimpleNamespace(repo_id=f"me/{name}" if "/" not in name else name)

    def repo_info(self, name):
        return SimpleNamespace(private=name not in self.public)

    def upload_folder(self, **settings):
        self.calls.append(("upload", settings["repo_id"], settings))


@pytest.fixture
def hub(monkeypatch):
    monkeypatch.setattr(FakeHub, "calls", [])
    monkeypatch.setattr(huggingface_hub, "HfApi", FakeHub)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    return FakeHub


@pytest.fixture
def folder(tmp_path):
    student = tiny("qwen2_vl")
    models.save_adapter(models.add_adapter(student, TINY, seed=0), tmp_path / "trained")
    (tmp_path / "trained" / "log.jsonl").write_text("{}\n")
    return tmp_path / "trained"


def test_push_lists_the_files_and_uploads_those_alone(hub, folder, capsys, caplog):
    assert main(["push", str(folder), "me/birds", "--private", "--yes"]) == 0
    said = capsys.readouterr().out
    (_, name, how), (_, to, sent) = hub.calls
    assert (name, how["private"], to) == ("me/birds", True, "me/birds")
    listed = sorted(line.split()[0] for line in said.splitlines() if line.endswith("bytes"))
    assert (
        sent["allow_patterns"]
        == listed
        == [
            "adapter_config.json",
            "adapter_model.safetensors",
            "chat_template.jinja",
            "processor_config.json",
            "tokenizer.json",
            "tokenizer_config.json",
        ]
    )
    assert TOKEN not in said + caplog.text + repr(hub.calls)
    assert not [f for f in folder.iterdir() if TOKEN.encode() in f.read_bytes()]


@pytest.mark.parametrize("answer, sent", [("y", True), ("", False), ("no", False)])
def test_push_asks_first(hub, folder, monkeypatch, answer, sent):
    monkeypatch.setattr("sys.stdin", SimpleNamespace(isatty=lambda: True))
    monkeypatch.setattr("builtins.input", lambda question: answer)
    assert main(["push", str(folder), "me/birds"]) == (0 if sent else 2)
    assert bool(hub.calls) == sent


def test_push_without_anyone_to_ask_wants_yes(hub, folder, caplog):
    assert main(["push", str(folder), "me/birds"]) == 2
    assert "--yes" in caplog.text and not hub.calls


def test_push_refuses_whatever_is_no_models_file(hub, folder):
    for name, text in {
        "pytorch_model.bin": "x",
        "training_args.bin": "x",
        "records.jsonl": "{}",
        "bird.png": "x",
        "metrics.json": "{}",
        ".env": f"HF_TOKEN={TOKEN}",
        "model.py": "x",
        "optimizer.pt": "x",
        "model.safetensors": "a pickle under another name",
        "vocab.json": "no json",
    }.items():
        (folder / name).write_text(text)
    (folder / "checkpoints").mkdir()
    (folder / "merges.txt").symlink_to("/etc/hostname")
    with pytest.raises(DataError) as refused:
        publish.push(folder, "me/birds", yes=True)
    said = str(refused.value)
    for name in (
        "pytorch_model.bin",
        "training_args.bin",
        "records.jsonl",
        "bird.png",
        ".env",
        "metrics.json",
        "model.py",
        "optimizer.pt",
        "checkpoints",
        "merges.txt",
    ):
        assert f"{name}: is no model file" in said
    assert "model.safetensors: cannot be read" in said and "vocab.json: cannot be read" in said
    assert TOKEN not in said and not hub.calls


def test_push_refuses_a_folder_of_this_machine_as_the_base(hub, folder):
    path = folder / "adapter_config.json"
    config = json.loads(path.read_text()) | {"base_model_name_or_path": "/home/me"}
    path.write_text(json.dumps(config))
    with pytest.raises(DataError, match="names a folder of this machine"):
        publish.push(folder, "me/birds", yes=True)


def test_push_refuses_what_is_no_model(hub, tmp_path):
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(DataError, match="no model: config.json"):
        publish.push(tmp_path, "me/birds", yes=True)
    with pytest.raises(DataError, match="is no folder"):
        publish.push(tmp_path / "nowhere", "me/birds", yes=True)


def test_push_never_puts_private_weights_into_a_public_repository(hub, folder, monkeypatch):
    monkeypatch.setattr(hub, "public", ("me/birds",))
    with pytest.raises(ValueError, match="public: nothing was uploaded"):
        publish.push(folder, "me/birds", private=True, yes=True)
    assert [call[0] for call in hub.calls] == ["create"]


def test_push_wants_a_login_and_a_name(hub, folder, monkeypatch):
    with pytest.raises(ValueError, match="me/b/irds"):
        publish.push(folder, "me/b/irds", yes=True)
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: None)
    with pytest.raises(ValueError, match="HF_TOKEN"):
        publish.push(folder, "me/birds", yes=True)
    assert not hub.calls
