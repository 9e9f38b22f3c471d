"""Statistics against scipy, statsmodels, scikit-learn and brute force; coverage by simulation."""

import itertools
import math

import numpy as np
import pytest

from finer1_lite.evals import stats
from finer1_lite.metrics import harmonic_mean, paired_bootstrap, wilson

ROUNDS = range(12)


def draws(seed, n=60, share=0.6):
    return np.random.default_rng(seed).random(n) < share


# --- against libraries -----------------------------------------------------------------


@pytest.mark.parametrize("seed", ROUNDS)
def test_mcnemar_equals_statsmodels_and_scipy(seed):
    contingency = pytest.importorskip("statsmodels.stats.contingency_tables")
    scipy_stats = pytest.importorskip("scipy.stats")
    a, b = draws(seed), draws(seed + 100, share=0.4)
    only_a, only_b, p = stats.mcnemar(a, b)
    table = [[(a & b).sum(), (a & ~b).sum()], [(~a & b).sum(), (~a & ~b).sum()]]
    assert (only_a, only_b) == (table[0][1], table[1][0])
    assert p == pytest.approx(contingency.mcnemar(table, exact=True).pvalue, rel=1e-9)
    assert p == pytest.approx(scipy_stats.binomtest(only_a, only_a + only_b).pvalue, rel=1e-9)


def test_mcnemar_of_very_many_differences_does_not_overflow():
    scipy_stats = pytest.importorskip("scipy.stats")
    a = np.arange(40_000) < 20_400
    found = stats.mcnemar(a, ~a)[2]
    assert found == pytest.approx(scipy_stats.binomtest(20_400, 40_000).pvalue, rel=1e-6)


def test_mcnemar_at_the_ends():
    assert stats.mcnemar([1, 0], [1, 0]) == (0, 0, 1.0)
    assert stats.mcnemar([1], [0])[2] == 1.0
    assert stats.mcnemar([1] * 10, [0] * 10) == (10, 0, pytest.approx(2 / 2**10))
    with pytest.raises(ValueError, match="2 and 1"):
        stats.mcnemar([1, 0], [1])


@pytest.mark.parametrize("seed", ROUNDS)
def test_wilson_and_holm_equal_statsmodels(seed):
    proportion = pytest.importorskip("statsmodels.stats.proportion")
    multitest = pytest.importorskip("statsmodels.stats.multitest")
    rng = np.random.default_rng(seed)
    n = int(rng.integers(1, 500))
    right = int(rng.integers(0, n + 1))
    expected = proportion.proportion_confint(right, n, method="wilson")
    assert wilson(right, n) == pytest.approx(expected, abs=1e-6)
    p = rng.random(7) ** 3
    assert stats.holm(p) == pytest.approx(multitest.multipletests(p, method="holm")[1])


@pytest.mark.parametrize("seed", ROUNDS)
def test_class_metrics_equal_scikit_learn(seed):
    sk = pytest.importorskip("sklearn.metrics")
    rng = np.random.default_rng(seed)
    classes = list("abcde")
    labels = [*classes, *rng.choice(classes, 80)]
    named = [str(x) for x in rng.choice(classes, 85)]
    ours = stats.confusion(labels, named, classes)
    assert (ours[:, :5] == sk.confusion_matrix(labels, named, labels=classes)).all()
    right = [x == y for x, y in zip(labels, named)]
    assert stats.macro_accuracy(labels, right) == pytest.approx(
        sk.balanced_accuracy_score(labels, named)
    )
    recalls = sk.recall_score(labels, named, labels=classes, average=None)
    shares = stats.per_class(labels, right)
    assert [shares[c][0] / shares[c][1] for c in classes] == pytest.approx(list(recalls))


@pytest.mark.parametrize("seed", ROUNDS)
def test_harmonic_mean_equals_scipy(seed):
    scipy_stats = pytest.importorskip("scipy.stats")
    a, b = np.random.default_rng(seed).random(2)
    assert harmonic_mean(a, b) == pytest.approx(scipy_stats.hmean([a, b]))


@pytest.mark.parametrize("seed", range(4))
def test_paired_bootstrap_agrees_with_scipy(seed):
    """Other random draws, the same distribution: the ends agree within its noise."""
    scipy_stats = pytest.importorskip("scipy.stats")
    a, b = draws(seed, 200), draws(seed + 9, 200, 0.4)
    gap = a.astype(float) - b
    theirs = scipy_stats.bootstrap(
        (gap,), np.mean, n_resamples=4000, method="percentile", rng=np.random.default_rng(1)
    ).confidence_interval
    mean, low, high = paired_bootstrap(a[None], b[None], draws=4000)
    assert mean == pytest.approx(gap.mean())
    assert low == pytest.approx(theirs.low, abs=0.012)
    assert high == pytest.approx(theirs.high, abs=0.012)


# --- against brute force ---------------------------------------------------------------


@pytest.mark.parametrize(
    ("n", "right", "k"), [(5, 2, 3), (6, 0, 2), (6, 6, 1), (4, 3, 2), (7, 1, 7)]
)
def test_pass_at_k_counts_the_draws_that_hold_a_right_answer(n, right, k):
    pool = [True] * right + [False] * (n - right)
    drawn = list(itertools.combinations(pool, k))
    assert stats.pass_at_k(n, right, k) == pytest.approx(sum(map(any, drawn)) / len(drawn))


@pytest.mark.parametrize(("n", "right", "k"), [(3, 4, 1), (3, -1, 1), (3, 1, 0), (3, 1, 4)])
def test_pass_at_k_refuses_what_cannot_be_drawn(n, right, k):
    with pytest.raises(ValueError, match=f"k={k}"):
        stats.pass_at_k(n, right, k)


def test_majority_ignores_answers_that_name_nothing():
    assert stats.majority(["a", "b", "b", None]) == ("b", 0.5)
    assert stats.majority(["b", "a"]) == ("b", 0.5)  # a tie: who came first
    assert stats.majority([None, None]) == (None, 0.0) == stats.majority([])


def test_calibration_error_by_hand_and_where_it_is_none():
    assert stats.calibration_error([0.95] * 4, [1, 1, 0, 0]) == pytest.approx(0.45)
    assert stats.calibration_error([1.0, 0.05], [True, False]) == pytest.approx(0.025)
    rng = np.random.default_rng(0)
    sure = rng.random(20_000)
    assert stats.calibration_error(sure, rng.random(20_000) < sure) < 0.02
    assert stats.calibration_error(sure, rng.random(20_000) < sure**3) > 0.1
    with pytest.raises(ValueError):
        stats.calibration_error([1.2], [True])


def test_errors_inside_and_outside_a_genus():
    group = {"red kite": "kite", "black kite": "kite", "barn owl": "owl"}
    labels = ["red kite"] * 5
    named = ["red kite", "black kite", "barn owl", None, "sparrow"]
    assert stats.errors_by_kind(labels, named, group) == {
        "right": 1,
        "same group": 1,
        "other group": 1,
        "none": 2,
    }
    counts = stats.confusion(labels, named, list(group))
    assert counts[0].tolist() == [1, 1, 1, 2] and counts[1:].sum() == 0
    with pytest.raises(ValueError, match="sparrow"):
        stats.confusion(["sparrow"], [None], list(group))


def test_length_bins_hold_every_answer_once_and_split_no_length():
    lengths, right = [1, 1, 1, 1, 2, 3, 90, 91], [1, 1, 1, 0, 1, 0, 0, 0]
    found = stats.by_length(lengths, right, bins=3)
    assert sum(n for *_, n in found) == 8 and sum(ok for _, _, ok, _ in found) == 4
    for (_, high, _, _), (low, _, _, _) in itertools.pairwise(found):
        assert high < low
    assert stats.by_length([], []) == []
    assert stats.by_length([5] * 9, [1] * 9) == [(5, 5, 9, 9)]


# --- coverage --------------------------------------------------------------------------


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
    p = [stats.mcnemar(rng.random(80) < e, rng.random(80) < e)[2] for e in ease]
    assert np.mean(np.array(p) < 0.05) <= 0.06


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
