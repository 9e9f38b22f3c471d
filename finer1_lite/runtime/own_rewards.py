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

    A module is looked for among the installed ones and in the working directory. DataError
    lists all that cannot be had.
    """
    found: dict[str, Weighted] = {}
    problems = []
    for item in asked.split():
        name, _, number = item.partition("=")
        try:
            weight = float(number)
        except ValueError:
            weight = math.nan
        module, _, function = name.partition(":")
        if not (module and function and math.isfinite(weight)):
            problems.append(f"{item}: write MODULE:FUNCTION=WEIGHT, such as lengths:short=0.2")
        elif name in found:
            problems.append(f"{name} is asked for twice: add up its weights")
        else:
            try:
                found[name] = (_import(module, function), weight)
            except Exception as error:  # whatever the module does when it is imported
                problems.append(f"{name}: {type(error).__name__}: {error}")
    where = f"no such rewards; a module is installed, or lies in {Path.cwd()}:"
    require_none(problems, where)
    return found


def _import(module: str, function: str) -> Callable[..., Sequence[float | None]]:
    """The function. Raises what the import raises, or TypeError where it is none."""
    if not {"", str(Path.cwd())} & set(sys.path):
        sys.path.append(str(Path.cwd()))
    found = getattr(importlib.import_module(module), function)
    if not callable(found) or inspect.iscoroutinefunction(found):
        raise TypeError(f"is no plain function but {found!r}")
    return found


def pay(
    asked: Mapping[str, Weighted], completions: Sequence[str], columns: Mapping[str, Sequence]
) -> dict[str, list[float]]:
    """What each function pays each completion, before its weight; nan where it says None.

    A function is called with what TRL gives it: completions as lists of one message, and columns
    that have an entry a completion. DataError lists every function that fails, pays another
    number of completions, or pays what is no finite number.
    """
    chats = [[{"role": "assistant", "content": text}] for text in completions]
    paid: dict[str, list[float]] = {}
    problems = []
    for name, (function, _) in asked.items():
        try:
            said = [None if x is None else float(x) for x in function(completions=chats, **columns)]
        except Exception as error:
            problems.append(f"{name} fails: {type(error).__name__}: {error}")
            continue
        paid[name] = [math.nan if x is None else x for x in said]
        wrong = [x for x in said if x is not None and not math.isfinite(x)]
        if len(said) != len(completions):
            problems.append(f"{name} pays {len(said)} of {len(completions)} completions")
        elif wrong:
            problems.append(f"{name} pays {', '.join(map(str, wrong))}: finite numbers, or None")
    require_none(problems, "rewards that cannot be paid:")
    return paid
