"""The TAPO loss: a clipped policy loss and what the hard negative adds to it.

    total = policy - gamma * inter_class_kl + eta1 * anchor_entropy
                   + eta2 * negative_entropy

Each term is a mean over the response tokens of the whole batch; `LOSS_TYPES` has other policy
losses. Source: Fine-R1 (arXiv 2602.07605) and its released code; clipping after DAPO (arXiv
2503.14476), dual clip after arXiv 1912.09729, k3 after J. Schulman, "Approximating KL divergence".
"""

from dataclasses import dataclass

import torch
from torch import Tensor

LOG_RATIO_MAX = 20.0  # exp(20) = 4.9e8, far inside float32
K3_MAX = 10.0


@dataclass(frozen=True)
class TapoLoss:
    """The loss and its parts, scalars; `total` is the one to call backward on.

    `clip_share` (share of tokens whose policy gradient a clip stops or, in CISPO, weakens) and
    `ratio_max` (the largest pi / pi_old) carry no gradient: they are there to be looked at.
    """

    total: Tensor
    policy: Tensor
    inter_class_kl: Tensor
    anchor_entropy: Tensor
    negative_entropy: Tensor
    clip_share: Tensor
    ratio_max: Tensor

    def sums(self) -> dict[str, float]:
        """The parts that add up over micro-batches, as numbers."""
        parts = {name: float(part.detach()) for name, part in vars(self).items()}
        del parts["ratio_max"]
        return parts


def token_mean(values: Tensor, mask: Tensor, token_count: Tensor | float | None = None) -> Tensor:
    """Mean of the values (B, T) where mask (B, T) is not 0; 0 where nothing is kept.

    `token_count` replaces the number of kept tokens: give every micro-batch the count
    of the whole batch, and the sum of their means is the mean over the whole batch. One of
    (B, 1) divides each row by a number of its own.
    What a masked position holds (nan and inf too) has no effect.
    """
    keep = mask.bool()
    count = keep.sum() if token_count is None else torch.as_tensor(token_count)
    count = count.to(values).clamp(min=1.0)
    kept = values.masked_fill(~keep, 0.0)
    return (kept / count).sum() if count.dim() else kept.sum() / count


def k3(logps: Tensor, negative_logps: Tensor) -> Tensor:
    """Per-token estimate of KL(pi || pi_neg) from tokens that pi sampled: exp(d) - d - 1.

    d = log pi_neg - log pi, clamped to [-20, 20], the result to [-10, 10]. The paper
    prints it with pi / pi_neg: that estimates the reverse, KL(pi_neg || pi), and only on
    samples of pi_neg. The outer clamp stops the gradient of a token that has reached it.
    ``expm1`` keeps the digits that ``exp(d) - 1`` loses near d = 0.
    """
    d = (negative_logps - logps).clamp(-LOG_RATIO_MAX, LOG_RATIO_MAX)
    return (torch.expm1(d) - d).clamp(-K3_MAX, K3_MAX)


def sampled_entropy(
    logps: Tensor, mask: Tensor, token_count: Tensor | float | None = None
) -> Tensor:
    """-mean log pi of the sampled tokens: an estimate of the entropy, in nats a token.

    The value is an estimate; the gradient is not one of the entropy: on samples of
    the policy itself its expectation is zero.
    """
    return -token_mean(logps, mask, token_count)


def negative_terms(
    logps: Tensor,
    negative_logps: Tensor | None,
    keep: Tensor,
    *,
    weights: Tensor | None = None,
    rows: Tensor | None = None,
    grad: bool = False,
    token_count: Tensor | float | None = None,
) -> tuple[Tensor, Tensor]:
    """What the hard negative adds (Fine-R1, section 3.2): (inter-class KL, negative entropy).

    The policy is pushed away from what it would say of a picture of a look-alike class, and
    towards being sure of its words there. Both are 0 without a negative.

    logps, negative_logps: (B, T) of the same tokens, on the anchor and on the negative;
    keep: (B, T) bool, the response tokens; all of them divide, whoever takes part;
    weights: (B,) of each rollout in both terms, 0: not scored on the negative;
    rows: (B,) not 0 where a rollout counts in the inter-class term;
    grad: True sends gradient through `negative_logps`;
    token_count: response tokens of the whole batch, see `token_mean`.
    """
    if negative_logps is None:
        return logps.new_zeros(()), logps.new_zeros(())
    if not grad:
        negative_logps = negative_logps.detach()
    count = keep.sum() if token_count is None else token_count
    weight = 1.0 if weights is None else weights.to(logps)[:, None]
    if weights is not None:
        keep = keep & (weight != 0)  # what was never scored may hold anything
    negative_logps = _clean(negative_logps, keep, logps.dtype)
    counted = keep if rows is None else keep & rows.bool()[:, None]
    divergence = token_mean(weight * k3(logps, negative_logps), counted, count)
    return divergence, token_mean(weight * -negative_logps, keep, count)


# --- policy losses by name: a ratio, a term of each token, what divides their sum -----------


def token_ratio(log_ratio: Tensor, keep: Tensor) -> Tensor:
    """Ratio pi / pi_old of each token (B, T), from its logarithm (B, T)."""
    return log_ratio.clamp(-LOG_RATIO_MAX, LOG_RATIO_MAX).exp()


def sequence_ratio(log_ratio: Tensor, keep: Tensor) -> Tensor:
    """The geometric mean of a completion's ratios, for each of its tokens (B, T)."""
    mean = log_ratio.sum(1, keepdim=True) / keep.sum(1, keepdim=True).clamp(min=1)
    return token_ratio(mean, keep).expand_as(log_ratio)


def clipped(
    ratio: Tensor, logps: Tensor, advantages: Tensor, clips: tuple[float, ...]
) -> tuple[Tensor, Tensor]:
    """PPO's clipped term under DAPO's two bounds (B, T), and where they stop its gradient."""
    low, high, dual = clips
    plain = -advantages * ratio
    worst = torch.maximum(plain, -advantages * ratio.clamp(1.0 - low, 1.0 + high))
    # Where A < 0 the worst case grows with the ratio without bound; cap it.
    term = torch.where(advantages < 0, torch.minimum(worst, -advantages * dual), worst)
    rising = (advantages > 0) & (ratio > 1.0 + high)
    falling = (advantages < 0) & ((ratio < 1.0 - low) | (ratio > dual))
    return term, rising | falling


def weighted(
    ratio: Tensor, logps: Tensor, advantages: Tensor, clips: tuple[float, ...]
) -> tuple[Tensor, Tensor]:
    """REINFORCE under a bounded importance weight (B, T): every token keeps a gradient."""
    weight = ratio.detach().clamp(1.0 - clips[0], 1.0 + clips[1])
    return -weight * advantages * logps, weight != ratio


def all_tokens(keep: Tensor, tokens: Tensor | float, completions: int, limit: int) -> Tensor:
    """Every token counts alike, so a long completion counts for more."""
    return torch.as_tensor(tokens)


def own_tokens(keep: Tensor, tokens: Tensor | float, completions: int, limit: int) -> Tensor:
    """Every completion counts alike, so a token of a long one counts for less: (B, 1)."""
    return completions * keep.sum(1, keepdim=True).clamp(min=1)


def constant(keep: Tensor, tokens: Tensor | float, completions: int, limit: int) -> Tensor:
    """The same for every token, however long all the completions of the batch are."""
    return torch.as_tensor(completions * limit)


LOSS_TYPES = {  # `tapo.loss_type`
    "dapo": (token_ratio, clipped, all_tokens),  # arXiv 2503.14476
    "grpo": (token_ratio, clipped, own_tokens),  # arXiv 2402.03300
    "dr_grpo": (token_ratio, clipped, constant),  # arXiv 2503.20783
    "gspo": (sequence_ratio, clipped, own_tokens),  # arXiv 2507.18071
    "cispo": (token_ratio, weighted, all_tokens),  # arXiv 2506.13585
}


def _clean(values: Tensor, keep: Tensor, dtype: torch.dtype) -> Tensor:
    """Widened, and 0 where masked before any arithmetic: 0 * nan is nan."""
    return values.to(dtype).masked_fill(~keep, 0.0)


def _check(
    logps: Tensor,
    old_logps: Tensor,
    negative_logps: Tensor | None,
    mask: Tensor,
    advantages: Tensor,
    clips: tuple[float, ...],
    loss_type: str,
) -> None:
    """ValueError listing every wrong shape and every impossible clip."""
    shape = logps.shape
    low, high, dual = clips
    others = {"old_logps": old_logps, "negative_logps": negative_logps, "mask": mask}
    problems = [
        f"{name} is {tuple(tensor.shape)}, logps is {tuple(shape)}"
        for name, tensor in others.items()
        if tensor is not None and tensor.shape != shape
    ]
    if len(shape) != 2:
        problems.append(f"logps must be (B, T), not {tuple(shape)}")
    if tuple(advantages.shape) != tuple(shape[:1]):
        problems.append(f"advantages must be (B,), not {tuple(advantages.shape)}")
    if not (0 <= low <= 1 and high >= 0 and dual > 1):
        problems.append(f"clips want 0 <= low <= 1, high >= 0, dual > 1: {low}, {high}, {dual}")
    if loss_type not in LOSS_TYPES:
        problems.append(f"loss_type is {loss_type!r}: one of {', '.join(LOSS_TYPES)}")
    if problems:
        raise ValueError("tapo_loss: " + "; ".join(problems))


def tapo_loss(
    logps: Tensor,
    old_logps: Tensor,
    negative_logps: Tensor | None,
    advantages: Tensor,
    mask: Tensor,
    *,
    loss_type: str = "dapo",
    clip_low: float = 0.2,
    clip_high: float = 0.28,
    clip_dual: float = 3.0,
    inter_class_weight: float = 0.01,
    anchor_entropy_weight: float = 0.03,
    negative_entropy_weight: float = 0.03,
    negative_grad: bool = False,
    inter_class_rows: Tensor | None = None,
    negative_rows: Tensor | None = None,
    token_count: Tensor | float | None = None,
    completion_count: int | None = None,
    length_limit: int | None = None,
) -> TapoLoss:
    """The loss of one batch, or of a micro-batch where the whole batch's counts are given.

    logps, old_logps, negative_logps: (B, T) of the sampled tokens: on the anchor, when sampled
    (never gets a gradient), on the hard negative (None: its terms are 0);
    advantages: (B,) one a rollout; mask: (B, T) not 0 where a response token counts;
    loss_type: a key of `LOSS_TYPES`, of the policy term; the others are token means always;
    clip_low, clip_high: the ratio is clipped to [1 - clip_low, 1 + clip_high];
    clip_dual: cap of the loss in units of |A| where A < 0; inf switches it off;
    inter_class_weight: gamma, of a term to grow; the entropies': eta1, eta2, to shrink;
    negative_grad: True sends gradient through `negative_logps`, as the paper writes it;
    inter_class_rows, negative_rows: (B,) `rows` and `weights` of `negative_terms`;
    token_count, completion_count: of the whole batch, see `token_mean`; length_limit: tokens that
    a completion may have (default: T), the constant of Dr. GRPO.

    Returns TapoLoss in float32 (float64 for float64 `logps`): half precision is widened
    before any exponential. Raises ValueError listing shapes and clips that make no sense.
    """
    clips = (clip_low, clip_high, clip_dual)
    _check(logps, old_logps, negative_logps, mask, advantages, clips, loss_type)
    dtype = torch.float64 if logps.dtype == torch.float64 else torch.float32
    keep = mask.bool()  # (B, T)
    scale = advantages.detach().to(dtype).unsqueeze(1)  # (B, 1)
    logps = _clean(logps, keep, dtype)
    old_logps = _clean(old_logps.detach(), keep, dtype)
    ratio_of, term_of, divisor_of = LOSS_TYPES[loss_type]
    ratio = ratio_of(logps - old_logps, keep)  # (B, T)
    terms, stopped = term_of(ratio, logps, scale, clips)  # (B, T) each
    tokens = keep.sum() if token_count is None else token_count
    counts = (tokens, completion_count or len(logps), length_limit or logps.shape[1])
    policy = token_mean(terms, keep, divisor_of(keep, *counts))
    entropy = sampled_entropy(logps, keep, token_count)
    divergence, negative_entropy = negative_terms(
        logps,
        negative_logps,
        keep,
        weights=negative_rows,
        rows=inter_class_rows,
        grad=negative_grad,
        token_count=token_count,
    )
    total = policy - inter_class_weight * divergence + anchor_entropy_weight * entropy
    total = total + negative_entropy_weight * negative_entropy
    clip_share = token_mean(stopped.to(dtype), keep, token_count)
    ratio_max = torch.cat([ratio.detach()[keep], ratio.new_zeros(1)]).max()  # 0: none kept
    return TapoLoss(total, policy, divergence, entropy, negative_entropy, clip_share, ratio_max)
