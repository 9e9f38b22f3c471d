"""Pieces of the notebooks that move: controls where a kernel runs, a picture everywhere else.

A piece is a function that draws (`loss_figure`) and one that shows it under its controls
(`loss_explorer`): one output of two kinds, a widget and a picture or table of the start values.
A stored notebook keeps the second only (`python notebooks/explore.py FILE...`, which also makes
pictures small), as a widget's model dies with its kernel: JupyterLab, where it trusts a notebook,
would still choose the widget ("model not found"), and with stored states an HTML page would fetch
code from the network.
"""

import base64
import html
import io
import json
import re
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import course
import ipywidgets as w
import numpy as np
import pandas as pd
import set_up
import torch
from matplotlib.figure import Figure
from PIL import Image
from scipy.stats import binom

from finer1_lite import advantages, losses, metrics, plots, rewards, triplets
from finer1_lite.chains import concepts
from finer1_lite.data import chain_text
from finer1_lite.data.statistics import wilson
from finer1_lite.species import Collection

VIEW = "application/vnd.jupyter.widget-view+json"
QUICK = 0.05  # seconds: what is drawn faster is drawn while a slider still moves
MAIN, PLAIN = plots.COLOURS["tapo"], plots.COLOURS["base"]
SYMBOLS = dict(zip(chain_text.PARTS, "◆●▲■", strict=True))
Face = Figure | str  # what a piece draws: a figure, or HTML in which foreign text is escaped


class Board(w.VBox):
    """Controls above what they change; as the last line of a cell it shows itself.

    draw(**values) -> figure or HTML; an error of it is shown as text until a value mends it. With
    the start values it raises, as any cell does.
    """

    def __init__(self, draw: Callable[..., Face], controls: Mapping[str, Any]) -> None:
        self.draw = draw
        self.controls = {name: control(name, given) for name, given in controls.items()}
        self.picture = w.Image(format="png", layout=w.Layout(max_width="100%"))
        self.words = w.HTML()  # the alt text, the HTML or the error
        start = time.perf_counter()
        self.face = self._drawn()
        quick = time.perf_counter() - start < QUICK
        self._show(self.face)
        for one in self.controls.values():
            if one.has_trait("continuous_update"):
                one.continuous_update = quick
            one.observe(self._redraw, "value")
        wrap = w.Layout(flex_flow="row wrap", max_width="1000px")
        head = w.Box([*self.controls.values()], layout=wrap)
        super().__init__([head, self.picture, self.words])

    def _drawn(self) -> tuple[bytes | None, str]:
        """(PNG or None, its alt text or the HTML) of the controls' values."""
        face = self.draw(**{name: one.value for name, one in self.controls.items()})
        if isinstance(face, str):
            return None, face
        buffer = io.BytesIO()
        face.savefig(buffer, format="png", dpi=face.dpi)
        return small(buffer.getvalue()), set_up.alt_text(face)

    def _show(self, face: tuple[bytes | None, str]) -> None:
        picture, words = face
        self.picture.layout.display = None if picture else "none"
        self.picture.value = picture or b""
        said = f'<div style="font-size:80%;line-height:1.3">{html.escape(words)}</div>'
        self.words.value = said if picture else words

    def _redraw(self, _: object) -> None:
        try:
            self._show(self._drawn())
        except Exception as problem:  # a callback's error would go to a log that nobody reads
            said = html.escape(f"{type(problem).__name__}: {problem}")
            self._show((None, f'<pre role="alert">{said}</pre>'))

    def _repr_mimebundle_(self, **_: object) -> tuple[dict[str, Any], dict[str, Any]]:
        """The widget and the face of the start values, one output; a reader shows what it can."""
        picture, words = self.face
        view = {"version_major": 2, "version_minor": 0, "model_id": self.model_id}
        if picture is None:
            plain = html.unescape(re.sub("<[^>]*>", " ", words))  # all else in it is escaped
            return {VIEW: view, "text/html": words, "text/plain": " ".join(plain.split())}, {}
        data = {VIEW: view, "image/png": base64.b64encode(picture).decode(), "text/plain": words}
        return data, {"image/png": {"alt": words}}


def control(name: str, given: Any) -> w.DOMWidget:
    """A widget, or (low, high, step, start) as a slider; labelled with the value's name."""
    if isinstance(given, tuple):
        low, high, step, start = given
        kind = w.IntSlider if all(isinstance(v, int) for v in given) else w.FloatSlider
        given = kind(value=start, min=low, max=high, step=step)
    given.description, given.style.description_width = name.replace("_", " "), "initial"
    return given


def play(draw: Callable[..., Face], **controls: Any) -> Board:
    """Show what draw(**values) returns under controls: widgets or (low, high, step, start)."""
    return Board(draw, controls)


def small(png: bytes) -> bytes:
    """The picture in 128 colours, a third of the bytes; as it is where it has a palette already."""
    picture, buffer = Image.open(io.BytesIO(png)), io.BytesIO()
    if picture.mode == "P":
        return png
    picture.convert("RGB").quantize(128).save(buffer, "PNG")
    return buffer.getvalue()


def still(notebook: dict[str, Any]) -> dict[str, Any]:
    """The notebook (nbformat 4, changed in place): small pictures, no widget, no empty output.

    An empty text is what a progress bar leaves when it is full.
    """
    notebook["metadata"].pop("widgets", None)
    for cell in notebook["cells"]:
        kept = []
        for output in cell.get("outputs", ()):
            data = output.get("data", {})
            data.pop(VIEW, None)
            if png := "".join(data.get("image/png", "")):
                data["image/png"] = base64.b64encode(small(base64.b64decode(png))).decode()
            if "data" not in output or any(map("".join, data.values())):
                kept.append(output)
        if "outputs" in cell:
            cell["outputs"] = kept
    return notebook


def _panels(count: int, high: float = 3.0) -> tuple[Figure, Any]:
    figure = Figure(figsize=(plots.WIDTH, high), dpi=80, layout="constrained")
    return figure, figure.subplots(1, count, squeeze=False)[0]


def loss_curve(ratio: torch.Tensor, advantage: float, *clips: float) -> list[np.ndarray]:
    """(surrogate, its derivative by log pi) at each ratio (N,); clips: low, high, dual."""
    logps = ratio.double().log().requires_grad_()  # of a token that had log pi_old = 0
    scale = torch.full_like(logps, advantage)
    term, _ = losses.clipped(losses.token_ratio(logps, logps > -1), logps, scale, clips)
    (slope,) = torch.autograd.grad(-term.sum(), logps)
    return [-term.detach().numpy(), slope.numpy()]


def loss_figure(advantage: float, clip_low: float, clip_high: float, clip_dual: float) -> Figure:
    """The clipped surrogate of one token over its ratio, and the push on its log-probability."""
    ratio = torch.linspace(0.0025, 4, 1599)  # no clip of the sliders lies on a point of it
    curves = loss_curve(ratio, advantage, clip_low, clip_high, clip_dual)
    flat = curves[1] == 0
    ends = np.flatnonzero(np.diff(np.pad(flat.astype(int), 1))).reshape(-1, 2)
    spans = [(float(ratio[a]), float(ratio[b - 1])) for a, b in ends]
    said = " and ".join(f"{a:.2f} to {b:.2f}" for a, b in spans) or "nowhere"
    figure, axes = _panels(2)
    figure.suptitle(f"A = {advantage:+.2f}. No gradient at ratio: {said}")
    names = ("surrogate (to grow)", "its gradient by log π")
    for axis, curve, name in zip(axes, curves, names, strict=True):
        axis.plot(ratio, advantage * ratio, "--", color=PLAIN, label="unclipped")
        axis.plot(ratio, curve, color=MAIN, linewidth=2, label="clipped")
        for at, (a, b) in enumerate(spans):
            look = {"fc": "none", "ec": plots.PALE, "hatch": "//", "lw": 0, "zorder": 0}
            axis.axvspan(a, b, label="_" * at + "flat", **look)
        axis.axvline(1, color=plots.INK, linewidth=0.6)
        axis.set(xlabel="ratio π / π_old", ylabel=name)
    axes[0].legend(frameon=False, fontsize=8)
    return figure


def loss_explorer() -> Board:
    """Advantage and clips by sliders."""
    low, high, dual = (0.0, 1.0, 0.02, 0.2), (0.0, 1.0, 0.02, 0.28), (1.5, 4.0, 0.1, 3.0)
    clips = {"clip_low": low, "clip_high": high, "clip_dual": dual}
    return play(loss_figure, advantage=(-2.0, 2.0, 0.25, 1.0), **clips)


def group_of(paid: Sequence[float], positives: int, baseline: str, scale: str) -> np.ndarray:
    """Advantages (B,) of one group; its last `positives` rollouts are of the other picture."""
    reward = torch.tensor(paid, dtype=torch.float64)
    if baseline == "picture":
        counts = (len(paid) - positives, positives)
        return advantages.picture_advantages(reward, counts, scale).numpy()
    return advantages.group_advantages(reward, len(paid), scale=scale).numpy()


def advantage_figure(paid: Sequence[float], positives: int, baseline: str, scale: str) -> Figure:
    """Rewards of a group, and what each is worth beside the others."""
    found = group_of(paid, positives, baseline, scale)
    figure, (left, right) = _panels(2, 2.8)
    counts = {"anchor": len(paid) - positives, "positive": positives}
    names = [f"{picture} {i + 1}" for picture, n in counts.items() for i in range(n)]
    for axis, values, colour in ((left, paid, PLAIN), (right, found, MAIN)):
        bars = axis.bar(names, values, color=colour, edgecolor="white")
        for bar in bars[counts["anchor"] :]:
            bar.set_hatch("//")
        axis.bar_label(bars, fmt="%.2f", fontsize=8, padding=2)
        axis.axhline(0, color=plots.INK, linewidth=0.6)
        axis.tick_params(axis="x", rotation=30, labelsize=8)
        axis.margins(y=0.2)
    left.set(ylabel="reward", ylim=(0, 1.15))
    right.set(ylabel="advantage", title="" if found.any() else "all 0: nothing is learnt")
    figure.suptitle("Rewards (left) and advantages: " + ", ".join(f"{a:+.2f}" for a in found))
    return figure


def advantage_playground(
    paid: Sequence[float] = (1, 1, 1, 0.1, 0.1, 0.1, 0.1, 0), positives: int = 4
) -> Board:
    """A slider for each reward; 0 positives: one picture, as in a group of plain GRPO."""
    sliders = {f"reward_{i + 1}": (0.0, 1.0, 0.1, round(float(r), 4)) for i, r in enumerate(paid)}
    baselines = ("group", "picture") if positives else ("group",)
    options = {"scale": ("std", "none"), "baseline": baselines}
    choices = {name: w.Dropdown(options=values) for name, values in options.items()}

    def draw(scale: str, baseline: str, **values: float) -> Figure:
        return advantage_figure([*values.values()], positives, baseline, scale)

    return play(draw, **sliders, **choices)


def textbook(right: float, n: int) -> tuple[float, float]:
    """Share p +- 1.96 sqrt(p (1 - p) / n), which may leave [0, 1]."""
    half = 1.959964 * (right / n * (1 - right / n) / n) ** 0.5
    return right / n - half, right / n + half


def coverage(kind: Callable[[float, int], tuple[float, float]], truth: Any, n: int) -> np.ndarray:
    """How probably the interval of n pictures holds the true share; truth: (T,)."""
    low, high = np.array([kind(k, n) for k in range(n + 1)]).T[..., None]
    held = (low <= truth) & (truth <= high)
    return (binom.pmf(np.arange(n + 1)[:, None], n, truth) * held).sum(0)


def interval_figure(n: int, share_right: float) -> Figure:
    """Both intervals of so many pictures, and how often they would hold a true share."""
    right = round(n * share_right)
    truths = np.linspace(0.005, 0.995, 199)
    figure, (left, axis) = _panels(2, 2.9)
    kinds = {"textbook": (textbook, PLAIN, "--"), "Wilson": (wilson, plots.INK, "-")}
    for y, (name, (kind, colour, style)) in enumerate(kinds.items()):
        low, high = (100 * end for end in kind(right, n))
        left.plot([low, high], [y, y], style, color=colour, linewidth=2, marker="|", ms=12)
        left.plot(100 * right / n, y, "o", color=colour)
        left.text(50, y + 0.12, f"{name}: {low:.1f} to {high:.1f} %", ha="center")
        axis.plot(100 * truths, 100 * coverage(kind, truths, n), style, color=colour, label=name)
        here = 100 * float(coverage(kind, np.array([share_right]), n)[0])
        axis.plot(100 * share_right, here, "o", color=colour, label=f"here {here:.0f} %")
    left.set(xlim=(-15, 115), ylim=(-0.5, 1.7), yticks=[], xlabel="share right, %")
    left.axvspan(0, 100, color=plots.PALE, alpha=0.4, zorder=0)
    axis.axhline(95, color=plots.INK, linewidth=0.8, linestyle=":")
    axis.set(xlabel="true share, %", ylabel="intervals that hold it, %", ylim=(-3, 103))
    axis.legend(frameon=False, fontsize=8)
    figure.suptitle(f"{right} of {n} right: {'; '.join(t.get_text() for t in left.texts)}")
    return figure


def interval_slider() -> Board:
    """Pictures and share by sliders."""
    return play(interval_figure, n=(5, 200, 5, 20), share_right=(0.0, 1.0, 0.05, 0.95))


def scorer_html(answer: str, label: str, classes: Sequence[str]) -> str:
    """What two rules say of the text of an answer; the text stays text."""
    named = rewards.match_class(answer, classes)
    inside = [name for name in classes if name.casefold() in answer.casefold()]
    table = f"<tr><th>rule: the answer</th><th>finds</th><th>{html.escape(label)}</th></tr>"
    for rule, found in (("contains the label", inside), ("is one name", [named] * bool(named))):
        names = html.escape(", ".join(found) or "no class")
        paid = "✓ paid" if label in found else "✗ not paid"
        table += f"<tr><td>{rule}</td><td>{names}</td><td>{paid}</td></tr>"
    return f"<div>answer: <code>{html.escape(answer)}</code><table>{table}</table></div>"


def scorer_breaker(label: str, classes: Sequence[str]) -> Board:
    """A text box for the answer: find one that the first rule pays and should not."""
    other = next(name for name in classes if name != label)
    box = w.Text(value=f"{other}, not {label}", layout=w.Layout(width="600px"))
    return play(lambda answer: scorer_html(answer, label, classes), answer=box)


def bottleneck_slider(name: str, described: Mapping, phrases: Sequence[str]) -> Board:
    """Beta by a slider; arguments as of `concepts.over_beta`. Lines keep their places."""
    from finer1_lite.evals import figures

    shares, scores, _ = concepts.over_beta(name, described, phrases)

    def draw(beta: float) -> Figure:
        kept = concepts.select(name, described, phrases, beta=beta, least=0).kept
        figure = figures.bottleneck(shares, scores, kept, beta)
        figure.set_dpi(75)
        said = f"{len(kept)} of {len(shares)}: {', '.join(kept) or 'none'}"
        figure.suptitle(f"beta {beta:.2f} keeps {said}", fontsize=9)
        return figure

    return play(draw, beta=(0.0, 1.0, 0.05, concepts.BETA))


COLUMNS = ("reward", "accuracy", "agrees", "anchor_entropy", "inter_class_kl", "length")


def step_figure(log: pd.DataFrame, step: int, columns: Sequence[str]) -> Figure:
    """Columns of a log over its index, the steps; one step is marked, with its numbers."""
    across = min(3, len(columns))
    rows = -(-len(columns) // across)
    figure = Figure(figsize=(plots.WIDTH, 2 * rows + 0.4), dpi=80, layout="constrained")
    axes = list(figure.subplots(rows, across, squeeze=False).flat)
    for axis, name in zip(axes, columns, strict=False):
        value = log.at[step, name]
        said = "nothing logged" if pd.isna(value) else f"{value:.3g}"
        axis.plot(log.index, log[name], "-", color=MAIN, linewidth=1.2)
        axis.plot(step, value, "o", color=plots.INK)
        axis.axvline(step, color=plots.INK, linewidth=0.6)
        axis.xaxis.get_major_locator().set_params(integer=True)
        axis.set(xlabel="step", title=f"{name.replace('_', ' ')}: {said}")
    for axis in axes[len(columns) :]:
        axis.set_axis_off()
    figure.suptitle(f"step {step}")
    return figure


def step_slider(log: str | Path | Sequence[Mapping], columns: Sequence[str] | None = None) -> Board:
    """A slider over the steps of a log: the path of a log.jsonl, or its rows."""
    rows = metrics.read_records(log) if isinstance(log, str | Path) else log
    table = pd.DataFrame([*rows]).drop_duplicates("step", keep="last").set_index("step")
    columns = columns or [name for name in COLUMNS if name in table]
    steps = w.SelectionSlider(options=table.index.tolist())
    return play(lambda step: step_figure(table, step, columns), step=steps)


def triplet_figure(collection: Collection, triplet: triplets.Triplet) -> Figure:
    """The three pictures, and the marks in which the negative's class differs."""
    three = (triplet.anchor, triplet.positive, triplet.negative)
    roles = ("anchor", "positive", "hard negative")
    titles = [f"{role}: {photo.species}" for role, photo in zip(roles, three, strict=True)]
    figure = plots.photo_grid([photo.image() for photo in three], titles)
    ours, theirs = (collection.of(three[i].species).description.split(", ") for i in (0, 2))
    apart = [[m for m in a if m not in b] for a, b in ((ours, theirs), (theirs, ours))]
    said = [", ".join(marks) or "no mark" for marks in apart]
    figure.suptitle(f"anchor and positive: {said[0]}; negative: {said[1]}", fontsize=10)
    figure.set(figwidth=7.5, figheight=3.2, dpi=75)
    return figure


def triplet_browser(collection: Collection, count: int = 4, last: int = 30) -> Board:
    """Step and place in the step by sliders; the same triplets as training with seed 0 draws."""

    def draw(step: int, index: int) -> Figure:
        drawn = triplets.draw_triplets(collection, count, seed=0, step=step)
        return triplet_figure(collection, drawn[index])

    return play(draw, step=(0, last, 1, 1), index=(0, count - 1, 1, 0))


def verdict(completion: str, names: Sequence[str]) -> str:
    """Whether the comparison leads to the answer, in a sentence."""
    answer = rewards.parse_answer(completion)
    picked = chain_text.agreement(completion, answer, names)["picked"]
    if not picked or answer is None:
        return "there is no valid answer" if picked else "comparison picks no single candidate"
    same = chain_text.fold(picked) == chain_text.fold(answer)
    return f"comparison {'leads to' if same else 'contradicts'} the answer: it picks {picked}"


def rollout_html(group: Any, index: int, names: Sequence[str]) -> str:
    """One completion of a `tapo.Group` in its sections, and what it earned."""
    from finer1_lite.chains.panel import COLOURS

    completion, size = group.completions[index], len(group.completions)
    earned = {key: getattr(group, key) for key in ("accuracy", "format", "reward")}
    earned["advantage"] = advantages.group_advantages(group.reward, size)
    said = [f"{key} {float(paid[index]):.3g}" for key, paid in earned.items()]
    label, picture = group.triplet.anchor.species, "anchor" if 2 * index < size else "positive"
    lines = f"about the {picture}, a {html.escape(label)}: {', '.join(said)}<br>"
    lines += f"<b>{html.escape(verdict(completion, names))}</b>"
    for part, text in chain_text.pieces(completion):
        style = f"border-left:6px solid {COLOURS.get(part, PLAIN)};padding-left:8px;margin:2px"
        body = html.escape(text.strip()).replace("\n", "<br>")
        lines += f'<div style="{style}"><b>{SYMBOLS.get(part, "")}</b> {body}</div>' * bool(body)
    return f"<div>{lines}</div>"


def rollout_inspector(groups: Sequence[Any], names: Sequence[str]) -> Board:
    """Sliders begin at a right answer to which its comparison does not lead; names: all classes."""
    said, odd = {True: Counter(), False: Counter()}, []
    for g, group in enumerate(groups):
        for i, (text, right) in enumerate(zip(group.completions, group.right, strict=True)):
            short = verdict(text, names).partition(":")[0]
            said[bool(right)][short] += 1
            odd += [(g, i)] if right and "leads" not in short else []
    counts = [", ".join(f"{n} where {k}" for k, n in kind.items()) for kind in said.values()]
    head = f"<div>right: {counts[0] or 'none'}; wrong: {counts[1] or 'none'}</div>"
    g, i = (odd or [(0, 0)])[0]
    most = min(len(group.completions) for group in groups) - 1
    both = {"group": (0, len(groups) - 1, 1, g), "completion": (0, most, 1, i)}
    return play(
        lambda group, completion: head + rollout_html(groups[group], completion, names), **both
    )


if __name__ == "__main__":
    for file in map(Path, sys.argv[1:]):
        text = course.written(still(json.loads(file.read_text("utf-8"))))
        file.write_text(text, encoding="utf-8", newline="\n")
