"""unsloth as a backend: asked for in time, called by its public names, else one clear error.

A stand-in with unsloth's signatures (2026.10) takes its place: the real one wants a GPU. Its
collator alone is tried here, on a CPU that passes itself off as a card.
"""

import ast
import inspect
import json
import os
import subprocess
import sys
from importlib.metadata import Distribution
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch
from families import tiny
from packaging.requirements import Requirement
from paths import ROOT
from tiny_tapo import TINY
from trl import SFTConfig, SFTTrainer

from finer1_lite import models
from finer1_lite.generation import Student
from finer1_lite.students import unsloth

UNSLOTH = TINY.with_(backend="unsloth", quantize="nf4", lora_vision=True)
CUDA = SimpleNamespace(type="cuda")
WHEEL = os.environ.get("PLAIN_UNSLOTH", "")  # a folder that holds the real one
real = pytest.mark.skipif(not WHEEL, reason="of the real unsloth; PLAIN_UNSLOTH=FOLDER")
AS_A_CARD = """
import sys, types, torch
facts = types.SimpleNamespace(name="none", major=9, minor=0, total_memory=2**36)
facts.multi_processor_count, facts.gcnArchName = 132, ""
card = dict(is_available=True, device_count=1, current_device=0, get_device_capability=(9, 0))
card |= dict(get_device_properties=facts, get_device_name="none", is_bf16_supported=True)
card |= dict(current_stream=types.SimpleNamespace(cuda_stream=0), _lazy_init=None)
for name, answer in card.items():
    setattr(torch.cuda, name, lambda *_, answer=answer, **__: answer)
torch._C._cuda_getCurrentRawStream = lambda index: 0
import unsloth

torch.cuda.is_available = lambda: False
unsloth.FastVisionModel.for_training = lambda model: None
sys.path[:0] = sys.argv[1:]
from families import tiny
from trl.trainer.sft_trainer import DataCollatorForVisionLanguageModeling
from finer1_lite import paperbirds
from finer1_lite.presets import Preset
from finer1_lite.sft import chain_rows
from finer1_lite.students.unsloth import collator

birds = paperbirds.collection(paperbirds.make_world(0))
chains = {p.id: "a bird " * (1 + i % 5) for i, p in enumerate(birds.train)}
rows = list(chain_rows(birds, chains, pixels=64 * 64).select(range(4)))
for family in ("qwen2_vl", "qwen2_5_vl", "qwen3_vl"):
    student = tiny(family)
    theirs = DataCollatorForVisionLanguageModeling(student.processor, completion_only_loss=True)
    made = collator(student, Preset.lab().with_(backend="unsloth")), theirs
    ours, theirs = (one([dict(row) for row in rows]) for one in made)
    for name in ("input_ids", "labels"):  # they pad on different sides
        parts = [[r[m.bool()].tolist() for r, m in zip(b[name], b["attention_mask"])]
                 for b in (ours, theirs)]
        assert parts[0] == parts[1] and len({len(row) for row in parts[0]}) > 1, (family, name)
    assert torch.equal(ours["pixel_values"], theirs["pixel_values"])
assert not torch.backends.cuda.cudnn_sdp_enabled()  # unsloth came first
print("the same")
"""


class FastVisionModel:
    """Remembers how it was called."""

    calls: dict = {}

    @classmethod
    def from_pretrained(
        cls,
        model_name="",
        max_seq_length=2048,
        dtype=None,
        load_in_4bit=True,
        load_in_8bit=False,
        load_in_16bit=False,
        full_finetuning=False,
        token=None,
        device_map="sequential",
        trust_remote_code=False,
        use_gradient_checkpointing="unsloth",
        use_exact_model_name=False,
        fast_inference=False,
    ):
        cls.calls["load"] = {k: v for k, v in locals().items() if k != "cls"}
        return tiny("qwen2_5_vl").model, object()

    @classmethod
    def get_peft_model(
        cls,
        model,
        r=16,
        target_modules=None,
        lora_alpha=16,
        lora_dropout=0.0,
        bias="none",
        finetune_vision_layers=True,
        finetune_language_layers=True,
        finetune_attention_modules=True,
        finetune_mlp_modules=True,
        use_gradient_checkpointing="unsloth",
        random_state=3407,
    ):
        cls.calls["adapt"] = {k: v for k, v in locals().items() if k not in ("cls", "model")}
        return model

    @classmethod
    def for_training(cls, model):
        cls.calls["train"] = model


class UnslothVisionDataCollator:
    def __init__(
        self,
        model,
        processor,
        max_seq_length=None,
        formatting_func=None,
        resize="min",
        ignore_index=-100,
        train_on_responses_only=False,
        completion_only_loss=True,
    ):
        self.settings = {"resize": resize, "completion_only_loss": completion_only_loss}


@pytest.fixture
def stand_in(monkeypatch):
    """As if unsloth had been imported first."""
    root, trainer = ModuleType("unsloth"), ModuleType("unsloth.trainer")
    root.FastVisionModel = FastVisionModel
    trainer.UnslothVisionDataCollator = UnslothVisionDataCollator
    monkeypatch.setitem(sys.modules, "unsloth", root)
    monkeypatch.setitem(sys.modules, "unsloth.trainer", trainer)
    monkeypatch.setattr(FastVisionModel, "calls", {})
    return FastVisionModel


def test_loading_and_adapters_go_through_unsloth(stand_in, tmp_path, monkeypatch):
    student = tiny("qwen2_5_vl")
    for part in (student.model, student.processor):
        part.save_pretrained(tmp_path)
    monkeypatch.setattr(models, "choose_device", lambda: CUDA)
    monkeypatch.setattr(models, "choose_dtype", lambda device: torch.bfloat16)
    loaded = models.load_student(tmp_path, UNSLOTH)
    models.add_adapter(loaded, UNSLOTH, seed=7)
    load, adapt = stand_in.calls["load"], stand_in.calls["adapt"]
    assert load["model_name"] == str(tmp_path) and load["dtype"] == torch.bfloat16
    assert load["load_in_4bit"] and load["use_exact_model_name"]
    assert not load["trust_remote_code"] and not load["fast_inference"]
    assert adapt["r"] == TINY.lora_rank and adapt["lora_alpha"] == 2 * TINY.lora_rank
    assert adapt["finetune_vision_layers"] and adapt["random_state"] == 7
    assert loaded.processor.image_processor.size["longest_edge"] == UNSLOTH.pixels


def test_stage_one_hands_rows_to_its_collator(stand_in):
    student = Student(object(), object())
    collator = unsloth.collator(student, UNSLOTH)
    assert collator.settings == {"resize": "max", "completion_only_loss": True}
    assert stand_in.calls["train"] is student.model
    assert set(unsloth.sft_options(UNSLOTH)) <= set(inspect.signature(SFTConfig).parameters)
    assert "data_collator" in inspect.signature(SFTTrainer.__init__).parameters


def test_plain_transformers_is_left_alone(stand_in):
    assert unsloth.sft_options(TINY) == {} and unsloth.collator(None, TINY) is None
    unsloth.import_first(["tapo.steps=3", "backend=transformers"])
    assert not stand_in.calls


def test_it_wants_a_gpu(stand_in):
    with pytest.raises(ValueError, match="CUDA GPU, this is cpu; .*backend=transformers"):
        unsloth.load("base", UNSLOTH, torch.device("cpu"), torch.float32)


def test_one_that_is_not_installed_is_said_so():
    if unsloth.importlib.util.find_spec("unsloth"):
        pytest.skip("unsloth is installed here")
    with pytest.raises(ValueError, match="not installed; pip install unsloth, or --set backend="):
        unsloth.unsloth()


def fake_package(folder, body) -> dict[str, str]:
    (folder / "unsloth").mkdir()
    (folder / "unsloth" / "__init__.py").write_text(body)
    return os.environ | {"PYTHONPATH": f"{folder}{os.pathsep}{ROOT}"}


def test_an_import_that_comes_too_late_is_refused(tmp_path):
    code = "import transformers; from finer1_lite.students import unsloth; unsloth.unsloth()"
    done = subprocess.run(
        [sys.executable, "-c", code], env=fake_package(tmp_path, ""), capture_output=True, text=True
    )
    assert "transformers had been imported before unsloth" in done.stderr


def test_the_command_line_imports_it_before_anything_that_it_rewrites(tmp_path):
    body = (
        "import json, pathlib, sys\n"
        "early = [m for m in ('torch', 'transformers', 'trl', 'peft') if m in sys.modules]\n"
        "pathlib.Path(__file__).with_name('early.json').write_text(json.dumps(early))\n"
        "raise NotImplementedError('no GPU here')\n"
    )
    command = [
        sys.executable,
        "-m",
        "finer1_lite",
        "lab",
        "--out",
        str(tmp_path / "runs"),
        "--set",
        "backend=unsloth",
    ]
    done = subprocess.run(command, env=fake_package(tmp_path, body), capture_output=True, text=True)
    assert done.returncode == 2 and not (tmp_path / "runs").exists()
    assert "cannot run here (no GPU here)" in done.stderr and "Traceback" not in done.stderr
    assert json.loads((tmp_path / "unsloth" / "early.json").read_text()) == []


# --- the real one, read and not imported: that would want a GPU ----------------------------------


def defaults(path: str, owner: str, function: str) -> dict[str, object]:
    """Parameters of a function in a file of the wheel -> default, `inspect._empty` without one."""
    tree = ast.parse((Path(WHEEL) / path).read_text("utf-8"))
    classes = [n for n in ast.walk(tree) if isinstance(n, ast.ClassDef) and n.name == owner]
    (found,) = (n for n in classes[0].body if getattr(n, "name", "") == function)
    names = [one.arg for one in found.args.args]
    values = [inspect.Parameter.empty] * (len(names) - len(found.args.defaults))
    for value in found.args.defaults:
        try:
            values.append(ast.literal_eval(value))
        except ValueError:  # a name
            values.append(ast.unparse(value))
    return dict(zip(names, values, strict=True))


@real
@pytest.mark.parametrize(
    ("path", "owner", "function", "ours"),
    [
        ("unsloth/models/loader.py", "FastModel", "from_pretrained", FastVisionModel),
        ("unsloth/models/vision.py", "FastBaseModel", "get_peft_model", FastVisionModel),
        ("unsloth/models/vision.py", "FastBaseModel", "for_training", FastVisionModel),
        (
            "unsloth_zoo/vision_utils.py",
            "UnslothVisionDataCollator",
            "__init__",
            UnslothVisionDataCollator,
        ),
    ],
)
def test_the_stand_in_has_the_signatures_of_the_real_one(path, owner, function, ours):
    real = defaults(path, owner, function)
    for name, parameter in inspect.signature(getattr(ours, function)).parameters.items():
        if name != "self":
            assert name in real, name
            own = parameter.default
            assert name == "device_map" or not own or own == real[name], name


@real
@pytest.mark.parametrize("package", ["unsloth", "unsloth_zoo"])
def test_the_stack_is_within_what_it_allows(package):
    (found,) = Distribution.discover(name=package, path=[WHEEL])
    lines = (ROOT / "requirements.txt").read_text("utf-8").splitlines()
    pins = dict(line.split("==") for line in lines if "==" in line)
    wanted = [Requirement(text) for text in found.requires]
    shared = [r for r in wanted if r.name in pins and not (r.marker and "extra" in str(r.marker))]
    assert {"torch", "transformers", "trl", "peft", "datasets"} <= {r.name for r in shared}
    assert [str(r) for r in shared if not r.specifier.contains(pins[r.name])] == []
    gpu = (ROOT / "requirements-gpu.txt").read_text("utf-8")
    assert f"{package}=={found.version}" in gpu


@real
@pytest.mark.slow(minutes=1)
def test_its_own_collator_makes_of_our_rows_what_trls_does(tmp_path):
    paths = [str(ROOT), str(ROOT / "tests" / "helpers")]
    call = [sys.executable, "-c", AS_A_CARD, *paths]
    env = os.environ | {"PYTHONPATH": WHEEL, "UNSLOTH_COMPILE_DISABLE": "1"}
    done = subprocess.run(call, cwd=tmp_path, env=env, capture_output=True, text=True)
    assert done.stdout.endswith("the same\n"), done.stderr[-2000:]
