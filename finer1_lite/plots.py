"""Figures of a run. Each function returns a matplotlib Figure and leaves pyplot alone.

Sized for a page about 900 pixels wide. Colours are Okabe and Ito's, which stay apart for
the common forms of colour blindness.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from PIL import Image

from finer1_lite.metrics import SPLITS, STAGES, TASKS, cells_of

WIDTH = 9.0  # inches: 900 pixels at 100 dots an inch
STAGE_NAMES = {
    "base": "base",
    "base_think": "base (chain prompt)",
    "sft": "SFT",
    "tapo": "TAPO",
}
COLOURS = {"base": "#999999", "base_think": "#56B4E9", "sft": "#E69F00", "tapo": "#0072B2"}
INK, PALE = "#333333", "#dddddd"
_SECOND = "#D55E00"  # a panel's second line
_TITLE_LINES = 2

Logs = Mapping[int, Sequence[Mapping]]  # training seed -> rows of its log


def accuracy_bars(metrics: Mapping) -> Figure:
    """Accuracy of each stage on seen and unseen classes, open beside closed world.

    metrics: as `metrics.summarise` returns it. Bars are means over training seeds, dots
    single seeds, whiskers 95 % intervals; cells that are missing leave a gap.
    """
    figure = Figure(figsize=(WIDTH, 4.2), layout="constrained")
    axes = figure.subplots(1, len(TASKS), sharey=True)
    present = [stage for stage in STAGES if stage in metrics]
    chances = [_task_bars(axis, metrics, present, task) for axis, task in zip(axes, TASKS)]
    axes[0].set_ylabel("right answers, %")
    handles = [Patch(color=COLOURS[stage], label=STAGE_NAMES[stage]) for stage in present]
    handles.append(Line2D([], [], color=INK, marker="|", markersize=8, label="95 % interval"))
    if any(len(cell["seeds"]) > 1 for _, _, cell in cells_of(metrics, present)):
        handles.append(_dot("one training seed"))
    chance = next((c for c in chances if c is not None), None)
    if chance is not None:
        label = f"chance, {100 * chance:.0f} %"
        handles.append(Line2D([], [], color=INK, linestyle="--", linewidth=1, label=label))
    figure.legend(handles=handles, loc="outside lower center", ncols=4, frameon=False, fontsize=9)
    return figure


def _task_bars(axis: Axes, metrics: Mapping, stages: Sequence[str], task: str) -> float | None:
    """Draw one panel; return the chance level that it shows, if any."""
    width = 0.8 / max(len(stages), 1)
    chance = None
    for stage, split, cell in cells_of(metrics, stages, (task,)):
        offset = stages.index(stage) - (len(stages) - 1) / 2
        x, height = SPLITS.index(split) + offset * width, 100 * cell["accuracy"]
        axis.bar(x, height, 0.9 * width, color=COLOURS[stage], zorder=2)
        whisker = [[height - 100 * cell["low"]], [100 * cell["high"] - height]]
        axis.errorbar(x, height, np.maximum(whisker, 0), color=INK, capsize=3, lw=1, zorder=4)
        seeds = [100 * value for value in cell["seeds"]]
        if len(seeds) > 1:
            spread = np.linspace(-0.22, 0.22, len(seeds)) * width
            style = {"s": 14, "color": "white", "edgecolors": INK, "linewidths": 0.8}
            axis.scatter(x + spread, seeds, zorder=5, clip_on=False, **style)
        top = max(100 * cell["high"], *seeds)
        axis.text(x, top + 1.5, f"{height:.0f}", ha="center", va="bottom", fontsize=9, color=INK)
        if task == "closed":
            chance = cell.get("chance", 0.25)
    if chance is not None:
        axis.axhline(100 * chance, color=INK, linestyle="--", linewidth=1, zorder=3)
    axis.set(title=f"{task} world", ylim=(0, 112), xlim=(-0.5, len(SPLITS) - 0.5))
    axis.set_xticks(range(len(SPLITS)), [f"{split} classes" for split in SPLITS])
    axis.set_yticks(range(0, 101, 20))
    tidy(axis)
    return chance


def ablation(found: Mapping) -> Figure:
    """Differences to SFT on seen and unseen classes, a line a row, with 95 % intervals.

    found: as `ablate.measure` returns it. Filled dots: the interval leaves out zero.
    """
    rows = [cell for cell in found.values() if "over_sft" in cell]
    figure = Figure(figsize=(WIDTH, 1.2 + 0.36 * len(rows)), layout="constrained")
    axes = figure.subplots(1, len(SPLITS), sharey=True)
    for axis, split in zip(axes, SPLITS):
        for place, cell in enumerate(rows):
            over = cell["over_sft"][split]
            mean, low, high = (100 * over[key] for key in ("mean", "low", "high"))
            colour = COLOURS["tapo"] if cell["label"] == STAGE_NAMES["tapo"] else INK
            inside = colour if low > 0 or high < 0 else "white"
            axis.plot([low, high], [place, place], color=colour, linewidth=1.5)
            axis.plot(mean, place, "o", color=colour, markerfacecolor=inside)
        axis.axvline(0, color=INK, linewidth=0.8, linestyle="--")
        axis.set_title(f"{split} classes", fontsize=10)
        axis.set_xlabel("points over SFT (open world)")
        tidy(axis)
    axes[0].set_yticks(range(len(rows)), [cell["label"] for cell in rows])
    axes[0].invert_yaxis()
    return figure


@dataclass(frozen=True)
class _Panel:
    title: str
    stage: str
    lines: tuple[tuple[str, Callable[[Mapping], float | None]], ...]  # (label, row -> value)
    percent: bool = False


def _key(name: str) -> Callable[[Mapping], float | None]:
    return lambda row: row.get(name)


def _share_kept(row: Mapping) -> float | None:
    kept, drawn = row.get("groups_kept"), row.get("groups_drawn")
    return kept / drawn if kept is not None and drawn else None


_PANELS = (
    _Panel("SFT: loss", "sft", (("", _key("loss")),)),
    _Panel("TAPO: reward of rollouts", "tapo", (("", _key("reward")),)),
    _Panel("TAPO: rollouts right, %", "tapo", (("", _key("accuracy")),), percent=True),
    _Panel("TAPO: groups kept, %", "tapo", (("", _share_kept),), percent=True),
    _Panel(
        "TAPO: entropy, nats a token",
        "tapo",
        (("on the anchor", _key("anchor_entropy")), ("on the negative", _key("negative_entropy"))),
    ),
    _Panel("TAPO: inter-class KL (k3)", "tapo", (("", _key("inter_class_kl")),)),
    _Panel("TAPO: answer length, tokens", "tapo", (("", _key("length")),)),
    _Panel("TAPO: answers cut off, %", "tapo", (("", _key("truncated")),), percent=True),
)


def learning_curves(tapo_logs: Logs, sft_logs: Logs) -> Figure:
    """Training curves as small multiples: each seed a thin line, their mean a thick one.

    Rows as in log.jsonl; missing keys and values that are not finite leave gaps, a step
    logged twice (a resumed run) counts once, and panels without data are left out. The mean
    covers the steps that all seeds have; where it is a running mean, the axis says so.
    """
    logs = {"sft": sft_logs, "tapo": tapo_logs}
    drawn = [(p, [_series(logs[p.stage], value) for _, value in p.lines]) for p in _PANELS]
    drawn = [(panel, lines) for panel, lines in drawn if any(lines)]
    columns = min(3, max(len(drawn), 1))
    rows = max(math.ceil(len(drawn) / columns), 1)
    figure = Figure(figsize=(WIDTH, 2.3 * rows + 0.4), layout="constrained")
    figure.get_layout_engine().set(h_pad=0.12)
    axes = list(figure.subplots(rows, columns, squeeze=False).flat)
    for axis, (panel, lines) in zip(axes, drawn):
        _curves(axis, panel, lines)
    for axis in axes[len(drawn) :]:
        axis.set_axis_off()
    if not drawn:
        figure.text(0.5, 0.5, "no training logged yet", ha="center", va="center", color=INK)
        return figure
    seeds = max(len(line) for _, lines in drawn for line in lines)
    names = ("one training seed", f"mean of {seeds} seeds")
    if seeds == 1:
        names = ("each point of the one seed", "the same, averaged where the axis says so")
    styles = ({"linewidth": 0.7, "alpha": 0.6}, {"linewidth": 2.2})
    handles = [Line2D([], [], color=INK, label=n, **style) for n, style in zip(names, styles)]
    figure.legend(handles=handles, loc="outside lower center", ncols=2, frameon=False, fontsize=9)
    return figure


def _series(logs: Logs, value: Callable[[Mapping], float | None]) -> dict[int, dict[int, float]]:
    """seed -> {step: value}, finite values only; the last row of a step counts."""
    found: dict[int, dict[int, float]] = {}
    for seed, rows in sorted(logs.items()):
        points = {row["step"]: value(row) for row in rows if "step" in row}
        kept = [(s, v) for s, v in sorted(points.items()) if v is not None and math.isfinite(v)]
        if kept:
            found[seed] = dict(kept)
    return found


def _curves(axis: Axes, panel: _Panel, lines: Sequence[Mapping[int, Mapping[int, float]]]) -> None:
    window, scale = 1, 100 if panel.percent else 1
    for colour, (label, _), series in zip((COLOURS["tapo"], _SECOND), panel.lines, lines):
        colour = COLOURS["sft"] if panel.stage == "sft" else colour
        for points in series.values():
            values = scale * np.array(list(points.values()))
            axis.plot(list(points), values, color=colour, linewidth=0.7, alpha=0.6)
        steps = sorted(set.intersection(*map(set, series.values()))) if series else []
        if not steps:
            continue
        mean = scale * np.mean([[p[s] for s in steps] for p in series.values()], axis=0)
        window = max(window, running_window(len(steps)))
        mean = running_mean(mean, running_window(len(steps)))
        axis.plot(steps, mean, color=colour, linewidth=2.2, label=label)
    if len(panel.lines) > 1:
        low, high = axis.get_ylim()
        axis.set_ylim(low, high + 0.25 * (high - low))  # room for the names above the lines
        style = {"handlelength": 1, "columnspacing": 1, "borderaxespad": 0}
        axis.legend(frameon=False, fontsize=8, loc="upper center", ncols=2, **style)
    smoothed = f" (thick: running mean of {window} points)" if window > 1 else ""
    axis.set_title(panel.title, fontsize=10)
    axis.set_xlabel(f"step{smoothed}", fontsize=8)
    if panel.percent:
        axis.set_ylim(-3, 103)
    axis.locator_params(axis="x", nbins=5, integer=True)
    axis.tick_params(labelsize=8)
    tidy(axis)


def running_window(points: int) -> int:
    """How many points the thick line averages: about a twentieth of them, odd, 1 below 40."""
    return 1 if points < 40 else points // 20 // 2 * 2 + 1


def running_mean(values: np.ndarray, window: int) -> np.ndarray:
    """Centred mean over `window` values (odd); fewer at both ends. Same length."""
    ones = np.ones(window)
    return np.convolve(values, ones, "same") / np.convolve(np.ones(len(values)), ones, "same")


def photo_grid(images: Sequence[Image.Image], titles: Sequence[str], columns: int = 3) -> Figure:
    """Pictures in rows of `columns`, a title above each (cut with an ellipsis if too long)."""
    problems = []
    if len(images) != len(titles) or not images:
        problems.append(f"{len(images)} images and {len(titles)} titles: give as many, 1 at least")
    if columns < 1:
        problems.append(f"columns={columns}: give 1 or more")
    if problems:
        raise ValueError("\n- ".join(["no grid of photos:", *problems]))
    columns = min(columns, len(images))
    rows = math.ceil(len(images) / columns)
    side = min(WIDTH / columns, 3.0)
    figure = Figure(figsize=(WIDTH, rows * (side + 0.45)), layout="constrained")
    axes = list(figure.subplots(rows, columns, squeeze=False).flat)
    for axis in axes:
        axis.set_axis_off()
    for axis, image, title in zip(axes, images, titles):
        axis.imshow(np.asarray(image.convert("RGB")))
        text = _fit(title, characters=int(12.5 * WIDTH / columns))
        axis.set_title(text, fontsize=9, color=INK, parse_math=False)  # a $ is a $
    return figure


def _fit(title: str, characters: int) -> str:
    """`title` on at most two lines of so many characters; its own line breaks count."""
    lines = [part for line in title.split("\n") for part in textwrap.wrap(line, characters)]
    if len(lines) > _TITLE_LINES:
        lines = [*lines[: _TITLE_LINES - 1], lines[_TITLE_LINES - 1][: characters - 1] + "…"]
    return "\n".join(lines)


def _dot(label: str) -> Line2D:
    style = {"markerfacecolor": "white", "markeredgecolor": INK, "markersize": 4}
    return Line2D([], [], linestyle="", marker="o", label=label, **style)


def tidy(axis: Axes) -> None:
    """No frame but the axes; pale lines to read heights by."""
    for side in ("top", "right"):
        axis.spines[side].set_visible(False)
    axis.grid(axis="y", color=PALE, linewidth=0.6, zorder=0)
    axis.set_axisbelow(True)
