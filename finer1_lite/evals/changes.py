"""Rows of an analysis (`analysis.measure`) -> what changed, as numbers, tables and a figure. Pure.

A row is one thing that was measured once: measure, when (before, after, control), item, and
correct; rows of faithfulness have changes and follows, rows of CKA a value.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure

from finer1_lite.evals import stats
from finer1_lite.evals.evalplots import SPLIT_COLOURS
from finer1_lite.evals.findings import points
from finer1_lite.evals.pages import Block, Heading, Table, Text
from finer1_lite.metrics import paired_bootstrap, wilson
from finer1_lite.plots import INK, WIDTH, tidy

WHENS = ("before", "after")
FAITH = "faithfulness, "  # how the measures of faithfulness begin
Row = Mapping
TEXT = (
    "The same things before and after training. Linear probe: a ridge classifier on frozen "
    "features, fitted on half of the pictures, read on the other half, so that it says what is "
    "already readable. Quiz: a name asked for in words, no picture. Covered mark: a mark under a "
    "patch, which the others tell; its controls count marks and see nothing. McNemar's exact test "
    "and the interval of the difference are about the same things on both sides."
)
FAITH_TEXT = (
    "Of the pictures named rightly at first (and citing such a mark). Edited marks: those in which "
    "the nearest other species differs are written into the analysis; follows: the answer is then "
    "that species. Swapped picture: a picture of that species instead. Chain kept: the picture is "
    "swapped behind the unchanged analysis; follows: the answer stays with the analysis."
)
CKA_TEXT = "How alike features are before and after, 0 to 1; 1 up to rotation, shift and scale."


def share_of(right: Sequence[bool]) -> dict:
    """{"share", "low", "high", "n"} with Wilson's 95 % interval; {"n": 0} of nothing."""
    if not len(right):
        return {"n": 0}
    low, high = wilson(sum(right), len(right))
    return {"share": sum(right) / len(right), "low": low, "high": high, "n": len(right)}


def change(before: Sequence[bool], after: Sequence[bool]) -> dict:
    """Both shares, their difference with its interval, and McNemar's exact p, same things."""
    gained, lost, p = stats.mcnemar(after, before)
    found = {"before": share_of(before), "after": share_of(after)}
    found |= {"gained": gained, "lost": lost, "p": p}
    if len(before):
        grids = (np.array([list(map(float, right))]) for right in (after, before))
        found["difference"] = dict(zip(("mean", "low", "high"), paired_bootstrap(*grids)))
    return found


def summary(rows: Sequence[Row]) -> dict:
    """Measure -> `change`, value of CKA, or share of a control; "faithfulness <when>" -> shares."""
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
        elif own[0]["when"] == "control":
            found[measure] = share_of([row["correct"] for row in own])
        else:
            found[measure] = change(*_paired(own))
    return found


def _paired(rows: Sequence[Row]) -> tuple[list[bool], list[bool]]:
    """(before, after) of the things that both have, in the order of the first."""
    sides = [{r["item"]: r["correct"] for r in rows if r["when"] == when} for when in WHENS]
    both = [item for item in sides[0] if item in sides[1]]
    return tuple([side[item] for item in both] for side in sides)


# --- tables --------------------------------------------------------------------------------


def blocks(rows: Sequence[Row]) -> list[Block]:
    """The tables of an analysis."""
    found = summary(rows)
    lines = [_line(name, cell) for name, cell in found.items() if "before" in _keys(cell)]
    lines += [
        (name, _shown(cell), "", "", "", "", str(cell["n"]))
        for name, cell in found.items()
        if "share" in _keys(cell)
    ]
    head = (
        "measured",
        "before, %",
        "after, %",
        "difference, points",
        "gained / lost",
        "McNemar p",
        "n",
    )
    shown: list[Block] = [Heading("Better use of knowledge, or more?"), Text(TEXT)]
    shown.append(Table(head, lines))
    values = [(name, f"{v:.3f}") for name, v in found.items() if isinstance(v, float)]
    if values:
        shown += [
            Heading("How far features moved"),
            Text(CKA_TEXT),
            Table(("features", "linear CKA"), values),
        ]
    faith = [
        (when, name, _shown(cell["changes"]), _shown(cell["follows"]), str(cell["changes"]["n"]))
        for when in WHENS
        for name, cell in found.get(f"faithfulness {when}", {}).items()
    ]
    if faith:
        head = ("training", "what was done", "answer changes, %", "answer follows, %", "n")
        shown += [Heading("Faithfulness"), Text(FAITH_TEXT), Table(head, faith)]
    return shown


def _keys(cell: object) -> Mapping:
    return cell if isinstance(cell, Mapping) else {}


def _line(name: str, cell: Mapping) -> tuple[str, ...]:
    difference = points(cell["difference"]) if "difference" in cell else ""
    return (
        name,
        _shown(cell["before"]),
        _shown(cell["after"]),
        difference,
        f"{cell['gained']} / {cell['lost']}",
        f"{cell['p']:.3g}",
        str(cell["before"]["n"]),
    )


def _shown(cell: Mapping) -> str:
    if not cell["n"]:
        return "nothing to ask"
    low, high = 100 * cell["low"], 100 * cell["high"]
    return f"{100 * cell['share']:.1f} [{low:.1f}, {high:.1f}]"


# --- figure --------------------------------------------------------------------------------


def figure(rows: Sequence[Row]) -> Figure:
    """Each measurement before and after training, with 95 % intervals; controls as crosses."""
    found = summary(rows)
    named = [(n, c) for n, c in found.items() if {"before", "share"} & set(_keys(c))]
    drawing = Figure(figsize=(WIDTH, 1.2 + 0.34 * max(len(named), 1)), layout="constrained")
    axis = drawing.subplots()
    colours = dict(zip(WHENS, SPLIT_COLOURS.values()))
    for y, (_, cell) in enumerate(named):
        if "share" in cell:
            axis.plot(100 * cell["share"], y, "x", color=INK)
            continue
        for when, shift in zip(WHENS, (-0.13, 0.13)):
            if cell[when]["n"]:
                low, x, high = (100 * cell[when][key] for key in ("low", "share", "high"))
                axis.errorbar(
                    x,
                    y + shift,
                    xerr=[[max(x - low, 0)], [max(high - x, 0)]],
                    fmt="o",
                    color=colours[when],
                    markersize=4,
                    capsize=2,
                    lw=1,
                )
    axis.set_yticks(range(len(named)), [name for name, _ in named], fontsize=8)
    axis.set(xlim=(-2, 102), xlabel="right, %")
    axis.invert_yaxis()
    tidy(axis)
    for when in WHENS:
        axis.plot([], [], "o", color=colours[when], label=f"{when} training")
    axis.plot([], [], "x", color=INK, label="control")
    drawing.legend(loc="outside lower center", ncols=3, frameon=False, fontsize=8)
    return drawing
