"""When memory runs out in the middle of a training: again, with less at a time.

Nothing else changes by it: losses are sums over micro-batches, and each completion's random
numbers are its own. What once was too much is remembered in the checkpoints.
"""

import logging
from collections.abc import Callable
from typing import Any

import torch
from accelerate.utils.memory import clear_device_cache, should_reduce_batch_size

from finer1_lite.runtime import distributed

log = logging.getLogger("finer1_lite")


class Limits:
    """How much at a time proved to fit: a number for each kind of work."""

    def __init__(self, limits: dict[str, int] | None = None) -> None:
        self.limits = dict(limits or {})

    def at_once(self, kind: str, wished: int) -> int:
        """As much as wished, or the less that fits."""
        return min(wished, self.limits.get(kind, wished))

    def fit(
        self, kind: str, wished: int, call: Callable[[int], Any], lower: str, together: bool = False
    ) -> Any:
        """call(size), again with half the size wherever memory runs out.

        together: where it runs out in any process, all call again. Raises MemoryError, saying
        what to lower, where one at a time is too much.
        """
        while True:
            size = self.at_once(kind, wished)
            value = None
            problem = ""
            try:
                value = call(size)
            except RuntimeError as error:
                problem = shortage(error)
            failed = {"failed": bool(problem)}
            if not (distributed.sum_over_processes(failed) if together else failed)["failed"]:
                return value
            value = None
            self.halve(kind, size, problem or "in another process", lower)

    def halve(self, kind: str, tried: int, problem: str, lower: str) -> None:
        """Half as much from now on; frees what the failed call held. MemoryError below one.

        Call it when the error is let go: its traceback holds the tensors that have to be freed.
        """
        if tried <= 1:
            raise MemoryError(f"out of memory with {kind} at 1 ({problem}): lower {lower}")
        self.limits[kind] = tried // 2
        log.warning("out of memory: %s %d -> %d, step repeated", kind, tried, tried // 2)
        clear_device_cache(garbage_collection=True)

    def state_dict(self) -> dict[str, int]:
        """What a checkpoint keeps."""
        return dict(self.limits)

    def load_state_dict(self, state: dict[str, int]) -> None:
        """What a checkpoint kept."""
        self.limits = dict(state)


def shortage(error: RuntimeError) -> str:
    """A line that says how memory ran out; any other error is raised again."""
    if not isinstance(error, torch.OutOfMemoryError) and not should_reduce_batch_size(error):
        raise error
    return str(error).strip().split("\n")[0] or "no more memory"
