"""Intervals and tests against published values, a naive loop, and the rate that they promise."""

import math

import numpy as np
import pytest

from finer1_lite.data.statistics import bootstrap_over_worlds, harmonic_mean, mcnemar, wilson


@pytest.mark.parametrize(
    ("right", "n", "low", "high"),
    [  # Newcombe 1998, Statistics in Medicine 17:857, table I, score method
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0000, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_wilson_equals_published_intervals(right, n, low, high):
    assert wilson(right, n) == pytest.approx((low, high), abs=5e-5)


def test_wilson_ends_are_exact_and_mirrored():
    low, high = wilson(0, 10)
    assert low == 0 and high == pytest.approx(1.959964**2 / (10 + 1.959964**2))
    assert wilson(10, 10) == pytest.approx((1 - high, 1)) and wilson(10, 10)[1] == 1
    assert wilson(3, 10) == pytest.approx(tuple(1 - x for x in reversed(wilson(7, 10))))


@pytest.mark.parametrize(("right", "n"), [(0, 0), (-1, 5), (6, 5)])
def test_wilson_refuses_what_is_no_share(right, n):
    with pytest.raises(ValueError, match=f"right={right} of n={n}"):
        wilson(right, n)


def test_harmonic_mean():
    assert harmonic_mean(0.4, 0.6) == pytest.approx(0.48)
    assert harmonic_mean(0.0, 1.0) == 0 and harmonic_mean(0.0, 0.0) == 0
    with pytest.raises(ValueError):
        harmonic_mean(-0.1, 0.5)


def paired_bootstrap(a, b, **more) -> tuple[float, ...]:
    """(mean, low, high) of one world."""
    return tuple(bootstrap_over_worlds([a], [b], **more).values())


def test_bootstrap_of_a_constant_difference_has_no_width():
    ones, none = np.ones((3, 8)), np.zeros((1, 8))
    assert paired_bootstrap(ones, none, draws=50) == (1, 1, 1)


def test_bootstrap_pairs_seeds_and_pictures():
    """a and b vary much but alike, so a paired interval must be zero wide."""
    a = np.random.default_rng(0).integers(2, size=(3, 30))
    assert paired_bootstrap(a, a, draws=100) == (0, 0, 0)
    _, low, high = paired_bootstrap(a, a[::-1], draws=100)  # seeds paired wrongly
    assert low < 0 < high


@pytest.mark.parametrize("b_seeds", [1, 2, 3])
def test_bootstrap_equals_a_naive_loop_with_the_same_draws(b_seeds):
    make = np.random.default_rng(5)
    a, b = make.integers(2, size=(3, 7)), make.integers(2, size=(b_seeds, 7))
    rng, found = np.random.default_rng(11), []
    for _ in range(40):
        rows = list(rng.integers(3, size=3))
        rows_b = rows if b_seeds == 3 else list(rng.integers(b_seeds, size=b_seeds))
        pictures = list(rng.integers(7, size=7))
        total_a = sum(int(a[s, p]) for s in rows for p in pictures) / (len(rows) * 7)
        total_b = sum(int(b[s, p]) for s in rows_b for p in pictures) / (len(rows_b) * 7)
        found.append(total_a - total_b)
    found.sort()
    at = [0.025 * 39, 0.975 * 39]  # linear between order statistics
    low, high = (found[int(x)] + (x % 1) * (found[int(x) + 1] - found[int(x)]) for x in at)
    mean = sum(map(int, a.flat)) / a.size - sum(map(int, b.flat)) / b.size
    assert paired_bootstrap(a, b, draws=40, seed=11) == pytest.approx((mean, low, high))


def test_bootstrap_covers_the_true_difference():
    """200 runs of 80 pictures: pictures differ in difficulty, the true gain is known."""
    rng, covered = np.random.default_rng(3), 0
    for run in range(200):
        ease = rng.uniform(0, 0.8, size=80)  # mean 0.4; a gains 0.1 on every picture
        b, a = rng.random((1, 80)) < ease, rng.random((1, 80)) < ease + 0.1
        _, low, high = paired_bootstrap(a, b, draws=200, seed=run)
        covered += low <= 0.1 <= high
    assert 0.88 * 200 <= covered <= 0.99 * 200


def test_bootstrap_interval_sees_the_luck_of_training():
    """Seeds that disagree on every picture: pictures alone would give no width at all."""
    lucky, base = np.repeat([[1], [0], [1]], 50, axis=1), np.zeros((1, 50))
    mean, low, high = paired_bootstrap(lucky, base, draws=500)
    assert mean == pytest.approx(2 / 3) and low == 0 and high == 1


def test_bootstrap_names_all_faults():
    with pytest.raises(ValueError, match="3 photos in a, 4 in b(.|\n)*draws=0"):
        paired_bootstrap(np.ones((1, 3)), np.ones((1, 4)), draws=0)
    with pytest.raises(ValueError, match=r"a has shape \(3,\)(.|\n)*b has shape \(1, 0\)"):
        paired_bootstrap(np.ones(3), np.ones((1, 0)))


# --- tests of significance -----------------------------------------------------------------


@pytest.mark.parametrize(("only_a", "only_b"), [(5, 0), (7, 3), (4, 4), (1, 0), (30, 12)])
def test_mcnemar_is_the_binomial_tail_of_the_pictures_that_differ(only_a, only_b):
    a = [1] * only_a + [0] * only_b + [1] * 9 + [0] * 6  # the rest agrees
    b = [0] * only_a + [1] * only_b + [1] * 9 + [0] * 6
    n = only_a + only_b
    tail = sum(math.comb(n, k) for k in range(min(only_a, only_b) + 1)) / 2**n
    assert mcnemar(a, b) == (only_a, only_b, pytest.approx(min(1, 2 * tail), rel=1e-9))


def test_mcnemar_of_very_many_differences_does_not_overflow():
    """Twice the normal tail beyond (400 - 1/2) / sqrt(10,000) standard deviations."""
    a = np.arange(40_000) < 20_400
    assert mcnemar(a, ~a)[2] == pytest.approx(math.erfc(399.5 / 100 / math.sqrt(2)), rel=1e-2)


def test_mcnemar_at_the_ends():
    assert mcnemar([1, 0], [1, 0]) == (0, 0, 1.0)
    assert mcnemar([1], [0])[2] == 1.0
    with pytest.raises(ValueError):
        mcnemar([1, 0], [1])


def test_wilson_covers_at_its_rate_for_every_share_exactly():
    """No simulation: the binomial probabilities of all counts whose interval holds the truth."""
    n, covers = 60, []
    intervals = [wilson(k, n) for k in range(n + 1)]
    for share in np.linspace(0.03, 0.97, 95):
        held = [
            math.comb(n, k) * share**k * (1 - share) ** (n - k)
            for k, (low, high) in enumerate(intervals)
            if low <= share <= high
        ]
        covers.append(sum(held))
    assert np.mean(covers) == pytest.approx(0.95, abs=0.01) and min(covers) > 0.88


def test_mcnemar_rejects_no_more_often_than_it_may():
    rng = np.random.default_rng(7)
    ease = rng.random((400, 80))
    p = [mcnemar(rng.random(80) < e, rng.random(80) < e)[2] for e in ease]
    assert np.mean(np.array(p) < 0.05) <= 0.06


def test_bootstrap_of_one_seed_is_nearly_the_normal_interval():
    """Of 400 differences with standard deviation s: mean -/+ 1.96 s / 20, within its noise."""
    rng = np.random.default_rng(2)
    a, b = rng.random((1, 400)) < 0.6, rng.random((1, 400)) < 0.4
    gap = a.astype(float) - b
    mean, low, high = paired_bootstrap(a, b, draws=4000)
    assert mean == pytest.approx(gap.mean())
    half = 1.96 * gap.std() / 20
    assert (low, high) == pytest.approx((mean - half, mean + half), abs=0.006)


def test_bootstrap_of_pictures_covers_with_several_seeds():
    """Training seeds shift all pictures alike; eight of them: nearly the nominal rate."""
    rng, covered = np.random.default_rng(5), 0
    for run in range(150):
        ease = rng.uniform(0.2, 0.6, size=60)
        luck = rng.normal(0, 0.05, size=(8, 1))
        b, a = rng.random((8, 60)) < ease, rng.random((8, 60)) < ease + 0.1 + luck
        _, low, high = paired_bootstrap(a, b, draws=200, seed=run)
        covered += low <= 0.1 <= high
    assert 0.86 * 150 <= covered <= 0.995 * 150
