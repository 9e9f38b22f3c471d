"""Checkpoints in a folder: the newest whole one."""

import json
import logging
import shutil
from pathlib import Path

from finer1_lite.runtime import distributed

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


def last_checkpoint(work: Path) -> str | None:
    """The newest whole checkpoint in `work`; one torn by a kill is deleted."""
    found = []
    if distributed.is_main():
        found = sorted(work.glob("checkpoint-*"), key=lambda p: int(p.name.rsplit("-", 1)[1]))
        while found and not _is_whole(found[-1]):
            shutil.rmtree(torn := found.pop())
            log.warning("%s was torn and is deleted; going on from the one before it", torn)
    return distributed.broadcast(str(found[-1]) if found else None)


def _is_whole(checkpoint: Path) -> bool:
    """Whether all files are there and the last one can be read."""
    try:
        json.loads((checkpoint / STATE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return all(any(any(checkpoint.glob(n)) for n in names) for names in CHECKPOINT_FILES)
