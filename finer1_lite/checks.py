"""What must hold before and after training: checks that can fail, and say what it means.

Each raises AssertionError with one sentence for the reader of a notebook, whether or not
Python runs with assertions switched on.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from finer1_lite import advantages
from finer1_lite.generation import PromptBatch

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
    shown = (batch.mm_token_type_ids == 1).sum(-1).tolist()
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


def assert_some_variance(groups: Sequence) -> float:
    """Some group has right and wrong completions; returns the share that has.

    groups: they carry `.accuracy` (rollouts,).
    """
    kept = advantages.keep_group(torch.stack([group.accuracy for group in groups]))
    _require(
        bool(kept.any()),
        f"none of {len(groups)} groups has both right and wrong completions: every advantage is 0 "
        "and there is nothing to learn from; sample hotter, or train stage 1 less or more.",
    )
    return kept.double().mean().item()


def assert_not_all_truncated(groups: Sequence) -> float:
    """Some completion came to its end; returns the share that was truncated.

    groups: they carry `.truncated` (rollouts,).
    """
    truncated = torch.cat([group.truncated for group in groups])
    _require(
        not bool(truncated.all()),
        f"all {len(truncated)} completions were truncated at the length limit, so none has an "
        "answer to score: raise max_new_tokens, or look whether the model ever ends its turn.",
    )
    return truncated.cpu().double().mean().item()  # mps has no float64
