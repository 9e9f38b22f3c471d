"""Figures of evaluations, analyses and ablations, in the look of `plots`."""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from finer1_lite import plots
from finer1_lite.metrics import SPLITS, STAGES

MAX_CLASSES = 60  # a confusion matrix with more is unreadable


def ablation(found: Mapping) -> Figure:
    """Differences to SFT on seen and unseen classes, a line a row, with 95 % intervals.

    found: as `ablate.measure` returns it. Filled dots: the interval leaves out zero.
    """
    rows = [cell for cell in found.values() if "over_sft" in cell]
    figure, axes = plots.panels(SPLITS, len(rows), 0.36)
    for axis, split in zip(axes, SPLITS, strict=True):
        for y, cell in enumerate(rows):
            over = cell["over_sft"][split]
            colour = plots.COLOURS["tapo"] if cell["label"] == STAGES["tapo"].model else plots.INK
            inside = "white" if over["low"] <= 0 <= over["high"] else colour
            plots.interval(axis, y, over, "mean", colour, inside)
        axis.axvline(0, color=plots.INK, linewidth=0.8, linestyle="--")
        axis.set_title(f"{split} classes")
        plots.name_lines(axis, [cell["label"] for cell in rows], "points over SFT (open world)")
    return figure


SHARES = ("accuracy", "reason")  # of a row: right, and right for its reason
STEPS = {  # of a training step: key -> title
    "accuracy": "rollouts right, %",
    "right_and_agrees": "right for their reason, %",
    "groups_kept": "groups kept",
}
DAPO, TAPO = {"color": plots.INK}, {"color": plots.COLOURS["tapo"]}
CHAINS = {  # rows whose chains are compared, and how they are drawn
    "sft": {"color": plots.COLOURS["sft"], "linestyle": "-", "marker": "o"},
    "dapo": DAPO | {"linestyle": "-", "marker": "o"},
    "dapo_agreement": DAPO | {"linestyle": "--", "marker": "s"},
    "tapo": TAPO | {"linestyle": "-", "marker": "o"},
    "tapo_quarter": TAPO | {"linestyle": ":", "marker": "v"},
    "tapo_half": TAPO | {"linestyle": "-.", "marker": "D"},
    "tapo_agreement": TAPO | {"linestyle": "--", "marker": "s"},
}


def reasons(found: Mapping) -> Figure:
    """Accuracy against the share that is right for its reason, a dot a row of `CHAINS`.

    found: as `ablate.measure` returns it.
    """
    figure = Figure(figsize=(plots.WIDTH, 4.2), layout="constrained")
    there = {name: found[name] for name in CHAINS if "reason" in found.get(name, {})}
    for axis, split in zip(figure.subplots(1, 2), SPLITS, strict=True):
        at = {name: [100 * cell[k][split] for k in SHARES] for name, cell in there.items()}
        for method in ("dapo", "tapo"):
            joined = [place for name, place in at.items() if name.startswith(method)]
            axis.plot(*np.reshape(joined, (-1, 2)).T, color=CHAINS[method]["color"], linewidth=0.8)
        for name, place in at.items():
            axis.plot(*place, **CHAINS[name])
        axis.axline((50, 50), slope=1, color=plots.INK, linewidth=0.8, linestyle="--")
        axis.set(title=f"{split} classes", xlabel="right, %", ylabel="right for its reason, %")
        axis.margins(0.1)
        plots.tidy(axis, "both")
    return _with_names(figure, there)


def steps(found: Mapping) -> Figure:
    """What rollouts earned over the steps of training, a line a row of `CHAINS`.

    found: as `ablate.measure` returns it.
    """
    figure = Figure(figsize=(plots.WIDTH, 3.4), layout="constrained")
    there = {name: found[name] for name in CHAINS if found.get(name, {}).get("steps")}
    for axis, (key, title) in zip(figure.subplots(1, 3), STEPS.items(), strict=True):
        for name, cell in there.items():
            line = pd.Series(cell["steps"][key]) * (100 if "%" in title else 1)
            mean = line.rolling(plots.running_window(len(line)), center=True, min_periods=1).mean()
            axis.plot(line.index + 1, mean, markevery=[-1], **CHAINS[name])
        axis.set(title=title, xlabel="step")
        plots.tidy(axis)
    return _with_names(figure, there)


def _with_names(figure: Figure, rows: Mapping) -> Figure:
    keys = [Line2D([], [], label=cell["label"], **CHAINS[name]) for name, cell in rows.items()]
    return plots.with_legend(figure, keys)


def changes(found: Mapping) -> Figure:
    """Each measurement before and after training with 95 % intervals.

    found: as `changes.summary` returns it.
    """
    cells = {n: cell for n, cell in found.items() if isinstance(cell, Mapping) and "before" in cell}
    figure, (axis,) = plots.panels(("all",), len(cells), 0.34)
    handles = []
    for when, colour, shift in zip(("after", "before"), plots.PAIR, (0.15, -0.15), strict=True):
        handles.insert(0, plots.legend_key(f"{when} training", colour, marker="o"))
        for y, cell in enumerate(cells.values()):
            if cell[when]["n"]:
                plots.interval(axis, y + shift, cell[when], "share", colour)
    axis.set_xlim(-2, 102)
    plots.name_lines(axis, cells, "right, %")
    return plots.with_legend(figure, handles)


def confusion(rows: pd.DataFrame) -> Figure | None:
    """Who is called what, classes sorted by group; the last column is "no class".

    rows: of one answerer and task. None where there are more classes than can be read.
    """
    groups = rows.groupby("label")["group"].first().reset_index().sort_values(["group", "label"])
    names, group = groups["label"].tolist(), groups["group"].to_numpy()
    if not 2 <= len(names) <= MAX_CLASSES:
        return None
    named = rows["named"].where(rows["named"].isin(names), "no class")
    shares = pd.crosstab(rows["label"], named, normalize="index")
    shares = shares.reindex(index=names, columns=[*names, "no class"], fill_value=0)
    figure = Figure(figsize=(plots.WIDTH * 0.8, plots.WIDTH * 0.75), layout="constrained")
    axis = figure.subplots()
    image = axis.imshow(shares, cmap="Blues", vmin=0, vmax=1, aspect="auto")
    size, shown = 7 if len(names) <= 30 else 5, [plots.plain(name, 28) for name in names]
    axis.set_yticks(range(len(names)), shown, fontsize=size)
    axis.set_xticks(range(len(names) + 1), [*shown, "no class"], fontsize=size, rotation=90)
    for place in np.flatnonzero(group[1:] != group[:-1]) + 0.5:
        axis.axhline(place, color=plots.INK, lw=0.5)
        axis.axvline(place, color=plots.INK, lw=0.5)
    axis.set(ylabel="right class", xlabel="named")
    figure.colorbar(image, label="share of the class's answers", shrink=0.6)
    return figure


def bottleneck(
    shares: pd.DataFrame, scores: pd.DataFrame, kept: Sequence[str], beta: float
) -> Figure:
    """What the information bottleneck keeps of a class, and what its price beta does.

    Left: shares, the share of a class's descriptions (columns) that say a concept (rows). Right:
    scores, I(concept; class) - beta I(concept; picture) over beta (columns); a concept is kept
    while that is above 0 and the class says it more often than the others.
    """
    colours = [plots.COLOURS["tapo" if name in kept else "base"] for name in shares.index]
    figure = Figure(figsize=(plots.WIDTH, 1.2 + 0.26 * len(shares)), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(1, 1.2))
    left.imshow(shares, cmap="Greys", vmin=0, vmax=1.4, aspect="auto")
    for (row, column), share in np.ndenumerate(shares):
        left.text(column, row, f"{100 * share:.0f}", ha="center", va="center", fontsize=8)
    names = [name.replace(" ", "\n") for name in shares.columns]
    left.set_xticks(range(len(names)), names, fontsize=8)
    left.set_yticks(range(len(shares)), shares.index, fontsize=8)
    left.set_title("% of descriptions that say it (blue: kept)", fontsize=9)
    for label, colour, line in zip(left.get_yticklabels(), colours, scores.to_numpy(), strict=True):
        label.set_color(colour)
        right.plot(scores.columns, line, color=colour, linewidth=1.2)
    right.axhline(0, color=plots.INK, linewidth=0.8)
    right.axvline(beta, color=plots.PALE, linewidth=4, zorder=0)
    right.set_xlabel("beta: price of a bit about the single picture")
    right.set_title("I(concept; class) - beta I(concept; picture), bits", fontsize=9)
    return figure
