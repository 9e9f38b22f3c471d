"""Intervals, tests and means of shares. Numbers only."""

import math
from collections.abc import Sequence

import numpy as np
from statsmodels.stats import contingency_tables

from finer1_lite.runtime.files import require_none


def wilson(right: float, n: int, z: float = 1.959964) -> tuple[float, float]:
    """Score interval of a share (Wilson 1927): `right` of `n`, as fractions in [0, 1].

    `right` need not be whole (a mean over seeds), and the ends are exact: statsmodels leaves
    3e-17 of 0 right. ValueError for n < 1 or right outside [0, n].
    """
    if n < 1 or not 0 <= right <= n:
        raise ValueError(f"right={right} of n={n}: n must be 1 or more and right in [0, n]")
    share, shrink = right / n, 1 + z * z / n
    centre = (share + z * z / (2 * n)) / shrink
    half = z / shrink * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    low = 0.0 if right == 0 else max(centre - half, 0.0)
    high = 1.0 if right == n else min(centre + half, 1.0)
    return low, high


def harmonic_mean(a: float, b: float) -> float:
    """2ab / (a + b); 0 where both are 0. ValueError for a negative value."""
    if a < 0 or b < 0:
        raise ValueError(f"harmonic mean of {a} and {b}: both must be 0 or more")
    return 2 * a * b / (a + b) if a + b else 0.0


def bootstrap_over_worlds(
    a: Sequence[np.ndarray], b: Sequence[np.ndarray], draws: int = 2000, seed: int = 0
) -> dict[str, float]:
    """Mean of a - b with its 95 % percentile interval: {mean, low, high}.

    a, b: shares, an array (training seeds, photos) a world (or data set), the same photos in the
    same order. Worlds are fixed and weigh alike: the interval is about other seeds and photos of
    these worlds. Each draw resamples photos and seeds, crossed (the pigeonhole bootstrap: Owen
    2007, Annals of Applied Statistics 1). One draw of seeds serves both sides where they have as
    many, as training seeds are paired; a single row is shared by all seeds of the other side.
    With one seed the interval is about photos only, with few it is somewhat too narrow.
    ValueError for shapes that do not fit.
    """
    if len(a) != len(b) or not len(a):
        raise ValueError(f"{len(a)} worlds in a, {len(b)} in b: give the same, one at least")
    rng = np.random.default_rng(seed)
    drawn = np.mean([_bootstrap(x, y, draws, rng) for x, y in zip(a, b, strict=True)], axis=0)
    low, high = np.percentile(drawn, [2.5, 97.5])
    mean = np.mean([np.mean(x) - np.mean(y) for x, y in zip(a, b, strict=True)])
    return {"mean": float(mean), "low": float(low), "high": float(high)}


def _bootstrap(a: np.ndarray, b: np.ndarray, draws: int, rng: np.random.Generator) -> np.ndarray:
    """Mean of a - b in each draw, (draws,)."""
    a, b = np.asarray(a, dtype=float), np.asarray(b, dtype=float)
    sides = zip("ab", (a, b), strict=True)
    problems = [f"{name} has shape {x.shape}" for name, x in sides if x.ndim != 2 or not x.size]
    if not problems and a.shape[1] != b.shape[1]:
        problems = [f"{a.shape[1]} photos in a, {b.shape[1]} in b"]
    problems += [f"draws={draws}: give 1 or more"] if draws < 1 else []
    require_none(problems, "no bootstrap; give (seeds, same photos):")
    sizes = [len(a)] * (len(a) != len(b)) + [len(b), a.shape[1]]  # one draw of seeds serves both
    indices = rng.integers(np.tile(np.repeat(sizes, sizes), (draws, 1)))
    *rows, photos = np.split(indices, np.cumsum(sizes)[:-1], axis=1)
    drawn = np.empty(draws)
    for some in np.array_split(np.arange(draws), -(-draws // 100)):  # bounded memory
        apart = a[rows[0][some]].mean(1) - b[rows[-1][some]].mean(1)
        drawn[some] = np.take_along_axis(apart, photos[some], 1).mean(1)
    return drawn


def mcnemar(a: Sequence[bool], b: Sequence[bool]) -> tuple[int, int, float]:
    """(only a right, only b right, p) of two answerers on the same photos, in the same order.

    p: the exact two-sided test that both are equally often right where they differ (McNemar
    1947, Psychometrika 12).
    """
    pairs = list(zip(a, b, strict=True))
    only_a = sum(bool(x) and not y for x, y in pairs)
    only_b = sum(bool(y) and not x for x, y in pairs)
    counts = [[0, only_a], [only_b, 0]]
    return only_a, only_b, float(contingency_tables.mcnemar(counts, exact=True).pvalue)
