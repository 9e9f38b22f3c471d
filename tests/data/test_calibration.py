"""Confidences: the fit finds what data were drawn with, and the measures keep their promises."""

import numpy as np
import pytest
from scipy.special import log_softmax, softmax

from finer1_lite.data import calibration


def drawn(weights, n=6000, classes=5):
    """Two kinds of evidence, and labels drawn from the softmax of their weighted sum."""
    rng = np.random.default_rng(0)
    logps = log_softmax(3 * rng.normal(size=(n, classes)), 1)
    shares = rng.dirichlet(np.ones(classes), n)
    features = np.stack([logps, shares])
    chances = softmax(np.tensordot(weights, features, 1), 1)
    return features, np.array([rng.choice(classes, p=row) for row in chances])


def test_confidences_are_a_softmax_of_the_weighted_sum():
    features = np.array([[[0.0, np.log(4)]], [[1.0, 0.0]]])
    found = calibration.confidences(np.array([0.5, np.log(2)]), features)
    assert found == pytest.approx(np.array([[0.5, 0.5]]))  # 2 ** 1 against 4 ** 0.5


def test_the_fit_finds_temperature_and_weight():
    features, labels = drawn([1 / 2.5, 3.0])
    sharpness, agreement = calibration.fit_weights(features, labels)
    assert 1 / sharpness == pytest.approx(2.5, rel=0.06)
    assert agreement == pytest.approx(3.0, rel=0.06)


def test_the_fit_stays_finite_where_all_are_right():
    features = np.stack([np.log(np.full((4, 2), 0.5) + [[0.1, -0.1]]), np.eye(2)[[0] * 4]])
    weights = calibration.fit_weights(features, np.zeros(4, int))
    assert np.isfinite(weights).all() and weights.max() <= calibration.WEIGHTS[1]


def test_a_half_is_never_judged_by_its_own_labels():
    """Changing a label changes the weights of the other half alone."""
    features, labels = drawn([1.0, 1.0], n=40)
    before = calibration.cross_fitted(features, labels)
    changed = labels.copy()
    changed[7] = (changed[7] + 1) % 5
    same = (calibration.cross_fitted(features, changed) == before).all(1)
    assert same[7] and same.sum() == 20


def test_quality_of_perfect_and_of_boastful_confidences():
    labels = np.array([0, 1] * 50)
    perfect = calibration.quality(np.eye(2)[labels], labels)
    assert perfect == {"accuracy": 1, "confidence": 1, "ece": 0, "brier": 0, "n": 100}
    boastful = calibration.quality(np.tile([0.9, 0.1], (100, 1)), labels)
    assert boastful["ece"] == pytest.approx(0.4) and boastful["accuracy"] == 0.5
    assert boastful["brier"] == pytest.approx(0.5 * 0.02 + 0.5 * 1.62)


def test_the_error_takes_ten_bins_of_equally_many():
    """Right exactly as often as claimed, in every bin but one."""
    confident = np.repeat(np.linspace(0.55, 1.0, 10), 20)
    right = np.concatenate([np.arange(20) < round(20 * c) for c in confident[::20]])
    right[:20] = False
    given = np.stack([confident, 1 - confident], 1)
    found = calibration.quality(given, np.where(right, 0, 1))
    assert found["ece"] == pytest.approx(0.055, abs=0.003)
