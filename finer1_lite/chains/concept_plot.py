"""One figure: what the bottleneck keeps of a class, and what its price beta does."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from finer1_lite.chains import concepts
from finer1_lite.plots import INK, PALE, WIDTH

KEPT, DROPPED = "#0072B2", "#999999"


def bottleneck_figure(
    name: str,
    described: Mapping[str, Sequence[Sequence[str]]],
    phrases: Sequence[str],
    beta: float = concepts.BETA,
) -> Figure:
    """Kept and dropped concepts of class `name` against the other classes of `described`.

    described: class -> for each picture its descriptions, equally many pictures a class.
    Left: in what share of a class's descriptions each concept occurs. Right: its score
    I(concept; class) - beta I(concept; picture) over beta; it is kept while that is above 0
    and the class says it more often than the others.
    """
    chosen = concepts.select(name, described, phrases, beta=beta, least=0)
    shown = [*chosen.kept, *chosen.dropped]
    kinds = [name, *(c for c in described if c != name)]
    rates = concepts.mention_rates(shown, [p for c in kinds for p in described[c]])
    classes = [i for i, c in enumerate(kinds) for _ in described[c]]
    colours = [KEPT if c in chosen.kept else DROPPED for c in shown]
    figure = Figure(figsize=(WIDTH, 1.2 + 0.26 * len(shown)), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(1, 1.2))
    index = np.array(classes)
    means = np.stack([rates[:, index == k].mean(1) for k in range(len(kinds))], axis=1)
    _share_table(left, means, shown, kinds, colours)
    _score_lines(right, rates, classes, colours, beta)
    return figure


def _share_table(axis: Axes, means, shown, kinds, colours) -> None:
    axis.imshow(means, cmap="Greys", vmin=0, vmax=1.4, aspect="auto")
    for (row, column), share in np.ndenumerate(means):
        axis.text(column, row, f"{100 * share:.0f}", ha="center", va="center", fontsize=8)
    axis.set_xticks(range(len(kinds)), [k.replace(" ", "\n") for k in kinds], fontsize=8)
    axis.set_yticks(range(len(shown)), shown, fontsize=8)
    for label, colour in zip(axis.get_yticklabels(), colours):
        label.set_color(colour)
    axis.set_title("% of descriptions that say it (blue: kept)", fontsize=9)


def _score_lines(axis: Axes, rates, classes, colours, beta: float) -> None:
    betas = np.linspace(0, 1, 21)
    scores = np.stack([concepts.count_scores(rates, classes, b) for b in betas], axis=1)
    for line, colour in zip(scores, colours):
        axis.plot(betas, line, color=colour, linewidth=1.5 if colour == KEPT else 0.9)
    axis.axhline(0, color=INK, linewidth=0.8)
    axis.axvline(beta, color=PALE, linewidth=4, zorder=0)
    axis.set_xlabel("beta: price of a bit about the single picture")
    axis.set_title("I(concept; class) - beta I(concept; picture), bits", fontsize=9)
