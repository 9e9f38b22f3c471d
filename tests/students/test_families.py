"""Qwen2-VL, Qwen2.5-VL and Qwen3-VL: our short cuts against each class's own forward pass."""

import pytest
import torch
from families import FAMILIES, tiny
from prompted import asked, plain_inputs, sample
from tiny_tapo import TINY, Stage, weights

from finer1_lite import generation, logprobs, models


@pytest.fixture(scope="module", params=FAMILIES)
def family(request):
    """A student of each class. Do not change it."""
    return tiny(request.param)


@pytest.fixture
def own(request, family):
    return tiny(family.model.config.model_type)


def encoded(student, birds, count=4):
    questions, pictures = asked(birds, count)
    return generation.encode_prompts(student.model, student.processor, questions, pictures)


def full_forward(student, birds, tokens, mask):
    """log pi of the answers by the model's own forward: ids and pixels in, logits out."""
    inputs = plain_inputs(student, *asked(birds, len(tokens)))
    zeros = torch.zeros_like(tokens)
    more = {"input_ids": tokens, "attention_mask": mask, "mm_token_type_ids": zeros}
    inputs |= {key: torch.cat([inputs[key], value], 1) for key, value in more.items()}
    logits = student.model(**inputs).logits[:, -tokens.shape[1] - 1 : -1]
    return logits.log_softmax(-1).gather(-1, tokens[..., None])[..., 0] * mask


def test_greedy_answers_are_those_of_the_model_itself(family, birds):
    inputs = plain_inputs(family, *asked(birds, 4))
    theirs = family.model.generate(
        **inputs,
        do_sample=False,
        max_new_tokens=12,
        use_cache=True,
        suppress_tokens=generation.suppress_tokens(family.processor),
    )[:, inputs["input_ids"].shape[1] :]
    batch = encoded(family, birds)
    ours = generation.generate(family.model, family.processor, batch, max_new_tokens=12)
    assert torch.equal(ours.completion_ids, theirs)
    assert len({tuple(row) for row in theirs.tolist()}) > 1  # the pictures matter


@pytest.mark.parametrize("checkpointing", [False, True])
def test_log_probs_are_those_of_the_models_own_forward(own, birds, checkpointing):
    batch = encoded(own, birds)
    out = sample(own, batch, num_generations=1)
    out.completion_mask[1, 3:] = 0
    if checkpointing:
        own.model.gradient_checkpointing_enable({"use_reentrant": False})
        own.model.train()
    ours = logprobs.log_probs(own.model, batch, out.completion_ids, out.completion_mask, range(4))
    own.model.eval()
    with torch.no_grad():
        theirs = full_forward(own, birds, out.completion_ids, out.completion_mask)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)


def test_pictures_travel_with_their_rows(family, birds):
    """Qwen3-VL's features for deeper layers must be cut and joined with the others."""
    batch = encoded(family, birds)
    out = sample(family, batch, num_generations=1)
    turned = generation.join([batch.rows([3, 1]), batch.rows([0, 2])])
    with torch.no_grad():
        first = logprobs.log_probs(
            family.model, batch, out.completion_ids, out.completion_mask, range(4)
        )
        again = logprobs.log_probs(
            family.model, turned, out.completion_ids, out.completion_mask, [2, 1, 3, 0]
        )
        other = logprobs.log_probs(
            family.model, batch, out.completion_ids, out.completion_mask, [3, 2, 1, 0]
        )
    torch.testing.assert_close(again, first, rtol=0, atol=1e-5)
    assert (other - first).abs().max() > 1e-3


def test_deepstack_reaches_the_language_layers(birds):
    """Without it Qwen3-VL's log-probs would differ: the test above could not pass by luck."""
    student = tiny("qwen3_vl")
    batch = encoded(student, birds)
    width = student.model.config.text_config.hidden_size
    assert {f.shape[1] for f in batch.image_features} == {3 * width}  # itself and two layers
    out = sample(student, batch, num_generations=1)
    flat = generation.PromptBatch(
        batch.input_ids,
        batch.attention_mask,
        batch.mm_token_type_ids,
        batch.position_ids,
        tuple(f[:, :width] for f in batch.image_features),
    )
    with torch.no_grad():
        a, b = (
            logprobs.log_probs(student.model, x, out.completion_ids, out.completion_mask, range(4))
            for x in (batch, flat)
        )
    assert (a - b).abs().max() > 1e-3


def test_gradients_are_those_of_the_models_own_loss(own, birds):
    """Every adapter gets the gradient that backpropagation through the plain forward gives."""
    adapted = models.add_adapter(own, TINY, seed=0)
    noise = torch.Generator().manual_seed(0)
    for name, p in adapted.model.named_parameters():
        if "lora_B" in name:
            p.data.normal_(std=0.05, generator=noise)
    batch = encoded(adapted, birds)
    out, found = sample(adapted, batch, num_generations=1), []
    for scored in (
        lambda: logprobs.log_probs(
            adapted.model, batch, out.completion_ids, out.completion_mask, range(4)
        ),
        lambda: full_forward(adapted, birds, out.completion_ids, out.completion_mask),
    ):
        adapted.model.zero_grad()
        scored().sum().backward()
        found.append(
            {n: p.grad.clone() for n, p in adapted.model.named_parameters() if p.requires_grad}
        )
    layers = adapted.model.config.text_config.num_hidden_layers
    assert len(found[0]) == layers * 7 * 2 and all("language_model" in n for n in found[0])
    for name, gradient in found[0].items():
        assert gradient.abs().max() > 0, name
        scale = found[1][name].abs().max().item()
        torch.testing.assert_close(gradient, found[1][name], rtol=0, atol=1e-4 * scale + 1e-6)


def test_a_tapo_step_runs(own, birds, tmp_path, spread):
    stage = Stage(own, birds, tmp_path, TINY, steps=1)
    before = weights(stage.model)
    stage.train()
    assert stage.log()["skipped"] == 0
    moved = [n for n, w in weights(stage.model).items() if not torch.equal(w, before[n])]
    assert all("lora_B" in n for n in moved) and moved


def test_no_token_of_pictures_or_videos_is_ever_sampled(family):
    tok = family.processor.tokenizer
    special = ("image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id")
    ids = {getattr(family.model.config, name, None) for name in special} - {None}
    banned = generation.suppress_tokens(family.processor)
    assert ids <= set(banned)
    assert tok.convert_tokens_to_ids("<|vision_pad|>") in banned
    assert tok.convert_tokens_to_ids("<|video_pad|>") in banned
    assert tok.eos_token_id not in banned and None not in banned
