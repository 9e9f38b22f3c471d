"""Figures of notebooks and pages: each function returns a Figure and leaves pyplot alone.

Sized for a page about 900 pixels wide. Colours are Okabe and Ito's, which stay apart for the common
forms of colour blindness.
"""

import math
import textwrap
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from PIL import Image

from finer1_lite.metrics import SPLITS, STAGES, TASKS
from finer1_lite.runtime.files import require_none

WIDTH = 9.0  # inches: 900 pixels at 100 dots an inch
COLOURS = {"base": "#999999", "base_think": "#56B4E9", "sft": "#E69F00", "tapo": "#0072B2"}
PAIR = (COLOURS["tapo"], "#D55E00")  # seen and unseen, after and before
INK, PALE = "#333333", "#dddddd"
DASHES = ("-", "--", ":", "-.")
MAX_NUMBERS = 12  # with more answerers, no numbers beside their dots
TITLE_LINES = 2

Logs = Mapping[int, Sequence[Mapping]]  # training seed -> rows of its log


def accuracy(found: Mapping, controls: Mapping[str, float] | None = None) -> Figure:
    """Accuracy of every entry on seen and unseen classes, open beside closed world.

    found: as `metrics.scores`, `lab_scores` or `summarise` return it. Dots are means over training
    seeds with 95 % intervals, rings single seeds. controls: name -> share, lines in the closed
    world; without them the chance level that `found` knows.
    """
    names = {key: str(STAGES.get(key, key)) for key in found if key != "differences"}
    figure, axes = panels(TASKS, len(names), 0.36)
    chance, several = {}, False
    for axis, task in zip(axes, TASKS, strict=True):
        for split, colour, shift in zip(SPLITS, PAIR, (-0.17, 0.17), strict=True):
            for y, key in enumerate(names):
                if cell := found[key].get(split, {}).get(task):
                    interval(axis, y + shift, cell, "accuracy", colour)
                    several |= _seeds(axis, y + shift, cell, len(names) <= MAX_NUMBERS)
                    chance |= {"chance": cell["chance"]} if "chance" in cell else {}
        axis.set(xlim=(-2, 107), xticks=range(0, 101, 20), title=f"{task} world")
        name_lines(axis, names.values(), "right answers, %")
    handles = [legend_key(f"{s} classes", c, marker="o") for s, c in zip(SPLITS, PAIR, strict=True)]
    if several:
        handles.append(legend_key("one training seed", marker="o", ls="", markerfacecolor="white"))
    for (name, share), style in zip((controls or chance).items(), DASHES, strict=False):
        axes[-1].axvline(100 * share, color=INK, linestyle=style, linewidth=1, zorder=1)
        handles.append(legend_key(f"{name}, {100 * share:.0f} %", linestyle=style))
    return with_legend(figure, handles)


def _seeds(axis: Axes, y: float, cell: Mapping, numbered: bool) -> bool:
    """A ring for each of several training seeds, and the number; whether there are several."""
    seeds = [100 * value for value in cell["seeds"]] if len(cell["seeds"]) > 1 else []
    ring = {"s": 12, "color": "white", "edgecolors": INK, "linewidths": 0.7, "zorder": 4}
    axis.scatter(seeds, [y] * len(seeds), **ring)
    if numbered:
        end, number = max([100 * cell["high"], *seeds]) + 1.5, f"{100 * cell['accuracy']:.0f}"
        box = {"facecolor": "white", "edgecolor": "none", "pad": 0.5}  # above the lines
        axis.text(end, y, number, va="center", fontsize=8, color=INK, bbox=box)
    return bool(seeds)


def panels(names: Sequence[str], lines: int, height: float) -> tuple[Figure, Sequence[Axes]]:
    """A figure with panels side by side, all of so many lines."""
    size = (WIDTH, max(1.5 + height * lines, 2.6))
    figure = Figure(figsize=size, layout="constrained")
    return figure, figure.subplots(1, len(names), sharey=True, squeeze=False)[0]


def name_lines(axis: Axes, names: Iterable[str], label: str) -> None:
    """The names of a panel's lines, from the top, and what its dots are."""
    shown = [plain(name) for name in names]
    axis.set_yticks(range(len(shown)), shown, fontsize=9)
    axis.set(ylim=(max(len(shown), 1) - 0.5, -0.5), xlabel=label)
    tidy(axis, "x")


def interval(
    axis: Axes, y: float, cell: Mapping, share: str, colour: str, inside: str | None = None
) -> None:
    """A dot at cell[share], in per cent, with its interval."""
    low, middle, high = (100 * cell[key] for key in ("low", share, "high"))
    spread = [[max(middle - low, 0)], [max(high - middle, 0)]]
    style = {"fmt": "o", "markersize": 5, "capsize": 2.5, "lw": 1.2, "zorder": 3}
    axis.errorbar(middle, y, xerr=spread, color=colour, mfc=inside or colour, **style)


# --- learning curves -----------------------------------------------------------------------

PANELS = {  # title, which begins with the stage -> {label of the line: key of the log}
    "SFT: loss": {"": "loss"},
    "TAPO: reward of rollouts": {"": "reward"},
    "TAPO: rollouts right, %": {"all": "accuracy", "for their reason": "right_and_agrees"},
    "TAPO: groups kept, %": {"": "share_kept"},
    "TAPO: entropy, nats a token": {
        "on the anchor": "anchor_entropy",
        "on the negative": "negative_entropy",
    },
    "TAPO: inter-class KL (k3)": {"": "inter_class_kl"},
    "TAPO: completion length, tokens": {"": "length"},
    "TAPO: completions truncated, %": {"": "truncated"},
}


def learning_curves(tapo_logs: Logs, sft_logs: Logs) -> Figure:
    """Training curves as small multiples: each seed a thin line, their mean a thick one.

    Rows as in log.jsonl; missing keys and values that are not finite leave gaps, a step
    logged twice (a resumed run) counts once, and panels without data are left out. The mean
    covers the steps that all seeds have; where it is a running mean, the axis says so.
    """
    logs = {"sft": _by_step(sft_logs), "tapo": _by_step(tapo_logs)}
    drawn = []
    for title, lines in PANELS.items():
        stage = title.partition(":")[0].lower()
        series = {label: _series(logs[stage], key) for label, key in lines.items()}
        there = {label: line for label, line in series.items() if len(line)}
        drawn += [(title, COLOURS[stage], there)] if there else []
    columns = min(3, max(len(drawn), 1))
    rows = max(math.ceil(len(drawn) / columns), 1)
    figure = Figure(figsize=(WIDTH, 2.3 * rows + 0.4), layout="constrained")
    figure.get_layout_engine().set(h_pad=0.12)
    axes = list(figure.subplots(rows, columns, squeeze=False).flat)
    for axis, panel in zip(axes, drawn, strict=False):
        _curves(axis, *panel)
    for axis in axes[len(drawn) :]:
        axis.set_axis_off()
    if not drawn:
        figure.text(0.5, 0.5, "no training logged yet", ha="center", va="center", color=INK)
        return figure
    seeds = max(line.shape[1] for _, _, lines in drawn for line in lines.values())
    names = ("one training seed", f"mean of {seeds} seeds")
    if seeds == 1:
        names = ("each point of the one seed", "the same, averaged where the axis says so")
    keys = [legend_key(names[0], lw=0.7, alpha=0.6), legend_key(names[1], lw=2.2)]
    return with_legend(figure, keys)


def _by_step(logs: Logs) -> dict[int, pd.DataFrame]:
    """Seed -> its log, a row a step."""
    found = {}
    for seed, rows in sorted(logs.items()):
        log = pd.DataFrame([row for row in rows if "step" in row] or [{"step": 0}])
        log = log.drop_duplicates("step", keep="last").set_index("step").sort_index()
        if "groups_drawn" in log:
            log["share_kept"] = log["groups_kept"] / log["groups_drawn"]
        found[seed] = log
    return found


def _series(logs: Mapping[int, pd.DataFrame], key: str) -> pd.DataFrame:
    """A key's finite values: a row a step, a column a seed that has any."""
    found = pd.DataFrame({seed: log[key].astype(float) for seed, log in logs.items() if key in log})
    return found.replace([np.inf, -np.inf], np.nan).dropna(how="all").dropna(axis=1, how="all")


def _curves(axis: Axes, title: str, first: str, lines: Mapping[str, pd.DataFrame]) -> None:
    """Draw one panel."""
    window, percent = 1, title.endswith("%")
    for colour, (label, series) in zip((first, PAIR[1]), lines.items(), strict=False):
        series = series * (100 if percent else 1)
        for seed in series:
            axis.plot(series[seed].dropna(), color=colour, linewidth=0.7, alpha=0.6)
        mean = series.dropna().mean(axis=1)
        window = max(window, running_window(len(mean)))
        mean = mean.rolling(running_window(len(mean)), center=True, min_periods=1).mean()
        axis.plot(mean, color=colour, linewidth=2.2, label=label)
    if len(lines) > 1:
        low, high = axis.get_ylim()
        axis.set_ylim(low, high + 0.25 * (high - low))  # room for the names above the lines
        style = {"handlelength": 1, "columnspacing": 1, "borderaxespad": 0}
        axis.legend(frameon=False, fontsize=8, loc="upper center", ncols=2, **style)
    smoothed = f" (thick: running mean of {window} points)" if window > 1 else ""
    axis.set_title(title, fontsize=10)
    axis.set_xlabel(f"step{smoothed}", fontsize=8)
    if percent:
        axis.set_ylim(-3, 103 if len(lines) == 1 else 128)  # room for the names above the lines
        axis.set_yticks(range(0, 101, 20))
    axis.locator_params(axis="x", nbins=5, integer=True)
    axis.tick_params(labelsize=8)
    tidy(axis)


def running_window(points: int) -> int:
    """How many points the thick line averages: about a twentieth of them, odd, 1 below 40."""
    return 1 if points < 40 else points // 20 // 2 * 2 + 1


# --- photos, and what the figures share ----------------------------------------------------


def photo_grid(images: Sequence[Image.Image], titles: Sequence[str], columns: int = 3) -> Figure:
    """Pictures in rows of `columns`, a title above each (with an ellipsis if too long)."""
    problems = []
    if len(images) != len(titles) or not images:
        problems.append(f"{len(images)} images and {len(titles)} titles: give as many, 1 at least")
    if columns < 1:
        problems.append(f"columns={columns}: give 1 or more")
    require_none(problems, "no grid of photos:")
    columns = min(columns, len(images))
    rows = math.ceil(len(images) / columns)
    side = min(WIDTH / columns, 3.0)
    figure = Figure(figsize=(WIDTH, rows * (side + 0.45)), layout="constrained")
    axes = list(figure.subplots(rows, columns, squeeze=False).flat)
    for axis in axes:
        axis.set_axis_off()
    for axis, image, title in zip(axes, images, titles, strict=False):
        axis.imshow(np.asarray(image.convert("RGB")))
        text = _fit(title, int(12.5 * WIDTH / columns))
        axis.set_title(text, fontsize=9, color=INK, parse_math=False)  # a $ is a $
    return figure


def _fit(title: str, characters: int) -> str:
    """`title` on at most two lines of so many characters; its own line breaks count."""
    lines = [part for line in title.split("\n") for part in textwrap.wrap(line, characters)]
    if len(lines) > TITLE_LINES:
        lines = [*lines[: TITLE_LINES - 1], lines[TITLE_LINES - 1][: characters - 1] + "…"]
    return "\n".join(lines)


def plain(name: str, limit: int = 48) -> str:
    """A name for an axis or legend: long ones end in an ellipsis, and a $ is a $."""
    return (name if len(name) <= limit else name[: limit - 1] + "…").replace("$", r"\$")


def legend_key(label: str, colour: str = INK, **style: object) -> Line2D:
    """An entry of a legend."""
    return Line2D([], [], color=colour, label=label, **style)


def with_legend(figure: Figure, handles: Sequence[Line2D]) -> Figure:
    """The figure with one legend below its panels."""
    place = {"loc": "outside lower center", "ncols": 3, "frameon": False, "fontsize": 8}
    figure.legend(handles=list(handles), **place)
    return figure


def tidy(axis: Axes, lines: str = "y") -> None:
    """No frame but the axes; pale lines to read values by."""
    axis.spines[["top", "right"]].set_visible(False)
    axis.grid(axis=lines, color=PALE, linewidth=0.6, zorder=0)
    axis.set_axisbelow(True)
