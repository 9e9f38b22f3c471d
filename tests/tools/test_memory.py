"""The arithmetic of memory against what torch and bitsandbytes really hold."""

from dataclasses import replace
from math import prod
from types import SimpleNamespace

import pytest
import torch
from peft.tuners.lora import Linear
from sized import (
    SIZES,
    adapted,
    answers,
    peak_of,
    preset_of,
    prompts_of,
    recomputed,
    saved_bytes,
    tensors_of,
)

from finer1_lite import generation, logprobs, models, tapo
from finer1_lite.students import random_weights
from finer1_lite.tools import memory, plan
from finer1_lite.tools.memory import Load

bnb = pytest.importorskip("bitsandbytes")
CHUNK = 8 * 151_936  # logits at a time: fewer than at full size, so that layers matter
SLOW_SIZES = ["Qwen2.5-VL-tiny", "middle", pytest.param("one layer of 3B", marks=pytest.mark.slow)]


@pytest.fixture(scope="module", autouse=True)
def sizes():
    with pytest.MonkeyPatch.context() as patch:
        for name, numbers in SIZES.items():
            patch.setitem(random_weights.SIZES, name, numbers)
        yield


@pytest.fixture(autouse=True)
def as_on_a_card(monkeypatch):
    """PEFT asks whether CUDA's autocast is on, and copies inputs to float32 where it is not."""
    on = torch.is_autocast_enabled
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda device="cpu": on(device))


@pytest.fixture(scope="module")
def made():
    """Students by (size, quantize, dtype), each made once. Leave them as they are."""
    found = {}

    def make(name, quantize="nf4", dtype=torch.float32):
        key = (name, quantize, dtype)
        if key not in found:
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(models, "choose_dtype", lambda device: dtype)
                found[key] = adapted(preset_of(name, quantize=quantize))
        return found[key]

    return make


def load_of(student, rows, length, **changes) -> Load:
    """The load of answers to one picture, with the prompt as long as it is."""
    name = changes.pop("name", "tiny")
    preset = preset_of(
        name,
        max_new_tokens=length,
        tapo__groups=1,
        tapo__micro_batch=rows,
        tapo__anchor_rollouts=rows,
        tapo__positive_rollouts=0,
        tapo__inter_class_weight=0.0,
        tapo__negative_entropy_weight=0.0,
        **changes,
    )
    text = prompts_of(student).input_ids.shape[1] - 64
    return Load(memory.count(student, 4), preset, text)


# --- weights -------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["Qwen2.5-VL-tiny", "middle"])
def test_four_bit_bytes_are_those_of_bitsandbytes(made, name):
    held = {}
    layers = [m for m in made(name).model.modules() if isinstance(m, bnb.nn.Linear4bit)]
    for layer in layers:
        held |= tensors_of(layer)
    counted = memory.count(made(name)).weights
    both = counted["language layers, 4 bits"] + counted["quantisation constants"]
    assert both == sum(held.values()) and len(layers) % 7 == 0


@pytest.mark.parametrize("quantize", ["nf4", "none"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_meta_student_counts_as_the_real_one(made, quantize, dtype):
    real = memory.count(made("Qwen2.5-VL-tiny", quantize, dtype))
    preset = preset_of("Qwen2.5-VL-tiny", quantize=quantize)
    config = random_weights.find_config(preset.student)
    student = plan.meta_student(config, preset, dtype)
    assert memory.count(student) == real
    assert {p.device.type for p in student.model.parameters()} == {"meta"}


def test_all_weights_are_counted_once(made):
    model = made("Qwen2.5-VL-tiny", "none").model
    sizes = memory.count(made("Qwen2.5-VL-tiny", "none"))
    held = {
        p.untyped_storage().data_ptr(): p.untyped_storage().nbytes() for p in model.parameters()
    }
    assert sum(sizes.weights.values()) + sizes.adapter == sum(held.values())


def test_the_optimiser_holds_twice_the_adapter(made):
    student = made("Qwen2.5-VL-tiny")
    trained = [p for p in student.model.parameters() if p.requires_grad]
    copies = [torch.nn.Parameter(p.detach().clone()) for p in trained]
    for p in copies:
        p.grad = torch.ones_like(p)
    optimiser = torch.optim.AdamW(copies)
    optimiser.step()
    states = [t for state in optimiser.state.values() for t in state.values() if t.dim()]
    parts = load_of(student, 2, 4).resident()
    assert parts["optimiser (AdamW)"] == sum(t.nbytes for t in states)
    assert parts["adapter"] == sum(p.grad.nbytes for p in copies)


# --- key-value cache -----------------------------------------------------------------


@pytest.mark.parametrize("name", ["Qwen2.5-VL-tiny", "middle"])
def test_the_cache_of_the_rollouts_has_the_bytes_of_a_real_one(made, name, monkeypatch):
    student, caches, real = made(name), [], generation.prefill

    def spy(*args):
        caches.append(real(*args))
        return caches[-1]

    monkeypatch.setattr(generation, "prefill", spy)
    batch = prompts_of(student, 2)
    generation.generate(
        student.model,
        student.processor,
        batch,
        num_generations=3,
        max_new_tokens=5,
        temperature=1.0,
    )
    cache = caches[0][1]
    held = sum(t.nbytes for layer in cache.layers for t in (layer.keys, layer.values))
    tokens = 6 * (batch.input_ids.shape[1] + 5)
    assert held == tokens * memory.count(student).kv_token


# --- activations ---------------------------------------------------------------------


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("quantize", ["nf4", "none"])
@pytest.mark.parametrize("name", SLOW_SIZES)
def test_kept_activations_are_those_of_torch(
    made, name, quantize, dtype, checkpointing, monkeypatch
):
    """Within 5 %: float32 and 16-bit hidden states, 4-bit and plain layers, recomputed or not."""
    student, rows, length = made(name, quantize, dtype), 3, 24
    batch, (tokens, mask) = prompts_of(student), answers(rows, length)
    monkeypatch.setattr(logprobs, "LOGITS_AT_ONCE", CHUNK)
    with recomputed(student.model, checkpointing):
        real = saved_bytes(
            student.model,
            lambda: logprobs.log_probs(student.model, batch, tokens, mask, [0] * rows),
        )
    load = load_of(student, rows, length, name=name, quantize=quantize)
    assert load.kept(checkpointing) == pytest.approx(real, rel=0.05)


@pytest.mark.parametrize("micro_batch", [1, 3, 6, 8, 12, 24])
@pytest.mark.parametrize("scored_on", ["anchor", "own"])
def test_micro_batches_are_those_of_a_step_whatever_their_number(made, micro_batch, scored_on):
    """Three groups of 5 + 3: a slice across two groups holds more prompts, and fewer of each."""
    own = dict(tapo__groups=3, tapo__anchor_rollouts=5, tapo__positive_rollouts=3)
    own |= dict(tapo__micro_batch=micro_batch, tapo__scored_on=scored_on)
    preset = preset_of("Qwen2.5-VL-tiny", **own)
    found = Load(memory.count(made("Qwen2.5-VL-tiny")), preset)
    kept = [SimpleNamespace(prompts=SimpleNamespace(input_ids=range(3))) for _ in range(3)]
    rows = tapo.prompt_rows(kept, preset.tapo)[0]
    parts = [part.unique(return_counts=True)[1] for part in rows.split(micro_batch)]
    assert [sorted(part.values()) for part in found.micro_batches] == [
        sorted(part.tolist()) for part in parts
    ]
    assert found.micro_batch() == (micro_batch, max(len(part) for part in parts))
    sizes = [(len(part), found.prompt + int(part.max()) * preset.max_new_tokens) for part in parts]
    assert found.recomputed() == max(sizes, key=prod)


def test_kept_activations_of_the_lab_student(fresh):
    lab = models.add_adapter(fresh, preset_of("tiny"), seed=0)
    batch, (tokens, mask) = prompts_of(lab), answers(4, 40)
    real = saved_bytes(
        lab.model, lambda: logprobs.log_probs(lab.model, batch, tokens, mask, [0] * 4)
    )
    logits = 160 * lab.model.config.get_text_config().vocab_size * 4  # one chunk: kept
    assert load_of(lab, 4, 40).kept(False) + logits == pytest.approx(real, rel=0.05)


# --- peaks ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    "dtype",
    # two minutes and more on a CPU that has no instructions for it
    [torch.float32, pytest.param(torch.bfloat16, marks=pytest.mark.slow)],
)
@pytest.mark.parametrize("checkpointing", [False, True])
def test_the_update_peaks_where_the_plan_says(made, checkpointing, dtype, monkeypatch):
    """Without checkpointing logits make the peak here, with it a layer that is recomputed."""
    student, rows, length = made("middle", "nf4", dtype), 4, 96
    batch, (tokens, mask) = prompts_of(student), answers(rows, length)
    monkeypatch.setattr(logprobs, "LOGITS_AT_ONCE", CHUNK)

    def step():
        logprobs.log_probs(student.model, batch, tokens, mask, [0] * rows).sum().backward()

    for weight in student.model.parameters():  # as after a micro-batch before this one
        weight.grad = torch.zeros_like(weight) if weight.requires_grad else None
    with recomputed(student.model, checkpointing):
        real = peak_of(step)
    student.model.zero_grad()
    load = load_of(student, rows, length, name="middle", gradient_checkpointing=checkpointing)
    parts = load.update()
    there = load.resident() | {k: parts[k] for k in ("visual features", "gradients")}
    planned = sum(parts.values()) - sum(there.values())
    assert planned == pytest.approx(real, rel=0.1)


@pytest.mark.parametrize(
    ("quantize", "dtype"),
    [
        ("nf4", torch.float32),
        ("none", torch.float32),
        pytest.param("nf4", torch.bfloat16, marks=pytest.mark.slow),
    ],
)
def test_answering_peaks_where_the_plan_says(made, quantize, dtype):
    student, rows, length = made("middle", quantize, dtype), 8, 32

    def answer():
        generation.generate(
            student.model,
            student.processor,
            batch,
            num_generations=rows,
            max_new_tokens=length,
            temperature=1.0,
        )

    batch = prompts_of(student)
    real = peak_of(answer)
    load = load_of(student, rows, length, name="middle", quantize=quantize)
    parts = load.generate()
    planned = sum(parts.values()) - sum(load.resident().values()) - parts["visual features"]
    assert planned == pytest.approx(real, rel=0.1)


def test_a_copy_of_small_float32_weights_is_counted_where_no_gradient_flows(made, monkeypatch):
    """That of every matrix with an adapter; while tokens are written and the negative is scored."""
    load = load_of(made("middle", "none"), 8, 32, name="middle", quantize="none")
    wrapped = [m for m in made("middle", "none").model.modules() if isinstance(m, Linear)]
    copied = sum(m.base_layer.weight.nbytes for m in wrapped)
    negative = dict(tapo__inter_class_weight=0.1)
    rows = {"plain": {}, "negative": negative, "learns": negative | {"tapo__negative_grad": True}}
    loads = {name: replace(load, preset=load.preset.with_(**row)) for name, row in rows.items()}
    assert {n: "weights with adapters added" in x.score() for n, x in loads.items()} == {
        "plain": False,
        "negative": True,
        "learns": False,
    }
    assert load.generate()["weights with adapters added"] == copied > 2**20
    assert "weights with adapters added" not in load.update()
    monkeypatch.setattr(generation, "MERGED", copied - 1)
    assert "weights with adapters added" not in load.generate() | loads["negative"].score()
    four = load_of(made("middle"), 8, 32, name="middle")
    assert four.sizes.adapted == 0


def test_the_vision_tower_peaks_where_the_arithmetic_says(monkeypatch):
    """The true tower's widths, two blocks of them."""
    monkeypatch.setitem(
        random_weights.SIZES, "eye", ((151_936, 64, 1, 2, 2, 128), True, (2, 1280, 16, 3420, (1,)))
    )
    preset = preset_of("eye", quantize="none")
    student = adapted(preset)
    real = peak_of(lambda: prompts_of(student, 2))
    pixels = 2 * 4 * 64 * 1176 * 4  # made by numpy: not of torch's memory on a CPU
    planned = memory.count(student).vision(2, 64) - pixels
    assert planned == pytest.approx(real, rel=0.1)
