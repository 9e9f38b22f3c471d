"""Rewards of one's own, by name: `MODULE:FUNCTION=WEIGHT`, with the signature that TRL calls."""

import importlib
import inspect
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from finer1_lite.runtime.files import require_none

Weighted = tuple[Callable[..., Sequence[float | None]], float]


def load(asked: str) -> dict[str, Weighted]:
    """MODULE:FUNCTION -> (function, weight) of each that is asked for, with spaces between.

    A module is installed or lies in the working directory. DataError lists all that fail.
    """
    found: dict[str, Weighted] = {}
    problems = []
    for item in asked.split():
        name, _, weight = item.partition("=")
        try:
            if name in found:
                raise ValueError("is asked for twice: add up its weights")
            found[name] = _import(name), _number(weight)
        except Exception as error:  # whatever a module does when it is imported
            problems.append(f"{item}: {type(error).__name__}: {error}")
    where = f"no such rewards; write MODULE:FUNCTION=WEIGHT, MODULE installed or in {Path.cwd()}:"
    require_none(problems, where)
    return found


def _number(said: object) -> float:
    if not math.isfinite(float(said)):
        raise ValueError(f"{said} is no finite number")
    return float(said)


def _import(name: str) -> Callable[..., Sequence[float | None]]:
    """The function. Raises what the import raises, or TypeError where it is none."""
    if not {"", str(Path.cwd())} & set(sys.path):
        sys.path.append(str(Path.cwd()))
    module, _, function = name.partition(":")
    found = getattr(importlib.import_module(module), function)
    if not callable(found) or inspect.iscoroutinefunction(found):
        raise TypeError(f"no plain function but {found!r}")
    return found


def pay(
    asked: Mapping[str, Weighted], completions: Sequence[str], columns: Mapping[str, Sequence]
) -> dict[str, list[float]]:
    """What each function pays each completion, before its weight; nan where it says None.

    It is called as TRL does: completions are lists of one message, columns have an entry each.
    DataError lists every function that fails, pays too few or many, or no finite number.
    """
    chats = [[{"role": "assistant", "content": text}] for text in completions]
    paid: dict[str, list[float]] = {}
    problems = []
    for name, (function, _) in asked.items():
        try:
            said = function(completions=chats, **columns)
            paid[name] = [math.nan if x is None else _number(x) for x in said]
            if len(said) != len(chats):
                raise ValueError(f"{len(said)} rewards for {len(chats)} completions")
        except Exception as error:
            problems.append(f"{name}: {type(error).__name__}: {error}")
    require_none(problems, "rewards that cannot be paid:")
    return paid
