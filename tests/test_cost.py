"""What a step costs: pictures encoded, scoring passes, memory of the log-softmax."""

from collections import Counter

import pytest
import torch
from sized import peak_of
from tiny_tapo import TINY, Stage, adapted, gradients, stir, weights

from finer1_lite import generation, logprobs, losses, tapo
from finer1_lite.tapo import train_tapo

# --- vision tower --------------------------------------------------------------------


@pytest.fixture
def encoded(fresh):
    """Every picture that the vision tower is shown: its pixels."""
    seen = []

    def spy(module, args, kwargs):
        pixels = args[0] if args else kwargs["hidden_states"]
        sizes = kwargs["grid_thw"].prod(-1).tolist()
        seen.extend(part.numpy().tobytes() for part in pixels.split(sizes))

    hook = fresh.model.model.visual.register_forward_pre_hook(spy, with_kwargs=True)
    yield seen
    hook.remove()


CASES = {  # settings -> pictures encoded for a group in a whole step
    "tapo": ({}, 3),
    "both branches": (dict(negative_grad=True), 3),
    "own pictures": (dict(scored_on="own"), 3),
    "own, both branches": (dict(scored_on="own", negative_grad=True), 3),
    "small micro-batches": (dict(scored_on="own", micro_batch=1), 3),
    "dapo": (dict(recipe="dapo"), 1),
    "papo": (dict(recipe="papo"), 2),
}


@pytest.mark.parametrize("case", CASES)
def test_each_picture_is_encoded_once_a_step(case, fresh, birds, spread, encoded, tmp_path):
    """However many answers, branches and micro-batches: scoring encodes nothing anew."""
    settings, expected = CASES[case]
    settings = dict(settings)
    preset = TINY.with_(tapo__groups=1).recipe(settings.pop("recipe", "tapo"))
    preset = preset.with_(**{f"tapo__{k}": v for k, v in settings.items()})
    stage = Stage(fresh, birds, tmp_path, preset)
    stage.model.eval()
    stage.sample(0)
    answered = Counter(encoded)
    encoded.clear()
    stage.prepare()
    stage.learn()
    assert set(answered.values()) == {1} and not encoded
    assert len(answered) == expected <= 3


def test_a_second_update_encodes_nothing_anew(fresh, birds, spread, encoded, tmp_path):
    seen = []
    preset = TINY.with_(tapo__updates=2, tapo__steps=4)
    train_tapo(
        adapted(fresh, preset),
        birds,
        preset,
        0,
        tmp_path,
        on_step=lambda step, log: seen.append(len(encoded)),
    )
    assert 0 < seen[0] == seen[1] < seen[2] == seen[3]


# --- several updates share a batch of rollouts ---------------------------------------


@pytest.fixture
def passes(monkeypatch):
    """Each scoring pass: the number of rows and whether gradient flowed."""
    calls, real = [], logprobs.log_probs

    def spy(model, batch, tokens, *rest, **more):
        calls.append((len(tokens), torch.is_grad_enabled()))
        return real(model, batch, tokens, *rest, **more)

    monkeypatch.setattr(logprobs, "log_probs", spy)
    return calls


@pytest.fixture
def lost(monkeypatch):
    """Each call of the loss: its tensors and what it returned."""
    calls, real = [], losses.tapo_loss

    def spy(*tensors, **settings):
        out = real(*tensors, **settings)
        calls.append((*tensors, out))
        return out

    monkeypatch.setattr(losses, "tapo_loss", spy)
    return calls


def test_with_one_update_nothing_is_scored_to_know_the_old_policy(
    fresh, birds, spread, passes, lost, tmp_path
):
    """The old policy is the policy: its log-probabilities are those just computed."""
    gradients(Stage(fresh, birds, tmp_path))
    assert passes == [(8, True), (8, False)]  # own picture, negative; no third pass
    ((logps, old, *_, loss),) = lost
    assert torch.equal(logps, old) and not old.requires_grad and loss.ratio_max == 1.0


def test_later_updates_measure_how_far_the_policy_has_moved(
    fresh, birds, spread, passes, lost, tmp_path
):
    preset = TINY.with_(
        tapo__updates=2, tapo__inter_class_weight=0.0, tapo__negative_entropy_weight=0.0
    )
    held = []

    def watch(step, log):
        held.append((stage.batch, weights(stage.model)))

    stage = Stage(fresh, birds, tmp_path, preset, steps=2, learning_rate=3e-2, on_step=watch)
    stir(stage.model)
    stage.train()
    (first, before), (second, after) = held
    assert first is second  # one batch of rollouts, each step with a group of its own
    assert passes == [(8, False), (4, True), (4, True)]
    one, two = lost
    assert torch.equal(torch.cat([one[1], two[1]]), first.old_logps)
    assert torch.equal(torch.cat([one[3], two[3]]), first.advantages)
    assert one[-1].ratio_max.item() == pytest.approx(1, abs=1e-5)
    ratios = (two[0] - two[1]).exp()[two[4].bool()]
    assert (ratios - 1).abs().median() > 1e-3
    assert any(not torch.equal(before[name], after[name]) for name in before)


def test_fewer_kept_groups_than_updates_leave_a_step_without_a_share(
    fresh, birds, tmp_path, spread, monkeypatch
):
    preset, real = TINY.with_(tapo__updates=2, tapo__steps=2), tapo.sample_groups

    def one_group(*args):
        kept, dropped = real(*args)
        return kept[:1], kept[1:] + dropped

    monkeypatch.setattr(tapo, "sample_groups", one_group)
    logs = []
    student = adapted(fresh, preset)
    train_tapo(student, birds, preset, 0, tmp_path, on_step=lambda step, log: logs.append(log))
    assert [(log["skipped"], log["grad_norm"] > 0) for log in logs] == [(1, False), (0, True)]


# --- log-softmax ---------------------------------------------------------------------

VOCABULARY = 151_936  # Qwen2.5-VL's


@pytest.mark.slow
def test_scoring_a_vocabulary_of_152k_takes_a_quarter_of_the_naive_memory():
    """Forward and backward of 1,024 tokens at once; and no more for more tokens."""
    head = torch.nn.Linear(64, VOCABULARY, bias=False).requires_grad_(False)
    hidden, tokens = torch.randn(1024, 64), torch.randint(VOCABULARY, (1024,))
    found = {}

    def naive(states, ids):
        return head(states).log_softmax(-1).gather(-1, ids[:, None])[:, 0]

    def ours(states, ids):
        return logprobs.token_scores(head, states, ids)

    def peak(score, count):
        states = hidden[:count].clone().requires_grad_()

        def run():
            found[score] = score(states, tokens[:count])
            found[score].sum().backward()

        size = peak_of(run)
        found[score] = (found[score].detach(), states.grad)
        return size

    whole = peak(naive, 1024)
    assert whole >= 3 * 1024 * VOCABULARY * 4  # logits, log-softmax, its gradient
    chunked = peak(ours, 1024)
    assert chunked <= whole / 4
    for left, right in zip(found[ours], found[naive], strict=True):
        torch.testing.assert_close(left, right, rtol=1e-4, atol=1e-5)
    assert peak(ours, 256) >= 0.95 * chunked


@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_a_few_tokens_at_a_time_score_as_all_at_once(monkeypatch, temperature, dtype):
    """Values and gradients, against log_softmax written out."""
    torch.manual_seed(0)
    head = torch.nn.Linear(16, 50).to(dtype)
    states = torch.randn(10, 16, dtype=dtype, requires_grad=True)
    tokens = torch.randint(50, (10,))
    wide = head(states).to(torch.promote_types(dtype, torch.float32))
    whole = (wide / temperature).log_softmax(-1)
    theirs = whole.gather(-1, tokens[:, None])[:, 0]
    monkeypatch.setattr(logprobs, "LOGITS_AT_ONCE", 3 * 50)
    ours = logprobs.token_scores(head, states, tokens, temperature)
    parameters = [states, head.weight, head.bias]
    weights = torch.arange(1.0, 11.0)
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
    grads = [torch.autograd.grad((x * weights).sum(), parameters) for x in (ours, theirs)]
    loose = dtype == torch.bfloat16  # chunks are summed up in the head's own dtype
    close = dict(rtol=5e-2, atol=2e-2) if loose else dict(rtol=1e-4, atol=1e-4)
    for ours_grad, theirs_grad in zip(*grads, strict=True):
        torch.testing.assert_close(ours_grad, theirs_grad, **close)


def test_the_head_never_sees_more_tokens_than_allowed_nor_any_padding(
    fresh, birds, spread, tmp_path, monkeypatch
):
    stage = Stage(fresh, birds, tmp_path)
    stage.sample(0)
    for g in stage.kept:
        g.completion_mask[:, 5:] = 0
    stage.prepare()
    rows, head = [], generation.core_of(stage.model).lm_head
    monkeypatch.setattr(logprobs, "LOGITS_AT_ONCE", 7 * head.weight.shape[0])
    hook = head.register_forward_hook(lambda module, args, out: rows.append(len(out)))
    with torch.no_grad():
        stage.logps()
    hook.remove()
    assert max(rows) == 7 and sum(rows) == int(stage.batch.completion_mask.sum()) == 40
