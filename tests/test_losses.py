"""The TAPO loss: closed forms, gradients where they belong, and extreme numbers."""

import json
import math

import pytest
import torch
from paths import SHARED

from finer1_lite.losses import LOSS_TYPES, k3, sampled_entropy, tapo_loss, token_mean

torch.set_num_threads(1)
GOLDEN = SHARED / "golden" / "tapo_golden.json"
PARTS = {
    "total": "total",
    "policy": "policy_loss",
    "inter_class_kl": "inter_class_kl",
    "anchor_entropy": "anchor_entropy",
    "negative_entropy": "negative_entropy",
}
OFF = {"inter_class_weight": 0.0, "anchor_entropy_weight": 0.0, "negative_entropy_weight": 0.0}


def batch(dtype=torch.float64, rows=6, length=5, seed=0):
    """logps, old_logps, negative_logps, advantages, mask; ratios on both sides of a clip."""
    noise = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return torch.randn(*shape, generator=noise, dtype=torch.float64)

    old = -draw(rows, length).abs() - 0.1
    logps, negative = old + 0.4 * draw(rows, length), old + draw(rows, length)
    mask = (torch.arange(length) < torch.arange(rows).unsqueeze(1) % length + 1).to(dtype)
    tensors = [logps, old, negative, draw(rows)]
    return *(tensor.to(dtype) for tensor in tensors), mask


def one_token(ratio, advantage, negative_shift=None, **options):
    """Loss and d policy / d logp of a single token with the given pi / pi_old."""
    old = torch.tensor([[-1.0]], dtype=torch.float64)
    logp = (old + math.log(ratio)).requires_grad_()
    negative = None if negative_shift is None else logp.detach() + negative_shift
    advantages = torch.tensor([advantage], dtype=torch.float64)
    loss = tapo_loss(logp, old, negative, advantages, torch.ones(1, 1), **options)
    (gradient,) = torch.autograd.grad(loss.policy, logp)
    return loss, gradient.item()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("negative_grad", [False, True])
def test_golden_cases(dtype, negative_grad):
    if not GOLDEN.exists():
        pytest.skip(f"{GOLDEN} is not here")
    close = {"rtol": 0, "atol": 1e-5, "check_dtype": False}
    for case in json.loads(GOLDEN.read_text(encoding="utf-8"))["cases"]:
        expected = {key: torch.tensor(value) for key, value in case["expected"].items()}
        keys = ("anchor_logps", "old_logps", "negative_logps", "mask")
        logps, old, negative, mask = (torch.tensor(case[key], dtype=dtype) for key in keys)
        logps.requires_grad_(), negative.requires_grad_()
        advantages = expected["advantages"].to(dtype)
        loss = tapo_loss(logps, old, negative, advantages, mask, negative_grad=negative_grad)
        loss.total.backward()
        for name, key in PARTS.items():
            torch.testing.assert_close(getattr(loss, name), expected[key], **close)
        branch = "both_branches" if negative_grad else "negative_detached"
        torch.testing.assert_close(logps.grad, expected[f"grad_anchor_{branch}"], **close)
        if negative_grad:
            wanted = expected["grad_negative_both_branches"]
            torch.testing.assert_close(negative.grad, wanted, **close)
        else:
            assert negative.grad is None


# ratio, advantage -> loss, gradient: the whole clip, written out.
@pytest.mark.parametrize(
    ("ratio", "advantage", "loss", "gradient", "stopped"),
    [
        (1.0, 2.0, -2.0, -2.0, 0),  # on policy the gradient is -A
        (1.2, 1.0, -1.2, -1.2, 0),
        (1.5, 1.0, -1.28, 0.0, 1),  # good enough: clipped from above
        (0.5, 1.0, -0.5, -0.5, 0),  # a good token that became rare still learns
        (0.5, -1.0, 0.8, 0.0, 1),  # rare enough: clipped from below
        (1.5, -1.0, 1.5, 1.5, 0),
        (2.9, -1.0, 2.9, 2.9, 0),
        (5.0, -2.0, 6.0, 0.0, 1),  # dual clip: capped at 3 |A|
        (5.0, 0.0, 0.0, 0.0, 0),
    ],
)
def test_every_region_of_the_clip(ratio, advantage, loss, gradient, stopped):
    got, slope = one_token(ratio, advantage)
    assert got.policy.item() == pytest.approx(loss)
    assert slope == pytest.approx(gradient)
    assert got.clip_share.item() == stopped
    assert got.ratio_max.item() == pytest.approx(ratio)


def test_the_clips_can_be_moved_and_the_dual_clip_switched_off():
    assert one_token(1.5, 1.0, clip_high=0.6)[0].policy.item() == pytest.approx(-1.5)
    assert one_token(0.5, -1.0, clip_low=0.6)[0].policy.item() == pytest.approx(0.5)
    assert one_token(5.0, -1.0, clip_dual=math.inf)[1] == pytest.approx(5.0)
    assert one_token(5.0, 0.0, clip_dual=math.inf)[1] == 0.0


def test_closed_form_of_the_total():
    got, _ = one_token(1.0, 2.0, negative_shift=math.log(2.0))  # logp -1, logp_neg -1 + ln 2
    divergence = 2.0 - math.log(2.0) - 1.0
    assert got.inter_class_kl.item() == pytest.approx(divergence)
    assert got.anchor_entropy.item() == pytest.approx(1.0)
    assert got.negative_entropy.item() == pytest.approx(1.0 - math.log(2.0))
    total = -2.0 - 0.01 * divergence + 0.03 + 0.03 * (1.0 - math.log(2.0))
    assert got.total.item() == pytest.approx(total)
    alone, _ = one_token(1.0, 2.0)
    assert alone.total.item() == pytest.approx(-2.0 + 0.03)
    assert alone.inter_class_kl.item() == alone.negative_entropy.item() == 0.0


@pytest.mark.parametrize("negative_grad", [False, True])
def test_gradients_equal_finite_differences(negative_grad):
    logps, old, negative, advantages, mask = batch()

    def total(anchor, other):
        loss = tapo_loss(anchor, old, other, advantages, mask, negative_grad=negative_grad)
        return loss.total

    logps.requires_grad_(), negative.requires_grad_(negative_grad)
    assert torch.autograd.gradcheck(total, (logps, negative), eps=1e-6, atol=1e-8)


def test_only_the_tensors_of_the_option_get_a_gradient():
    logps, old, negative, advantages, mask = batch()
    for tensor in (logps, old, negative, advantages):
        tensor.requires_grad_()
    tapo_loss(logps, old, negative, advantages, mask).total.backward()
    assert logps.grad[mask == 0].abs().sum() == 0 and logps.grad[mask == 1].abs().min() > 0
    assert old.grad is None and negative.grad is None and advantages.grad is None
    tapo_loss(logps, old, negative, advantages, mask, negative_grad=True).total.backward()
    assert negative.grad[mask == 0].abs().sum() == 0
    assert negative.grad[mask == 1].abs().min() > 0
    assert old.grad is None and advantages.grad is None


def test_k3_near_zero_against_the_naive_form():
    """exp(d) - d - 1 in float32 is all rounding at d = 1e-4; d * d / 2 is the truth."""
    logps, d = torch.zeros(1), torch.tensor([1e-4])
    naive = torch.exp(d) - d - 1
    assert abs(naive.item() / 5e-9 - 1) > 0.5
    assert k3(logps, d).item() == pytest.approx(5e-9, rel=1e-2)


def test_k3_estimates_the_divergence_and_pushes_with_one_minus_the_ratio():
    logits = 0.5 * torch.randn(2, 50, generator=torch.Generator().manual_seed(1)).double()
    pi, other = logits.log_softmax(dim=1)
    exact = (pi.exp() * (pi - other)).sum()
    torch.testing.assert_close((pi.exp() * k3(pi, other)).sum(), exact)
    printed = (pi.exp() * k3(other, pi)).sum()  # pi / pi_neg, on samples of pi
    assert (printed - exact).abs() > 1e-3
    token = pi.detach().requires_grad_()
    k3(token, other).sum().backward()
    torch.testing.assert_close(token.grad, 1 - (other - pi).exp())


def test_the_sampled_entropy_has_no_gradient_on_average():
    logits = torch.linspace(-2, 2, 50, dtype=torch.float64, requires_grad=True)
    logps = logits.log_softmax(dim=0)
    weights = logps.detach().exp()  # every token, as often as the policy samples it
    (gradient,) = torch.autograd.grad(-(weights * logps).sum(), logits, retain_graph=True)
    assert gradient.abs().max() < 1e-12
    (gradient,) = torch.autograd.grad(-(logps.exp() * logps).sum(), logits)
    assert gradient.abs().max() > 1e-2
    mask = torch.tensor([[1.0, 0.0]])
    assert sampled_entropy(torch.tensor([[-2.0, -9.0]]), mask).item() == 2.0


def test_micro_batches_add_up_to_the_whole_batch():
    tensors = batch(rows=7)
    whole_leaf, leaf = tensors[0].clone().requires_grad_(), tensors[0].clone().requires_grad_()
    whole = tapo_loss(whole_leaf, *tensors[1:])
    whole.total.backward()
    sums = dict.fromkeys([*PARTS, "clip_share"], 0.0)
    unweighted = 0.0
    count = tensors[-1].sum()
    for rows in torch.arange(7).split(3):
        part = [tensor[rows] for tensor in (leaf, *tensors[1:])]
        loss = tapo_loss(*part, token_count=count)
        loss.total.backward()
        sums = {name: sums[name] + getattr(loss, name).item() for name in sums}
        unweighted += tapo_loss(*part).total.item() / 3
    for name, value in sums.items():
        assert value == pytest.approx(getattr(whole, name).item(), abs=1e-12)
    torch.testing.assert_close(leaf.grad, whole_leaf.grad)
    assert abs(unweighted - whole.total.item()) > 1e-3  # the mean of means is another number
    number = tapo_loss(*tensors, token_count=float(count)).total
    assert number.item() == pytest.approx(whole.total.item())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("advantage", [-2.0, 0.0, 2.0])
def test_extreme_log_probabilities_stay_finite(dtype, advantage):
    corners = torch.tensor([0.0, -1e-4, -50.0, -1e4], dtype=dtype)
    grid = torch.cartesian_prod(corners, corners, corners).T.unsqueeze(1)  # (3, 1, 64)
    logps, old, negative = (tensor.clone().requires_grad_() for tensor in grid)
    scale, mask = torch.tensor([advantage], dtype=dtype), torch.ones(1, 64, dtype=dtype)
    loss = tapo_loss(logps, old, negative, scale, mask, negative_grad=True)
    loss.total.backward()
    assert loss.total.dtype == torch.float32 and logps.grad.dtype == dtype
    assert all(torch.isfinite(getattr(loss, name)) for name in [*PARTS, "ratio_max"])
    assert torch.isfinite(logps.grad).all() and torch.isfinite(negative.grad).all()
    assert loss.inter_class_kl <= 10.0


def test_half_precision_is_widened_first():
    tensors = batch(dtype=torch.bfloat16)
    wide = tapo_loss(*(tensor.double() for tensor in tensors))
    assert tapo_loss(*tensors).total.item() == pytest.approx(wide.total.item(), abs=1e-6)


@pytest.mark.parametrize("junk", [math.nan, math.inf, -math.inf])
def test_what_a_masked_position_holds_has_no_effect(junk):
    clean, dirty = batch(), batch()
    for tensor in dirty[:3]:
        tensor[dirty[-1] == 0] = junk
    results = []
    for tensors in (clean, dirty):
        logps, negative = (tensors[at].requires_grad_() for at in (0, 2))
        loss = tapo_loss(*tensors, negative_grad=True)
        loss.total.backward()
        results.append([loss.total, loss.ratio_max, logps.grad, negative.grad])
    for left, right in zip(*results, strict=True):
        assert torch.equal(left, right)


@pytest.mark.parametrize("count", [None, 0.0, 7])
def test_nothing_kept_is_zero_and_not_nan(count):
    logps, old, negative, advantages, mask = batch()
    logps.requires_grad_()
    loss = tapo_loss(logps, old, negative, advantages, 0 * mask, token_count=count)
    loss.total.backward()
    assert loss.total.item() == loss.clip_share.item() == loss.ratio_max.item() == 0.0
    assert not logps.grad.any()
    empty = [tensor[:, :0] if tensor.dim() == 2 else tensor for tensor in batch()]
    assert tapo_loss(*empty).total.item() == 0.0


def test_without_extras_on_policy_the_gradient_is_that_of_reinforce():
    logps, _, _, advantages, mask = batch()
    logps.requires_grad_()
    tapo_loss(logps, logps, None, advantages, mask, **OFF).total.backward()
    torch.testing.assert_close(logps.grad, -advantages.unsqueeze(1) * mask / mask.sum())


def test_token_mean_weighs_tokens_and_not_rollouts():
    values = torch.tensor([[1.0, 1.0, 1.0], [5.0, 0.0, 0.0]])
    mask = torch.tensor([[1, 1, 1], [1, 0, 0]])
    assert token_mean(values, mask).item() == 2.0  # (1 + 1 + 1 + 5) / 4, not (1 + 5) / 2
    assert token_mean(values, mask, token_count=16).item() == 0.5
    assert token_mean(values, mask.bool(), token_count=torch.tensor(16)).item() == 0.5


def test_one_error_lists_all_faults():
    logps, old, negative, advantages, mask = batch()
    with pytest.raises(ValueError) as caught:
        tapo_loss(logps, old[:, :2], negative[:3], advantages[:1], mask, clip_dual=0.5)
    for problem in ("old_logps is (6, 2)", "negative_logps is (3, 5)", "(1,)", "0.5"):
        assert problem in str(caught.value)


ROWS = torch.tensor([1, 0, 1, 1, 0, 0])  # of the inter-class term


def test_rows_left_out_of_the_inter_class_term_still_count_in_its_mean():
    """Otherwise few right answers would be pushed as hard as many."""
    logps, old, negative, advantages, mask = batch()
    rows = ROWS
    logps.requires_grad_()
    loss = tapo_loss(logps, old, negative, advantages, mask, inter_class_rows=rows)
    tokens = k3(logps, negative) * mask * rows[:, None]
    torch.testing.assert_close(loss.inter_class_kl, tokens.sum() / mask.sum())
    (gradient,) = torch.autograd.grad(loss.inter_class_kl, logps)
    counted = (mask * rows[:, None]).bool()
    assert gradient[counted].all() and not gradient[~counted].any()
    every = tapo_loss(logps, old, negative, advantages, mask, inter_class_rows=torch.ones(6))
    assert every.total == tapo_loss(logps, old, negative, advantages, mask).total
    none = tapo_loss(logps, old, negative, advantages, mask, inter_class_rows=torch.zeros(6))
    assert none.inter_class_kl == 0 and none.negative_entropy != 0


def test_rollouts_not_scored_on_the_negative_may_hold_anything_there():
    """Those that were scored stand for them: the mean over all choices is the full term."""
    logps, old, negative, advantages, mask = batch()
    full = tapo_loss(logps, old, negative, advantages, mask)
    means = torch.zeros(2, dtype=torch.float64)
    for row in range(len(logps)):  # one rollout of six at a time, so each counts six times
        weights = torch.zeros(len(logps))
        weights[row] = len(logps)
        torn = negative.masked_fill(weights[:, None] == 0, torch.nan)
        part = tapo_loss(logps, old, torn, advantages, mask, negative_rows=weights)
        means += torch.stack([part.inter_class_kl, part.negative_entropy]) / len(logps)
    torch.testing.assert_close(means, torch.stack([full.inter_class_kl, full.negative_entropy]))
    once = tapo_loss(logps, old, negative, advantages, mask, negative_rows=torch.ones(6))
    assert once.total == full.total


# given tensor -> whether the total's gradient reaches it, without and with `negative_grad`
REACHED = {
    "logps": (True, True),
    "old_logps": (False, False),
    "negative_logps": (False, True),
    "advantages": (False, False),
}


@pytest.mark.parametrize("negative_grad", [False, True])
def test_the_total_reaches_the_tensors_of_the_table_and_no_masked_token(negative_grad):
    *tensors, mask = batch()
    leaves = {name: t.requires_grad_() for name, t in zip(REACHED, tensors, strict=True)}
    tapo_loss(**leaves, mask=mask, negative_grad=negative_grad).total.backward()
    for name, leaf in leaves.items():
        assert (leaf.grad is not None) == REACHED[name][negative_grad], name
        if leaf.grad is not None:
            assert not leaf.grad[mask == 0].any() and leaf.grad[mask == 1].any(), name


def test_with_all_options_gradients_equal_finite_differences():
    logps, old, negative, advantages, mask = batch()

    def total(anchor, other):
        return tapo_loss(
            anchor,
            old,
            other,
            advantages,
            mask,
            negative_grad=True,
            inter_class_rows=ROWS,
            negative_rows=torch.tensor([2.0, 0, 1, 3, 0, 1]),
            token_count=40.0,
        ).total

    inputs = [t.requires_grad_() for t in (logps, negative)]
    assert torch.autograd.gradcheck(total, inputs, eps=1e-6, atol=1e-8)


def test_the_parts_that_add_up_are_numbers():
    loss = tapo_loss(*batch())
    assert loss.sums() == {n: getattr(loss, n).item() for n in (*PARTS, "clip_share")}


# --- policy losses by name -----------------------------------------------------------


def two_completions(loss_type, ratios, **options):
    """Loss and gradient of two completions, of one and of four tokens; advantages 1 and -1."""
    old = torch.full((2, 4), -1.0, dtype=torch.float64)
    logps = (old + torch.tensor(ratios, dtype=torch.float64).log()).requires_grad_()
    mask = torch.tensor([[1, 0, 0, 0], [1, 1, 1, 1]])
    advantages = torch.tensor([1.0, -1.0], dtype=torch.float64)
    loss = tapo_loss(logps, old, None, advantages, mask, loss_type=loss_type, **options)
    (gradient,) = torch.autograd.grad(loss.policy, logps)
    return loss, gradient


ONES = [[1.0] * 4] * 2


@pytest.mark.parametrize(
    ("loss_type", "loss", "short", "long"),
    [  # on policy: -A, shared among whom?
        ("dapo", (-1 + 4) / 5, -1 / 5, 1 / 5),  # all tokens alike
        ("grpo", (-1 + 1) / 2, -1 / 2, 1 / 8),  # both completions alike: a long one's token less
        ("gspo", (-1 + 1) / 2, -1 / 2, 1 / 8),
        ("dr_grpo", (-1 + 4) / 20, -1 / 20, 1 / 20),  # two completions of ten tokens at most
        ("cispo", (1 - 4) / 5, -1 / 5, 1 / 5),  # logp is -1: the value is another, not the slope
    ],
)
def test_what_a_token_weighs_under_each_name(loss_type, loss, short, long):
    got, gradient = two_completions(loss_type, ONES, length_limit=10)
    assert got.policy.item() == pytest.approx(loss)
    expected = torch.tensor([[short, 0, 0, 0], [long] * 4], dtype=torch.float64)
    torch.testing.assert_close(gradient, expected)


def test_gspo_has_one_ratio_a_completion_and_clips_it_as_a_whole():
    """Four tokens at 2, 2, 1/2 and 1/2 are a completion at 1; four at 1/2 are clipped."""
    got, gradient = two_completions("gspo", [[1.1, 1, 1, 1], [2, 2, 0.5, 0.5]])
    assert got.policy.item() == pytest.approx((-1.1 + 1) / 2)
    torch.testing.assert_close(gradient[1], torch.full((4,), 1 / 8, dtype=torch.float64))
    assert got.ratio_max.item() == pytest.approx(1.1)
    assert two_completions("grpo", [[1.1, 1, 1, 1], [2, 2, 0.5, 0.5]])[0].clip_share > 0
    got, gradient = two_completions("gspo", [[1.1, 1, 1, 1], [0.5] * 4])
    assert not gradient[1].any() and got.clip_share.item() == pytest.approx(4 / 5)
    assert got.policy.item() == pytest.approx((-1.1 + 0.8) / 2)


def test_cispo_bounds_the_weight_and_leaves_every_token_its_gradient():
    """Where DAPO's clip stops a token, CISPO only keeps it from growing."""
    ratios, clips = [[8.0, 1, 1, 1], [0.5, 1, 1, 2]], dict(clip_low=1.0, clip_high=4.0)
    got, gradient = two_completions("cispo", ratios, **clips)
    expected = torch.tensor([[-5, 0, 0, 0], [0.5, 1, 1, 2]], dtype=torch.float64) / 5
    torch.testing.assert_close(gradient, expected)
    assert got.clip_share.item() == pytest.approx(1 / 5)
    logps = torch.tensor(ratios[1]).log() - 1
    policy = -5 * (math.log(8) - 1) + (torch.tensor(ratios[1]) * logps).sum().item()
    assert got.policy.item() == pytest.approx(policy / 5)
    assert not two_completions("dapo", ratios, **clips)[1][0].any()


@pytest.mark.parametrize("loss_type", LOSS_TYPES)
def test_under_each_name_micro_batches_add_up_to_the_whole_batch(loss_type):
    """A part must know the counts of the whole: a mean of means would be another number."""
    tensors = batch(rows=7)
    counts = dict(token_count=tensors[-1].sum(), completion_count=7, length_limit=9)
    leaf = tensors[0].requires_grad_()
    whole = tapo_loss(*tensors, loss_type=loss_type, length_limit=9)
    (gradient,) = torch.autograd.grad(whole.total, leaf)
    rows = torch.arange(7).split(3)
    parts = [tapo_loss(*(t[r] for t in tensors), loss_type=loss_type, **counts) for r in rows]
    for name in (*PARTS, "clip_share"):
        assert sum(getattr(part, name) for part in parts).item() == pytest.approx(
            getattr(whole, name).item()
        )
    (added,) = torch.autograd.grad(sum(part.total for part in parts), leaf)
    torch.testing.assert_close(added, gradient)
    alone = [tapo_loss(*(t[r] for t in tensors), loss_type=loss_type) for r in rows]
    assert abs(sum(part.policy for part in alone) / 3 - whole.policy).item() > 1e-3


@pytest.mark.parametrize("loss_type", LOSS_TYPES)
def test_under_each_name_masked_tokens_have_no_effect_and_none_is_zero(loss_type):
    logps, old, _, advantages, mask = batch()
    torn = logps.masked_fill(mask == 0, math.nan).requires_grad_()
    loss = tapo_loss(torn, old, None, advantages, mask, loss_type=loss_type)
    clean = tapo_loss(logps, old, None, advantages, mask, loss_type=loss_type)
    loss.total.backward()
    assert loss.total == clean.total and torn.grad.isfinite().all()
    assert tapo_loss(logps, old, None, advantages, 0 * mask, loss_type=loss_type).total == 0


def test_an_unknown_name_is_answered_with_the_known_ones():
    with pytest.raises(ValueError, match="'ppo': one of " + ", ".join(LOSS_TYPES)):
        tapo_loss(*batch(), loss_type="ppo")
