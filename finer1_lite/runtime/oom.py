"""When memory runs out in the middle of a training: again, with less at a time.

Nothing else changes by it: losses are sums over micro-batches, and each answer's random
numbers are its own. What once was too much is remembered in the checkpoints.
"""

import gc
import logging
from collections.abc import Callable

import torch
from accelerate.utils.memory import should_reduce_batch_size
from transformers import TrainerCallback
from transformers.trainer_callback import ExportableState

log = logging.getLogger("finer1_lite")


class Smaller(TrainerCallback, ExportableState):
    """How much at a time proved to fit: `limits`, a number for each kind of work."""

    def __init__(self, limits: dict[str, int] | None = None):
        self.limits = dict(limits or {})

    def at_once(self, kind: str, wished: int) -> int:
        return min(wished, self.limits.get(kind, wished))

    def halve(self, kind: str, tried: int, problem: str, lower: str) -> None:
        """Half as much from now on; MemoryError that says what to lower if that was one."""
        if tried <= 1:
            raise MemoryError(f"out of memory with {kind} at 1 ({problem}): lower {lower}")
        self.limits[kind] = tried // 2
        log.warning("out of memory: %s %d -> %d, step repeated", kind, tried, tried // 2)

    def state(self) -> dict:
        return {"args": {"limits": dict(self.limits)}, "attributes": {}}

    @classmethod
    def of(cls, trainer) -> "Smaller":
        """The trainer's own; a resumed trainer swaps it for the saved one."""
        return next(c for c in trainer.callback_handler.callbacks if isinstance(c, cls))


def attempt(call: Callable):
    """(what the call gives, ""), or (None, a line that says so) where memory ran out.

    The exception is let go first: its traceback holds the tensors that have to be freed.
    """
    try:
        return call(), ""
    except RuntimeError as error:
        if not isinstance(error, torch.OutOfMemoryError) and not should_reduce_batch_size(error):
            raise
        problem = str(error).strip().split("\n")[0] or "no more memory"
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return None, problem
