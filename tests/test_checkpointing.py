"""Gradient checkpointing: the same loss and gradient, every adapter reached, less kept."""

import copy

import pytest
import torch
from families import save
from prompted import asked
from sized import answers, recomputed
from tiny_tapo import TINY, Stage, adapters, gathered, shorten, stir, update

from finer1_lite import cot, generation, logprobs, models, sft
from finer1_lite.generation import Student
from finer1_lite.presets import Preset
from finer1_lite.species import Collection
from finer1_lite.students import attention

PRESET = TINY.with_(tapo__negative_grad=True, tapo__scored_on="own", tapo__micro_batch=4)


@pytest.fixture(params=["none", "nf4"])
def adapted(request, student, tmp_path):
    """A student with adapters of their own numbers: plain, or on 4-bit weights."""
    mine = Student(copy.deepcopy(student.model), student.processor)
    if request.param == "nf4":
        pytest.importorskip("bitsandbytes")
        student.model.save_pretrained(tmp_path / "base")
        student.processor.save_pretrained(tmp_path / "base")
        mine = models.load_student(tmp_path / "base", TINY.with_(quantize="nf4"))
    attention.group_heads(mine.model)
    mine = models.add_adapter(mine, TINY.with_(quantize=request.param), seed=0)
    stir(mine.model)
    return mine


def held(student, birds, folder, **settings):
    """A stage with two groups of answers of different lengths."""
    stage = Stage(student, birds, folder, PRESET.with_(**settings))
    stage.sample(0)
    shorten(stage.kept)
    return stage


def saved_bytes(call) -> int:
    """What autograd keeps for the backward pass, a tensor saved twice counted once."""
    sizes = {}

    def pack(tensor):
        sizes[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        call()
    return sum(sizes.values())


def test_an_update_is_the_same_and_keeps_less(adapted, birds, spread, tmp_path):
    stage = held(adapted, birds, tmp_path)
    assert not generation.core_of(adapted.model).is_gradient_checkpointing
    parts, gradient = update(stage)
    kept = saved_bytes(lambda: stage.loss(stage.batch))

    recomputing = held(adapted, birds, tmp_path, gradient_checkpointing=True)
    assert [g.completions for g in recomputing.kept] == [g.completions for g in stage.kept]
    again, other = update(recomputing)
    assert again == pytest.approx(parts, abs=1e-6)
    torch.testing.assert_close(other, gradient, rtol=1e-5, atol=1e-6)
    assert gradient.abs().max() > 1e-3
    for name, p in adapted.model.named_parameters():
        assert p.requires_grad == ("lora_" in name)
        assert not p.requires_grad or p.grad.abs().max() > 0, name
    less = saved_bytes(lambda: recomputing.loss(stage.batch))
    assert less < 0.5 * kept
    assert not adapted.model.training


@pytest.mark.parametrize("settings", [{}, {"tapo__scored_on": "anchor", "tapo__micro_batch": 8}])
def test_a_prompt_runs_once_and_its_answers_without_padding(
    adapted, birds, spread, tmp_path, settings
):
    """The same gradient by rows of a prompt and all its answers, and by a row for each answer."""
    stage = held(adapted, birds, tmp_path, gradient_checkpointing=True, **settings)
    layer = generation.core_of(adapted.model).model.language_model.layers[0].mlp
    found, tokens = [], []
    for way in (logprobs.recomputed_hidden, logprobs.packed_hidden):
        seen = []
        hook = layer.register_forward_hook(
            lambda module, given, out, seen=seen: seen.append(given[0][..., 0].numel())
        )
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(logprobs, "packed_hidden", way)
            found.append(update(stage))
        hook.remove()
        tokens.append(sum(seen))
    (parts, gradient), (others, other) = found
    assert others == pytest.approx(parts, abs=1e-6)
    torch.testing.assert_close(other, gradient, rtol=1e-5, atol=1e-6)
    assert 2 * tokens[1] <= tokens[0]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_adapters_compute_in_the_16_bits_beside_them(
    student, birds, tmp_path, monkeypatch, checkpointing, dtype
):
    """Their weights, gradients and steps stay float32; so does the whole of a float32 model."""
    monkeypatch.setattr(models, "choose_dtype", lambda device: dtype)
    one = models.load_student(save(student, tmp_path / "base"), TINY)
    one = models.add_adapter(one, TINY, seed=0)
    stir(one.model)
    seen = set()
    for name, module in one.model.named_modules():
        if name.endswith("lora_A.default"):
            module.register_forward_hook(lambda module, given, out: seen.add(out.dtype))
    batch = generation.encode_prompts(one.model, one.processor, *asked(birds, 2))
    tokens, mask = answers(2, 6)
    with recomputed(one.model, checkpointing):
        logps = logprobs.log_probs(one.model, batch, tokens, mask, [0, 1])
        logps.sum().backward()
    assert seen == {dtype} and logps.dtype == torch.float32
    gradient = gathered(one.model)
    assert gradient.dtype == torch.float32 and gradient.isfinite().all()
    assert {p.dtype for p in adapters(one.model)} == {torch.float32}
    one.model.zero_grad()
    one.model.float()
    logprobs.log_probs(one.model, batch, tokens, mask, [0, 1]).sum().backward()
    alike = torch.cosine_similarity(gradient, gathered(one.model), dim=0)
    assert alike > (0.99 if dtype == torch.bfloat16 else 1 - 1e-6)


def test_answers_are_written_with_a_cache(fresh, birds, tmp_path, monkeypatch):
    """One token a pass: in training mode, checkpointed layers would drop the cache."""
    stage = Stage(fresh, birds, tmp_path, PRESET.with_(gradient_checkpointing=True))
    widths = []
    core = generation.core_of(stage.model)
    core.model.language_model.register_forward_pre_hook(
        lambda module, args, kwargs: widths.append(kwargs["inputs_embeds"].shape[1]),
        with_kwargs=True,
    )
    stage.sample(0)
    assert core.is_gradient_checkpointing and widths[1] == 1


def test_training_mode_changes_nothing_but_recomputing(fresh, birds, spread, tmp_path):
    """No layer draws: dropout is 0 in the adapters, the attention and everywhere else."""
    stage = held(fresh, birds, tmp_path)
    core, batch = generation.core_of(stage.model), stage.prepare()
    assert not [m for m in stage.model.modules() if isinstance(m, torch.nn.Dropout) and m.p]
    assert core.config.text_config.attention_dropout == 0
    scores = []
    for training in (False, True):
        stage.model.train(training)
        with torch.no_grad():
            scores.append(
                logprobs.log_probs(
                    stage.model,
                    batch.prompts,
                    batch.completion_ids,
                    batch.completion_mask,
                    batch.scored_on,
                )
            )
    assert torch.equal(scores[0], scores[1])


def test_presets_for_a_gpu_recompute_and_the_lab_does_not():
    names = ("lab", "lab_photos", "colab", "t4", "l4", "a100")
    assert [getattr(Preset, n)().gradient_checkpointing for n in names] == [False] * 2 + [True] * 4


def test_stage_1_is_the_same_and_reaches_every_adapter(adapted, birds, world, tmp_path):
    few = Collection("bird", birds.species, birds.train[:4], birds.test[:2], birds.distance)
    chains = cot.make_chains(few, cot.oracle(world), seed=0)
    start = [p.detach().clone() for p in adapters(adapted.model)]
    found, recomputed = [], []
    real = sft.SFTTrainer.training_step

    def spy(self, *args, **kwargs):
        loss = real(self, *args, **kwargs)
        recomputed.append(generation.core_of(self.model).is_gradient_checkpointing)
        found.append((float(loss), gathered(self.model).clone()))
        for name, p in self.model.named_parameters():
            assert not p.requires_grad or p.grad.abs().max() > 0, name
        return loss

    for on in (False, True):
        with torch.no_grad():
            for p, value in zip(adapters(adapted.model), start, strict=True):
                p.copy_(value)
        preset = TINY.with_(
            gradient_checkpointing=on, sft__steps=1, sft__batch=4, sft__micro_batch=4
        )
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sft.SFTTrainer, "training_step", spy)
            rows = sft.chain_rows(few, chains)
            sft.train_sft(adapted, rows, preset, 0, tmp_path / str(on))
    assert recomputed == [False, True]
    assert found[0][0] == pytest.approx(found[1][0], abs=1e-6)
    torch.testing.assert_close(found[1][1], found[0][1], rtol=1e-5, atol=1e-6)
