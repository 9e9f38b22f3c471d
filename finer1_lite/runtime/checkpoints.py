"""Weights on disk: read whole and finite, or refused; and the newest whole checkpoint."""

import json
import logging
import shutil
import time
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from finer1_lite.runtime import distributed
from finer1_lite.runtime.files import DataError, digest, require_none, write_atomically

log = logging.getLogger("finer1_lite")

STATE = "trainer_state.json"  # what is written last of a checkpoint, before it is sealed
SUMS = "checksums.json"  # file -> SHA-256 of its bytes: the seal
SHOWN = 3  # names in a message
MINUTES = 10.0  # of work that a machine which is taken away may cost
LOWER_RATE = "; lower the learning rate (--set sft.learning_rate=... or tapo.learning_rate=...)"
OVERFLOW = "nan or inf in"  # what every `NotFinite` says, and so a record's error
_place = ""  # of the training that is under way: see `stand`


class NotFinite(ValueError):
    """A loss, gradient, weight or logit is nan or inf; whatever follows from it would be, too."""


def stand(work: Path | None = None, step: int = 0, rate: float = 0.0, dtype: str = "") -> None:
    """Where a training stands from now on; work: its folder of checkpoints, None: it is over."""
    global _place
    _place = ""
    if work:
        work = work.parent if work.name == "checkpoints" else work
        number = dtype.removeprefix("torch.")
        _place = f"{work.name}, step {step} (learning rate {rate:.3g}, {number}): "


def require_finite(tensors: Iterable[tuple[str, Tensor]], what: str = "", mend: str = "") -> None:
    """NotFinite that names the tensors with nan or inf and counts them, where there are any.

    In a training it says where that stands, and what to try. Quantised weights are passed over:
    their bytes are no numbers of the dtype in which they are kept.
    """
    own = ((name, x.to_local() if hasattr(x, "to_local") else x) for name, x in tensors)
    plain = ((n, x) for n, x in own if x.is_floating_point() and not hasattr(x, "quant_state"))
    bad = [n for n, x in plain if x.dtype.itemsize > 1 and not torch.isfinite(x).all()]
    if bad:
        count = f" ({len(bad)} in all)" if len(bad) > 1 else ""
        mend = LOWER_RATE if _place else mend
        raise NotFinite(f"{_place}{what}{OVERFLOW} {_some(bad)}{count}{mend}")


def read_tensors(path: Path) -> dict[str, Tensor]:
    """What a safetensors file holds. DataError where it is torn or not there, or not finite."""
    try:
        found = load_file(path)
    except (SafetensorError, OSError) as error:
        problem = f"{path}: {error}; copy it anew, or train it again"
        raise DataError([problem], "weights that cannot be read:") from error
    require_finite(found.items(), f"{path}: ", "; train it again, at a lower learning rate")
    return found


def require_fit(given: Mapping[str, Tensor], wanted: Mapping[str, Tensor], what: str) -> None:
    """DataError naming what is missing, unexpected or of another shape, where anything is."""
    shapes = {name: (given[name].shape, wanted[name].shape) for name in wanted.keys() & given}
    other = [f"{name} {list(a)} for {list(b)}" for name, (a, b) in shapes.items() if a != b]
    require_same(what, wanted.keys() - given, given.keys() - wanted, other)


def require_same(
    what: str, missing: Iterable[str], unexpected: Iterable[str], other: Iterable[str]
) -> None:
    """DataError that counts and names the matrices that do not fit; other: in their shapes."""
    kinds = {"missing": missing, "unexpected": unexpected, "size mismatch": other}
    found = {kind: sorted(names) for kind, names in kinds.items() if names}
    counts = ", ".join(f"{len(names)} {kind}" for kind, names in found.items())
    problems = [f"{kind}: {_some(names)}" for kind, names in found.items()]
    require_none(problems, f"{what}: {counts}")


def _some(names: list[str]) -> str:
    return ", ".join(names[:SHOWN]) + ", ..." * (len(names) > SHOWN)


def last_checkpoint(work: Path) -> str | None:
    """The newest whole checkpoint in `work`; one torn by a kill or a full disk is deleted."""
    found = []
    if distributed.is_main():
        steps = {p: p.name.removeprefix("checkpoint-") for p in work.glob("checkpoint-*")}
        numbered = (p for p, step in steps.items() if step.isdecimal())
        found = sorted(numbered, key=lambda p: int(steps[p]))
        while found and (problem := _torn(found[-1])):
            shutil.rmtree(torn := found.pop())
            before = "going on from the one before it" if found else "beginning anew"
            log.warning("%s was torn (%s) and is deleted; %s", torn, problem, before)
    return distributed.broadcast(str(found[-1]) if found else None)


def due(saved: float, minutes: float = MINUTES) -> bool:
    """Whether so many minutes have gone by since the last checkpoint, at `saved` (seconds)."""
    return time.time() - saved > 60 * minutes


def seal(checkpoint: Path) -> None:
    """Write down the checksums of a checkpoint's files."""
    write_atomically(checkpoint / SUMS, json.dumps(_sums(checkpoint), indent=1).encode())


def _sums(checkpoint: Path) -> dict[str, str]:
    files = (p for p in sorted(checkpoint.rglob("*")) if p.is_file() and p.name != SUMS)
    return {path.relative_to(checkpoint).as_posix(): digest(path) for path in files}


def _torn(checkpoint: Path) -> str:
    """What is missing of a checkpoint or has changed; "" where it is whole.

    One without a seal was killed between its last file and that, or before its last file.
    """
    last = SUMS if (checkpoint / SUMS).exists() else STATE
    try:
        found = json.loads((checkpoint / last).read_bytes())
    except (OSError, ValueError) as error:
        return f"{last}: {error}"
    wrong = sorted(dict(found.items() - _sums(checkpoint).items())) if last == SUMS else []
    return f"{_some(wrong)}: not what was written" if wrong else ""
