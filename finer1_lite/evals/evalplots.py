"""Figures of an examination: accuracy with controls, length, confusion. Figures, no pyplot."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure

from finer1_lite.evals import controls, stats, tables
from finer1_lite.evals.tables import Row
from finer1_lite.metrics import SPLITS, TASKS
from finer1_lite.plots import COLOURS, INK, WIDTH, tidy

SPLIT_COLOURS = {"seen": COLOURS["tapo"], "unseen": COLOURS["sft"]}
STYLES = ("o-", "s--", "^:", "D-.", "v-")
MAX_CLASSES = 60  # a confusion matrix with more is unreadable


def accuracy_points(rows: Sequence[Row]) -> Figure:
    """Every answerer's accuracy with its 95 % interval, seen and unseen; controls as lines."""
    found = {task: tables.groups(rows, task) for task in TASKS}
    found = {task: groups for task, groups in found.items() if groups}
    height = 1.2 + 0.34 * max((len(g) for g in found.values()), default=1)
    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    axes = np.atleast_1d(figure.subplots(1, max(len(found), 1), squeeze=False)[0])
    for axis, (task, groups) in zip(axes, found.items()):
        for y, group in enumerate(groups):
            for split, shift in zip(SPLITS, (-0.13, 0.13)):
                _point(axis, tables.of_split(group.rows, split), y + shift, SPLIT_COLOURS[split])
        if task == "closed":
            _control_lines(axis, max((g.rows for g in groups), key=len))
        names = [f"{g.label[:40]} ({g.prompt})".replace("$", r"\$") for g in groups]
        axis.set_yticks(range(len(groups)), names, fontsize=8)
        axis.set(xlim=(-2, 102), xlabel="right answers, %", title=f"{task} world")
        axis.invert_yaxis()
        tidy(axis)
    for split in SPLITS:
        axes[0].plot([], [], "o", color=SPLIT_COLOURS[split], label=f"{split} classes")
    figure.legend(loc="outside lower center", ncols=5, frameon=False, fontsize=8)
    return figure


def _point(axis, rows: Sequence[Row], y: float, colour: str) -> None:
    cell = tables.cell(rows)
    if cell:
        x = 100 * cell["accuracy"]
        spread = [[max(x - 100 * cell["low"], 0)], [max(100 * cell["high"] - x, 0)]]
        axis.errorbar(x, y, xerr=spread, fmt="o", color=colour, markersize=4, capsize=2, lw=1)


def _control_lines(axis, asked: Sequence[Row]) -> None:
    questions = [(r["dataset"] + r["split"], r["options"], r["label"]) for r in asked]
    for (name, control), style in zip(controls.CONTROLS.items(), ("-", "--", ":")):
        share = 100 * float(np.mean(control(questions)))
        axis.axvline(share, color=INK, linestyle=style, lw=1, label=name)


def length_curve(rows: Sequence[Row]) -> Figure:
    """Accuracy in five bins of the answer's length: a colour a student, a dash a prompt."""
    figure = Figure(figsize=(WIDTH, 3.6), layout="constrained")
    axes = figure.subplots(1, len(TASKS), sharey=True)
    lines = {}
    for axis, task in zip(axes, TASKS):
        students = [g for g in tables.groups(rows, task) if g.picture and g.prompt != "none"]
        models, asked = (
            list(dict.fromkeys(getattr(g, key) for g in students)) for key in ("model", "prompt")
        )
        for group in students:
            colour = f"C{models.index(group.model)}"
            style = STYLES[asked.index(group.prompt) % len(STYLES)]
            bins = stats.by_length(
                [r["tokens"] for r in group.rows], [r["correct"] for r in group.rows]
            )
            x = [(low + high) / 2 for low, high, _, _ in bins]
            label = f"{group.label[:40]} ({group.prompt})".replace("$", r"\$")
            y = [100 * ok / n for _, _, ok, n in bins]
            lines[label] = axis.plot(x, y, style, color=colour, ms=3, lw=1)[0]
        axis.set(title=f"{task} world", xlabel="tokens of the answer", ylim=(-3, 103))
        tidy(axis)
    axes[0].set_ylabel("right answers, %")
    place = {"loc": "outside lower center", "ncols": 3, "frameon": False, "fontsize": 8}
    figure.legend(lines.values(), lines.keys(), **place)
    return figure


def confusion_figure(rows: Sequence[Row]) -> Figure | None:
    """Who is called what, classes sorted by group; the last column is "no class".

    None where there are more classes than can be read.
    """
    group_of = {r["label"]: r["group"] for r in rows}
    classes = sorted(group_of, key=lambda c: (group_of[c], c))
    if not 2 <= len(classes) <= MAX_CLASSES:
        return None
    counts = stats.confusion([r["label"] for r in rows], [r["named"] for r in rows], classes)
    shares = counts / counts.sum(1, keepdims=True)
    figure = Figure(figsize=(WIDTH * 0.75, WIDTH * 0.7), layout="constrained")
    axis = figure.subplots()
    image = axis.imshow(shares, cmap="Blues", vmin=0, vmax=1, aspect="auto")
    names = [name.replace("$", r"\$")[:28] for name in classes]
    size = 7 if len(classes) <= 30 else 5
    axis.set_yticks(range(len(classes)), names, fontsize=size)
    axis.set_xticks(range(len(classes) + 1), [*names, "no class"], fontsize=size, rotation=90)
    for i in range(1, len(classes)):
        if group_of[classes[i]] != group_of[classes[i - 1]]:
            axis.axhline(i - 0.5, color=INK, lw=0.5)
            axis.axvline(i - 0.5, color=INK, lw=0.5)
    axis.set(ylabel="right class", xlabel="named")
    figure.colorbar(image, label="share of the class's answers", shrink=0.6)
    return figure
