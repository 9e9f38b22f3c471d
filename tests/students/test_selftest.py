"""The self-test of loaded models: right ones pass, each way of being wrong is named."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from families import FAMILIES, OTHERS, save, tiny
from tiny_tapo import TINY, stir

from finer1_lite import generation, logprobs, losses, models, prompts
from finer1_lite.generation import Student
from finer1_lite.students import selftest
from finer1_lite.tapo import train_tapo


@pytest.fixture
def adapted(fresh):
    return models.add_adapter(fresh, TINY, seed=0)


def wrap(monkeypatch, module, change):
    """Replace what a module returns."""
    forward = module.forward
    monkeypatch.setattr(module, "forward", lambda *a, **k: change(forward(*a, **k)))


# --- right models --------------------------------------------------------------------------


@pytest.mark.parametrize("name", FAMILIES)
def test_a_plain_student_passes_fresh_and_trained(name):
    student = models.add_adapter(tiny(name), TINY, seed=0)
    assert selftest.problems(student) == []
    stir(student.model)
    assert selftest.problems(student) == []


def test_four_bits_pass(fresh, tmp_path):
    pytest.importorskip("bitsandbytes")
    for part in (fresh.model, fresh.processor):
        part.save_pretrained(tmp_path)
    nf4 = TINY.with_(quantize="nf4")
    student = models.add_adapter(models.load_student(tmp_path, nf4), nf4, seed=0)
    assert selftest.problems(student) == []


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("quantize", ["none", "nf4"])
@pytest.mark.parametrize("name", [*FAMILIES, *OTHERS])
def test_a_card_keeps_within_the_tolerance(name, quantize, tmp_path, monkeypatch):
    """In the dtype that the card computes in."""
    preset = TINY.with_(quantize=quantize)
    monkeypatch.setattr(models, "choose_device", lambda: torch.device("cuda"))
    student = models.load_student(save(tiny(name), tmp_path), preset)
    assert student.device.type == "cuda"
    assert selftest.problems(models.add_adapter(student, preset, seed=0)) == []


def test_checkpointing_is_tried_in_both_modes(adapted, monkeypatch):
    adapted.model.gradient_checkpointing_enable({"use_reentrant": False})
    adapted.model.enable_input_require_grads()
    modes, score = [], logprobs.log_probs
    monkeypatch.setattr(
        logprobs, "log_probs", lambda m, *a, **k: modes.append(m.training) or score(m, *a, **k)
    )
    assert selftest.problems(adapted) == []
    assert set(modes) == {False, True}


def test_nothing_is_changed_by_it(adapted):
    before = {n: p.clone() for n, p in adapted.model.named_parameters()}
    adapted.model.train()
    state = torch.get_rng_state()
    selftest.require_trainable(adapted)
    assert adapted.model.training and torch.equal(torch.get_rng_state(), state)
    for name, weight in adapted.model.named_parameters():
        assert torch.equal(weight, before[name]) and weight.grad is None


# --- doctored models -----------------------------------------------------------------------


def test_hidden_states_instead_of_logits_are_found(adapted, monkeypatch):
    core = generation.core_of(adapted.model)

    def hidden(out):
        out.logits = out.logits[..., : core.config.get_text_config().hidden_size]
        return out

    wrap(monkeypatch, core, hidden)
    with pytest.raises(ValueError, match="forward pass gives .*192.* hidden states.*(?s:.*)--set"):
        selftest.require_trainable(adapted)


def test_a_head_that_hands_hidden_states_through_is_found(adapted, monkeypatch):
    core = generation.core_of(adapted.model)
    monkeypatch.setattr(core.lm_head, "forward", lambda hidden: hidden)
    assert "lm_head gives" in selftest.problems(adapted)[0]


def test_empty_logits_are_found(adapted, monkeypatch):
    core, empty = generation.core_of(adapted.model), SimpleNamespace(logits=None)
    wrap(monkeypatch, core, lambda out: empty)
    assert "where logits over a vocabulary" in selftest.problems(adapted)[0]


def test_log_probs_without_a_gradient_are_found(adapted, monkeypatch):
    language = generation.core_of(adapted.model).model.language_model

    def constant(out):
        out.last_hidden_state = out.last_hidden_state.detach()
        return out

    wrap(monkeypatch, language, constant)
    assert selftest.problems(adapted) == ["its log-probabilities carry no gradient"]


def test_a_detached_adapter_is_found_term_by_term(adapted, monkeypatch):
    """The log-probabilities have a gradient, from elsewhere: one layer's adapter has none."""
    layer = adapted.model.get_base_model().model.language_model.layers[2].mlp.up_proj
    wrap(monkeypatch, layer.lora_B["default"], torch.Tensor.detach)
    found = selftest.problems(adapted)
    assert len(found) == len(selftest.TERMS)
    for term, problem in zip(selftest.TERMS, found, strict=True):
        assert problem.startswith(f"the gradient of {term} does not reach 1 of 28")
        assert "layers.2.mlp.up_proj" in problem


@pytest.mark.parametrize("term", selftest.TERMS)
def test_a_term_whose_gradient_gets_lost_is_named(adapted, monkeypatch, term):
    real = losses.tapo_loss

    def torn(*args, **settings):
        parts = real(*args, **settings)
        return replace(parts, **{term: getattr(parts, term).detach()})

    monkeypatch.setattr(losses, "tapo_loss", torn)
    (found,) = selftest.problems(adapted)
    assert found.startswith(f"the gradient of {term} does not reach 28 of 28")


def test_other_log_probs_are_found(adapted, monkeypatch):
    """A temperature somewhere in the rewritten head, or a picture that got lost."""

    def warmer(out):
        out.logits = out.logits / 0.8
        return out

    wrap(monkeypatch, generation.core_of(adapted.model), warmer)
    (found,) = selftest.problems(adapted)
    assert "differ from its own forward pass by" in found and "float32: 0.0001" in found


def test_an_adapter_loaded_as_frozen_is_found(adapted):
    adapted.model.requires_grad_(False)
    assert "carry no gradient" in selftest.problems(adapted)[0]


def test_stage_two_of_another_backend_begins_with_it(adapted, tmp_path):
    other = TINY.with_(backend="unsloth")
    models.prepare_for_stage_two(adapted, other)
    adapted.model.requires_grad_(False)
    models.prepare_for_stage_two(adapted, TINY)  # plain transformers: proven by the tests
    with pytest.raises(ValueError, match="--set backend=transformers"):
        train_tapo(adapted, None, other, 0, tmp_path)


# --- float16 -------------------------------------------------------------------------------


@pytest.fixture
def half(fresh):
    return Student(fresh.model.to(torch.float16), fresh.processor)


def test_a_model_that_fits_float16_is_fine(half):
    assert selftest.overflow(half) == ""


@pytest.mark.parametrize(
    "part, says",
    [
        ("model.language_model.layers.1.mlp.down_proj", "logits"),
        ("model.visual.merger.mlp.2", "features"),
    ],
)
def test_activations_beyond_float16_are_found(half, part, says):
    with torch.no_grad():
        half.model.get_submodule(part).weight.fill_(6e4)
    assert says in selftest.overflow(half)
    assert selftest.overflow(Student(half.model.float(), half.processor)) == ""


def test_the_picture_is_as_large_as_a_training_shows_and_the_prompt_is_its_own(half, monkeypatch):
    """Overflow depends on both: a thumbnail and a short question may pass where these do not."""
    seen, encode = [], selftest.generation.encode_prompts
    generate = selftest.generation.generate

    def spy(model, processor, questions, pictures):
        seen.append((questions, pictures[0].size))
        return encode(model, processor, questions, pictures)

    def counted(*args, max_new_tokens, **more):
        seen.append(max_new_tokens)
        return generate(*args, max_new_tokens=2, **more)

    monkeypatch.setattr(selftest.generation, "encode_prompts", spy)
    monkeypatch.setattr(selftest.generation, "generate", counted)
    assert selftest.overflow(half) == ""
    assert seen == [([prompts.question("think", "bird")], (84, 84)), 64]


def test_loading_falls_back_to_float32_and_says_so(student, tmp_path, monkeypatch, caplog):
    big = tiny("qwen2_5_vl")
    with torch.no_grad():
        big.model.model.language_model.layers[1].mlp.down_proj.weight.fill_(6e4)
    for name, one in (("well", student), ("big", big)):
        one.model.save_pretrained(tmp_path / name)
        one.processor.save_pretrained(tmp_path / name)
    monkeypatch.setattr(models, "choose_dtype", lambda device: torch.float16)
    with caplog.at_level("INFO", "finer1_lite"):
        assert models.load_student(tmp_path / "well", TINY).model.dtype == torch.float16
        assert "float32" not in caplog.text
        assert models.load_student(tmp_path / "big", TINY).model.dtype == torch.float32
    assert "dtype float32 after all: in float16 the logits" in caplog.text
