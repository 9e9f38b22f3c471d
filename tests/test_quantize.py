"""The QLoRA path at lab size, on the CPU: 4-bit weights, adapters, one TAPO step."""

import pytest
import torch
from tiny_tapo import TINY, Stage, every_other, weights

from finer1_lite import generation, logprobs, models, rewards

bnb = pytest.importorskip("bitsandbytes")
NF4 = TINY.with_(quantize="nf4")


@pytest.fixture(scope="module")
def folder(student, tmp_path_factory):
    path = tmp_path_factory.mktemp("student")
    student.model.save_pretrained(path)
    student.processor.save_pretrained(path)
    return path


@pytest.fixture
def quantized(folder):
    return models.load_student(folder, NF4)


def test_language_layers_are_in_four_bits_and_the_vision_tower_is_not(quantized):
    small = {n for n, m in quantized.model.named_modules() if isinstance(m, bnb.nn.Linear4bit)}
    assert len(small) == 4 * 7 and all("language_model" in name for name in small)
    for name, weight in quantized.model.named_parameters():
        if isinstance(weight, bnb.nn.Params4bit):
            assert weight.quant_type == "nf4" and weight.quant_state.nested, name
        else:
            assert weight.dtype == torch.float32, name


def test_its_log_probs_are_near_those_of_the_plain_student(quantized, student, birds):
    question, picture = ["Describe the bird."], [birds.test[0].image()]
    scores = []
    for one in (student, quantized):
        batch = generation.encode_prompts(one.model, one.processor, question, picture)
        tokens = torch.arange(300, 308)[None]
        with torch.no_grad():
            scores.append(
                logprobs.log_probs(one.model, batch, tokens, torch.ones_like(tokens), [0])
            )
    gap = (scores[0] - scores[1]).abs().max()
    assert 0 < gap < 0.5  # rounded to 4 bits: near, but not the same


def test_a_tapo_step_moves_the_adapters_and_nothing_else(quantized, birds, tmp_path, monkeypatch):
    monkeypatch.setattr(rewards, "accuracy_reward", every_other())
    adapted = models.add_adapter(quantized, NF4, seed=0)
    assert {p.dtype for p in adapted.model.parameters() if p.requires_grad} == {torch.float32}
    base, adapters = weights(adapted.model, False), weights(adapted.model, True)
    stage = Stage(adapted, birds, tmp_path, NF4, steps=2)
    stage.train()
    assert stage.log()["skipped"] == 0
    for name, weight in weights(adapted.model, False).items():
        assert torch.equal(weight, base[name]), name
    for name, weight in weights(adapted.model, True).items():
        assert not torch.equal(weight, adapters[name]), name


def test_a_saved_adapter_is_put_on_four_bits_again(quantized, folder, birds, tmp_path):
    adapted = models.add_adapter(quantized, NF4, seed=0)
    with torch.no_grad():
        for name, weight in adapted.model.named_parameters():
            if "lora_B" in name:
                weight.fill_(0.05)
    models.save_adapter(adapted, tmp_path)
    again = models.load_adapter(models.load_student(folder, NF4), tmp_path)
    said = []
    for one in (adapted, again):
        batch = generation.encode_prompts(
            one.model, one.processor, ["Describe the bird."], [birds.test[0].image()]
        )
        said.append(
            generation.generate(one.model, one.processor, batch, max_new_tokens=8).completions
        )
    assert said[0] == said[1]


def test_gradients_flow_through_four_bit_layers_after_rollouts(quantized, birds):
    """On CPUs with AVX512-BF16, bitsandbytes packs weights that run without gradient, and
    packed weights give none afterwards: an adapter would learn without its lower layers."""
    adapted = models.add_adapter(quantized, NF4, seed=0)
    batch = generation.encode_prompts(
        adapted.model, adapted.processor, ["Describe the bird."], [birds.test[0].image()]
    )
    adapted.model.eval()
    out = generation.generate(adapted.model, adapted.processor, batch, max_new_tokens=4)
    logprobs.log_probs(
        adapted.model, batch, out.completion_ids, out.completion_mask, [0]
    ).sum().backward()
    got = {n: p.grad for n, p in adapted.model.named_parameters() if "lora_B" in n}
    plain = []
    for name, module in adapted.model.named_modules():
        if isinstance(module, bnb.nn.Linear4bit):
            weight = bnb.functional.dequantize_4bit(module.weight.data, module.weight.quant_state)
            linear = torch.nn.Linear(*weight.shape[::-1], bias=module.bias is not None)
            linear.weight, linear.bias = torch.nn.Parameter(weight, False), module.bias
            plain.append((name, linear))
    for name, linear in plain:
        parent, _, leaf = name.rpartition(".")
        setattr(adapted.model.get_submodule(parent), leaf, linear)
    adapted.model.zero_grad()
    logprobs.log_probs(
        adapted.model, batch, out.completion_ids, out.completion_mask, [0]
    ).sum().backward()
    for name, weight in adapted.model.named_parameters():
        if name in got:
            torch.testing.assert_close(got[name], weight.grad, rtol=1e-3, atol=1e-4)
