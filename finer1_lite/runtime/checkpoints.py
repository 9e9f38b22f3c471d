"""Weights on disk: read whole and finite, or refused; and the newest whole checkpoint."""

import hashlib
import json
import logging
import shutil
import time
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor

from finer1_lite.runtime import distributed
from finer1_lite.runtime.files import DataError, require_none, write_atomically

log = logging.getLogger("finer1_lite")

# Of a checkpoint of ours, and of transformers' Trainer, alone, on DeepSpeed, on FSDP in shards:
# one of each row. The last one is written last.
STATE = "trainer_state.json"
CHECKPOINT_FILES = (
    ("optimizer.*", "global_step*/*optim_states*", "optimizer_*/.metadata"),
    ("scheduler.*", "latest"),
    ("r*_state*",),
    ("*.safetensors", "pytorch_model_fsdp_*/.metadata"),
    (STATE,),
)
SUMS = "checksums.json"  # file -> SHA-256 of its bytes; of a checkpoint of ours
TORCH = (".bin", ".pt", ".pth", ".pkl")  # what `torch.save` writes: a zip with checksums
SHOWN = 3  # names in a message
MINUTES = 10.0  # of work that a machine which is taken away may cost
LOWER_RATE = "; lower the learning rate (--set sft.learning_rate=... or tapo.learning_rate=...)"
_place = ""  # of the training that is under way: see `stand`


class NotFinite(ValueError):
    """A loss, gradient, weight or logit is nan or inf; whatever follows from it would be, too."""


def stand(work: Path | None = None, step: int = 0, rate: float = 0.0, dtype: str = "") -> None:
    """Where a training stands from now on; work: its folder of checkpoints, None: it is over."""
    global _place
    if work:
        work = work.parent if work.name == "checkpoints" else work
        number = dtype.removeprefix("torch.")
        _place = f"{work.name}, step {step} (learning rate {rate:.3g}, {number}): "
    else:
        _place = ""


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
        raise NotFinite(f"{_place}{what}nan or inf in {_some(bad)}{count}{mend}")


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
    found = {}
    for path in files:
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        found[path.relative_to(checkpoint).as_posix()] = digest
    return found


def _torn(checkpoint: Path) -> str:
    """What is missing of a checkpoint or cannot be read; "" where it is whole."""
    for names in CHECKPOINT_FILES:
        if not any(any(checkpoint.glob(name)) for name in names):
            return f"no {' or '.join(names)}"
    for path in checkpoint.rglob("*"):
        try:
            if path.suffix == ".json":
                json.loads(path.read_bytes())
            elif path.suffix == ".safetensors":
                with safe_open(path, "pt"):
                    pass
            elif path.suffix in TORCH and zipfile.ZipFile(path).testzip():
                return f"{path.name}: a wrong checksum"
        except Exception as error:  # readers raise whatever they like on broken bytes
            return f"{path.name}: {error}"
    if (checkpoint / SUMS).exists():
        written = json.loads((checkpoint / SUMS).read_bytes())
        wrong = sorted(dict(written.items() - _sums(checkpoint).items()))
        return f"other content than was written: {_some(wrong)}" if wrong else ""
    return ""
