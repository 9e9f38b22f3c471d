"""Confidences out of scores: a softmax of weighted evidence, fitted, measured and told."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from scipy.optimize import minimize
from scipy.special import log_softmax, softmax

ROUGH = 50  # fitted on fewer photographs, its numbers are called rough
BINS = 10  # of the calibration error
WEIGHTS = (1e-3, 1e2)  # of a kind of evidence


def confidences(weights: np.ndarray, features: np.ndarray) -> np.ndarray:
    """Softmax over the classes of the weighted sum of K kinds of evidence (K, P, C): (P, C)."""
    return softmax(np.tensordot(weights, features, 1), 1)


def fit_weights(features: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """The weights of kinds of evidence (K, P, C) under which the labels (P,) are likeliest: (K,).

    Maximum likelihood of the softmax of their weighted sum, a convex problem; within `WEIGHTS`,
    as a handful of photographs that are all right would let them grow without end.
    """
    at = np.arange(len(labels))

    def loss(weights: np.ndarray) -> tuple[float, np.ndarray]:
        logp = log_softmax(np.tensordot(weights, features, 1), 1)
        gap = np.exp(logp)
        gap[at, labels] -= 1
        return -logp[at, labels].mean(), (features * gap).sum((1, 2)) / len(labels)

    bounds = [WEIGHTS] * len(features)
    return minimize(loss, np.ones(len(features)), jac=True, bounds=bounds, method="L-BFGS-B").x


def cross_fitted(features: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Confidences (P, C) of each half of the photographs by weights fitted on the other."""
    order = np.random.default_rng(0).permutation(len(labels))
    found = np.empty(features.shape[1:])
    for fitted, held in ((order[::2], order[1::2]), (order[1::2], order[::2])):
        weights = fit_weights(features[:, fitted], labels[fitted])
        found[held] = confidences(weights, features[:, held])
    return found


def quality(given: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """How good confidences (P, C) are: accuracy, ece, brier, mean confidence, n.

    ece: |right - confidence| over bins of equally many photographs, averaged; brier: squared
    error of all C confidences, summed over classes, from 0 to 2.
    """
    top = given.max(1)
    right = given.argmax(1) == labels
    bins = [part for part in np.array_split(np.argsort(top, kind="stable"), BINS) if len(part)]
    ece = sum(abs((right[part] - top[part]).sum()) for part in bins) / len(labels)
    wrong = given - np.eye(given.shape[1])[labels]
    found = {"accuracy": right.mean(), "confidence": top.mean(), "ece": ece}
    found["brier"] = (wrong**2).sum(1).mean()
    return {name: float(value) for name, value in found.items()} | {"n": len(top)}


def fit(logps: np.ndarray, shares: np.ndarray, labels: np.ndarray, source: str) -> dict[str, Any]:
    """Temperature of log-probabilities (P, C) and weight of shares (P, C), fitted on all.

    measured: `quality`, cross-fitted, of likelihood alone, of shares alone, and of both.
    """
    kinds = {"likelihood": [logps], "agreement": [shares], "combined": [logps, shares]}
    given = {kind: cross_fitted(np.stack(part), labels) for kind, part in kinds.items()}
    measured = {kind: quality(part, labels) for kind, part in given.items()}
    likelihood, agreement = fit_weights(np.stack([logps, shares]), labels)
    found = {"temperature": float(1 / likelihood), "agreement": float(agreement)}
    return found | {"n": len(labels), "source": source, "measured": measured}


def reliability(fit: Mapping | None) -> str:
    """How far confidences by a `fit` can be trusted, in a plain sentence."""
    if fit is None:
        return "Confidences are not calibrated: take them as an order, not as probabilities."
    cell = {name: f"{100 * v:.0f}" for name, v in fit["measured"]["combined"].items()}
    return (
        f"Confidences were fitted on {fit['n']} held-out photographs ({fit['source']}): mean "
        f"confidence {cell['confidence']} %, right names {cell['accuracy']} %, "
        f"calibration error {cell['ece']} points{', rough' * (fit['n'] < ROUGH)}."
    )
