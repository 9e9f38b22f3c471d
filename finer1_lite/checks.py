"""What must hold before and after training: checks that can fail, and say what it means.

Each raises AssertionError with one sentence for the reader of a notebook, whether or not
Python runs with assertions switched on.
"""

import math
from collections import Counter
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from finer1_lite import advantages
from finer1_lite.generation import PromptBatch, Rollouts

RESCALED = 1e-5  # a change smaller than this, beside a mere rescaling, is rounding


def _require(holds: bool, otherwise: str) -> None:
    if not holds:
        raise AssertionError(otherwise)


def snapshot(model: torch.nn.Module) -> dict[str, Tensor]:
    """A copy of the parameters that training may change: name -> tensor on the CPU."""
    named = model.named_parameters()
    return {name: p.detach().cpu().clone() for name, p in named if p.requires_grad}


def assert_image_tokens_match(batch: PromptBatch) -> None:
    """Every prompt holds exactly as many picture tokens as its picture has features."""
    shown = batch.mm_token_type_ids.sum(-1).tolist()
    made = [len(f) for f in batch.image_features] or [0] * len(shown)
    _require(
        shown == made,
        f"{shown} picture tokens stand for {made} picture features: the model would read a "
        "shifted picture; tokenise every picture by itself.",
    )


def assert_adapter_moved(before: Mapping[str, Tensor], after: Mapping[str, Tensor]) -> float:
    """A gradient reached the adapter between two snapshots; returns the share of tensors moved.

    Weight decay shrinks a matrix without having learnt anything, so a change counts only
    as far as it is no multiple of the matrix itself.
    """
    _require(bool(before), "no parameter is trainable: the adapter was loaded for inference only.")
    _require(before.keys() == after.keys(), "the two snapshots are of different parameters.")
    broken = [name for name, value in after.items() if not torch.isfinite(value).all()]
    _require(not broken, f"{len(broken)} matrices hold nan or inf: the training blew up.")
    moved = share_moved(before, after)
    _require(
        moved > 0,
        f"none of {len(before)} adapter matrices has moved: no gradient reached them, so "
        "whatever changed in the completions was not learnt.",
    )
    return moved


def share_moved(before: Mapping[str, Tensor], after: Mapping[str, Tensor]) -> float:
    """The share of tensors that are no mere multiple of what they were."""
    moved = [_turned(before[name].double(), after[name].double()) for name in before]
    return sum(moved) / max(1, len(moved))


def _turned(old: Tensor, new: Tensor) -> bool:
    """Whether `new` is more than `old` times a number."""
    along = (new * old).sum() / (old * old).sum().clamp(min=1e-30)
    return bool((new - along * old).norm() > RESCALED * old.norm())


def assert_some_variance(groups: Tensor | Sequence) -> float:
    """Some group has right and wrong completions; returns the share that has.

    groups: accuracies (G, rollouts), or groups that carry `.accuracy` (rollouts,).
    """
    rows = groups if isinstance(groups, Tensor) else torch.stack([g.accuracy for g in groups])
    kept = advantages.keep_group(rows)
    _require(
        bool(kept.any()),
        f"none of {len(rows)} groups has both right and wrong completions: every advantage is 0 "
        "and there is nothing to learn from; sample hotter, or train stage 1 less or more.",
    )
    return kept.double().mean().item()


def assert_not_all_truncated(rollouts: Rollouts | Sequence) -> float:
    """Some completion came to its end; returns the share that was truncated.

    rollouts: one `Rollouts`, or several objects that carry `.truncated` (B,).
    """
    parts = [rollouts] if hasattr(rollouts, "truncated") else list(rollouts)
    truncated = torch.cat([part.truncated for part in parts])
    _require(
        not bool(truncated.all()),
        f"all {len(truncated)} completions were truncated at the length limit, so none has an "
        "answer to score: raise max_new_tokens, or look whether the model ever ends its turn.",
    )
    return truncated.cpu().double().mean().item()  # mps has no float64


# --- what a training's log tells ---------------------------------------------------------------

ENDED = "raise max_new_tokens, or look whether the model ends its turns"
WHY = {  # a reason why a step of TAPO has no gradient -> whether its row of the log says so
    f"all completions were cut at the length limit ({ENDED})": lambda row: row["truncated"] == 1,
    "no completion was right (train stage 1 longer)": lambda row: row["accuracy"] == 0,
    "every completion was right": lambda row: row["accuracy"] == 1,
    "the completions of each group were all right or all wrong (sample hotter)": lambda row: True,
}


def taught_nothing(row: Mapping) -> bool:
    """Whether a step, by its row of log.jsonl, had no gradient or rewards without variance."""
    gradient = row.get("grad_norm")
    dead = gradient is not None and not 0 < gradient < math.inf
    return bool(row.get("skipped")) or dead or row.get("varied") == 0


def lessons(log: Sequence[Mapping]) -> list[str]:
    """What is wrong with a training of which most steps taught nothing, in sentences."""
    idle = [row for row in log if taught_nothing(row)]
    told = []
    if idle and 2 * len(idle) >= len(log):
        rewarded = [row for row in idle if "accuracy" in row and "truncated" in row]
        why = Counter(next(w for w, so in WHY.items() if so(row)) for row in rewarded)
        reasons = "".join(f"; in {n} of them {reason}" for reason, n in why.items())
        told.append(f"{len(idle)} of {len(log)} logged steps had nothing to learn from{reasons}")
    if log and log[-1].get("moved") == 0 and len(idle) < len(log):
        told.append("the adapter did not move: its learning rate may be too small")
    return told
