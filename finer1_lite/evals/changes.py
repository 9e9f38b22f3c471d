"""Rows of an analysis (`analysis.parts`) -> what changed, as numbers and tables. Pure.

A row is one thing that was measured once: measure, when (before, after), item, and
correct; rows of faithfulness have changes and follows, rows of CKA a value.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from finer1_lite.evals.tables import percent, points, text_table
from finer1_lite.metrics import bootstrap_over_worlds, mcnemar, wilson

WHENS = ("before", "after")
FAITH = "faithfulness, "  # how the measures of faithfulness begin


def share_of(right: Sequence[bool]) -> dict:
    """{"share", "low", "high", "n"} with Wilson's 95 % interval; {"n": 0} of nothing."""
    if not len(right):
        return {"n": 0}
    low, high = wilson(sum(right), len(right))
    return {"share": sum(right) / len(right), "low": low, "high": high, "n": len(right)}


def change(before: Sequence[bool], after: Sequence[bool]) -> dict:
    """Both shares, their difference with its interval, and McNemar's exact p, same things."""
    gained, lost, p = mcnemar(after, before)
    found = {"before": share_of(before), "after": share_of(after)}
    found |= {"gained": gained, "lost": lost, "p": p}
    if len(before):
        grids = ([np.array([right], dtype=float)] for right in (after, before))
        found["difference"] = bootstrap_over_worlds(*grids)
    return found


def summary(rows: Sequence[Mapping]) -> dict:
    """Measure -> `change`, or value of CKA; "faithfulness <when>" -> shares."""
    found: dict = {}
    for measure in dict.fromkeys(row["measure"] for row in rows):
        own = [row for row in rows if row["measure"] == measure]
        if "value" in own[0]:
            found[measure] = own[0]["value"]
        elif measure.startswith(FAITH):
            for when in WHENS:
                part = [row for row in own if row["when"] == when]
                cell = {key: share_of([r[key] for r in part]) for key in ("changes", "follows")}
                name = measure.removeprefix(FAITH)
                found.setdefault(f"faithfulness {when}", {})[name] = cell
        else:
            sides = [{r["item"]: r["correct"] for r in own if r["when"] == when} for when in WHENS]
            both = [item for item in sides[0] if item in sides[1]]
            found[measure] = change(*([side[item] for item in both] for side in sides))
    return found


def tables(found: Mapping) -> dict[str, pd.DataFrame]:
    """Heading -> table of what `summary` returned; those with nothing in them are empty."""
    lines, moved, faith = [], [], []
    for name, cell in found.items():
        if not isinstance(cell, Mapping):
            moved.append({"features": name, "linear CKA": f"{cell:.3f}"})
        elif "before" in cell:
            line = {"measured": name} | {f"{when}, %": _share(cell[when]) for when in WHENS}
            over = points(cell["difference"]) if "difference" in cell else ""
            line |= {"difference, points": over}
            line |= {"gained / lost": f"{cell['gained']} / {cell['lost']}"}
            lines.append(line | {"McNemar p": f"{cell['p']:.3g}", "n": str(cell["before"]["n"])})
        for way, shares in cell.items() if name.startswith("faithfulness ") else ():
            line = {"training": name.removeprefix("faithfulness "), "what was done": way}
            line |= {f"answer {key}, %": _share(shares[key]) for key in ("changes", "follows")}
            faith.append(line | {"n": str(shares["changes"]["n"])})
    return {
        "Better use of knowledge, or more?": text_table(lines),
        "How far features moved": text_table(moved),
        "Faithfulness": text_table(faith),
    }


def _share(cell: Mapping) -> str:
    return percent(cell["share"], cell) if cell["n"] else "nothing to ask"
