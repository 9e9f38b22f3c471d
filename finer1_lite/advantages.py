"""Advantages: how much better a rollout did than the others of its group.

A group is every rollout to one question: n on the anchor picture, m on the positive.
No value network: the group's own mean is the baseline (GRPO, arXiv 2402.03300; DAPO,
arXiv 2503.14476; Fine-R1, arXiv 2602.07605).
"""

from collections.abc import Sequence

import torch
from torch import Tensor


def group_advantages(
    rewards: Tensor, group_size: int, eps: float = 1e-6, scale: str = "std"
) -> Tensor:
    """(reward - mean) / (std + eps) within each group; std is the unbiased one.

    rewards: (B,), the groups one after the other; group_size: rollouts in a group, at least 2;
    eps keeps a group without reward variance at 0 instead of 0 / 0; scale "none": reward - mean
    (Dr. GRPO, arXiv 2503.20783: a small std makes easy and hard questions weigh more). Returns
    (B,) in the dtype of `rewards` (float32 if they are whole numbers). Raises ValueError for a
    wrong shape or size, or a reward that is no finite number.
    """
    rewards = torch.as_tensor(rewards)
    problems = []
    if rewards.dim() != 1:
        problems.append(f"rewards must be (B,), not {tuple(rewards.shape)}")
    if group_size < 2:
        problems.append(f"group_size is {group_size}: variance needs at least 2 rollouts")
    elif rewards.numel() % group_size:
        problems.append(f"{rewards.numel()} rewards do not fill groups of {group_size}")
    bad = (~torch.isfinite(rewards)).flatten().nonzero().flatten().tolist()
    if bad:
        problems.append(f"rewards at {bad} are not finite: mend the reward function")
    if problems:
        raise ValueError("; ".join(problems))
    # In float32 the mean of ten rewards of 0.1 is not 0.1; divided by eps, that
    # rounding would become an advantage. In float64 it does not.
    groups = rewards.double().view(-1, group_size)  # (G, group_size)
    centred = groups - groups.mean(dim=1, keepdim=True)
    scaled = centred if scale == "none" else centred / (groups.std(dim=1, keepdim=True) + eps)
    return scaled.flatten().to(rewards.dtype if rewards.is_floating_point() else torch.float32)


def picture_advantages(rewards: Tensor, counts: Sequence[int], scale: str = "std") -> Tensor:
    """`group_advantages` with a baseline for each picture of a group instead of one for all.

    A picture whose rollouts all earned the same then teaches nothing, though the group's
    other picture fared better or worse.

    rewards: (B,), the groups one after the other, each picture's rollouts together;
    counts: rollouts of each picture of a group, (n, m), a 0 is left out; scale: as there.
    Returns and raises as `group_advantages`.
    """
    rewards = torch.as_tensor(rewards)
    counts = [n for n in counts if n]
    if rewards.dim() != 1 or not counts or len(rewards) % sum(counts):
        shape = tuple(rewards.shape)
        raise ValueError(f"rewards {shape} do not fill groups of {' + '.join(map(str, counts))}")
    parts = rewards.view(-1, sum(counts)).split(counts, dim=1)
    scaled = [
        group_advantages(part.flatten(), n, scale=scale).view(-1, n)
        for part, n in zip(parts, counts, strict=True)
    ]
    return torch.cat(scaled, dim=1).flatten()


def keep_group(accuracies: Tensor, low: float = 0.01, high: float = 0.99) -> Tensor:
    """Dynamic sampling (DAPO): which groups have something to teach.

    accuracies: (G, rollouts), 1 where the answer was right, between where it is paid in part; a
    group stays if they differ and their mean lies strictly between `low` and `high`. (G,) bool.
    """
    if accuracies.dim() != 2 or accuracies.shape[1] == 0:
        raise ValueError(f"accuracies must be (G, rollouts), not {tuple(accuracies.shape)}")
    mean = accuracies.double().mean(dim=1)
    return (accuracies.amax(dim=1) > accuracies.amin(dim=1)) & (mean > low) & (mean < high)


def share_without_variance(accuracies: Tensor) -> float:
    """Share of kept groups in which no picture's rollouts differ among themselves.

    Such a group (all right on the anchor, all wrong on the positive, say) passes the
    filter, and its whole signal is the difference between the pictures.

    accuracies: (G, pictures, rollouts), 1 where the answer was right. Returns a share in [0, 1];
    0.0 if no group is kept (`keep_group`).
    """
    if accuracies.dim() != 3 or 0 in accuracies.shape[1:]:
        shape = tuple(accuracies.shape)
        raise ValueError(f"accuracies must be (G, pictures, rollouts), not {shape}")
    kept = accuracies[keep_group(accuracies.flatten(1))]
    if not len(kept):
        return 0.0
    flat = (kept.amax(dim=2) == kept.amin(dim=2)).all(dim=1)  # (kept,)
    return flat.double().mean().item()
