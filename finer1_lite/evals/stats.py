"""Statistics of answers that are right or wrong. numpy and the standard library; pure.

Intervals of a share (`wilson`) and of a difference (`paired_bootstrap`) are in `metrics`.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Hashable, Mapping, Sequence

import numpy as np


def mcnemar(a: Sequence[bool], b: Sequence[bool]) -> tuple[int, int, float]:
    """(only a right, only b right, p) of two answerers on the same pictures.

    p: the exact two-sided test that both are equally often right where they differ
    (McNemar 1947, Psychometrika 12; binomial instead of chi-square). ValueError for
    different lengths.
    """
    if len(a) != len(b):
        raise ValueError(f"{len(a)} and {len(b)} answers: give the same pictures in the same order")
    only_a = sum(bool(x) and not y for x, y in zip(a, b))
    only_b = sum(bool(y) and not x for x, y in zip(a, b))
    n, k = only_a + only_b, min(only_a, only_b)
    if n == 0:
        return only_a, only_b, 1.0
    logs = [_log_choose(n, i) - n * math.log(2) for i in range(k + 1)]
    return only_a, only_b, min(1.0, 2 * math.fsum(map(math.exp, logs)))


def _log_choose(n: int, k: int) -> float:
    return math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values adjusted for being many (Holm 1979, Scand. J. Statistics 6), in their order."""
    order = sorted(range(len(p_values)), key=p_values.__getitem__)
    adjusted, worst = [0.0] * len(order), 0.0
    for rank, i in enumerate(order):
        worst = max(worst, min(1.0, (len(order) - rank) * p_values[i]))
        adjusted[i] = worst
    return adjusted


def pass_at_k(n: int, right: int, k: int) -> float:
    """Chance that one of k samples, drawn from n of which `right` are right, is right.

    1 - C(n - right, k) / C(n, k), without bias (Chen et al. 2021, arXiv 2107.03374).
    ValueError unless 0 <= right <= n and 1 <= k <= n.
    """
    if not (0 <= right <= n and 1 <= k <= n):
        raise ValueError(f"n={n}, right={right}, k={k}: 0 <= right <= n and 1 <= k <= n")
    return 1 - math.comb(n - right, k) / math.comb(n, k)


def majority(names: Sequence[Hashable | None]) -> tuple[Hashable | None, float]:
    """(most frequent name, its share of all); answers that name nothing have no vote.

    A tie goes to the name that came first: no alphabet decides. (None, 0) without votes.
    """
    votes = Counter(name for name in names if name is not None)
    if not votes:
        return None, 0.0
    name, count = votes.most_common(1)[0]
    return name, count / len(names)


def calibration_error(confidence: Sequence[float], right: Sequence[bool], bins: int = 10) -> float:
    """Expected calibration error: |right - confidence|, averaged over equally wide bins.

    Guo et al. 2017 (ICML). A confidence is in [0, 1]; 1 belongs to the last bin.
    """
    c, r = np.asarray(confidence, float), np.asarray(right, float)
    if len(c) != len(r) or not len(c) or c.min() < 0 or c.max() > 1 or bins < 1:
        raise ValueError("give as many verdicts as confidences in [0, 1], one at least")
    place = np.minimum((c * bins).astype(int), bins - 1)
    gaps = [abs(r[place == b].sum() - c[place == b].sum()) for b in range(bins)]
    return float(sum(gaps) / len(c))


def per_class(labels: Sequence[str], right: Sequence[bool]) -> dict[str, tuple[int, int]]:
    """Class -> (right, all), in the order of first appearance."""
    found: dict[str, list[int]] = {}
    for label, ok in zip(labels, right, strict=True):
        counts = found.setdefault(label, [0, 0])
        counts[0] += bool(ok)
        counts[1] += 1
    return {label: (counts[0], counts[1]) for label, counts in found.items()}


def macro_accuracy(labels: Sequence[str], right: Sequence[bool]) -> float:
    """Mean of the classes' accuracies: every class counts alike. ValueError for none."""
    shares = [ok / n for ok, n in per_class(labels, right).values()]
    if not shares:
        raise ValueError("no answers: give one at least")
    return sum(shares) / len(shares)


def confusion(
    labels: Sequence[str], named: Sequence[str | None], classes: Sequence[str]
) -> np.ndarray:
    """How often each class was called what: (classes, classes + 1); the last column: none.

    A name outside `classes` counts as none. ValueError for a label outside.
    """
    at = {name: i for i, name in enumerate(classes)}
    strange = sorted(set(labels) - set(at))
    if strange:
        raise ValueError(f"labels that are no class: {strange}")
    counts = np.zeros((len(classes), len(classes) + 1), dtype=int)
    for label, name in zip(labels, named, strict=True):
        counts[at[label], at.get(name, len(classes))] += 1
    return counts


def errors_by_kind(
    labels: Sequence[str], named: Sequence[str | None], group: Mapping[str, str]
) -> dict[str, int]:
    """Answers counted as right, same group (wrong species of the right genus), other group, none.

    group: class -> its genus or other coarse group.
    """
    found = dict.fromkeys(("right", "same group", "other group", "none"), 0)
    for label, name in zip(labels, named, strict=True):
        if name is None or name not in group:
            found["none"] += 1
        elif name == label:
            found["right"] += 1
        else:
            found["same group" if group[name] == group[label] else "other group"] += 1
    return found


def by_length(
    lengths: Sequence[float], right: Sequence[bool], bins: int = 5
) -> list[tuple[float, float, int, int]]:
    """(shortest, longest, right, all) of answers in bins of about equal size, short first.

    Answers of one length are never split over two bins.
    """
    lengths, right = np.asarray(lengths, float), np.asarray(right, bool)
    if len(lengths) != len(right) or bins < 1:
        raise ValueError(f"{len(lengths)} lengths, {len(right)} verdicts, {bins} bins")
    if not len(lengths):
        return []
    edges = np.unique(np.quantile(lengths, np.linspace(0, 1, bins + 1)[1:-1]))
    place = np.searchsorted(edges, lengths, side="left")
    return [
        (
            float(lengths[place == b].min()),
            float(lengths[place == b].max()),
            int(right[place == b].sum()),
            int((place == b).sum()),
        )
        for b in np.unique(place)
    ]
