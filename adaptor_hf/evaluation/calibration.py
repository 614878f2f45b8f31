"""Whether events come as often as probabilities say."""

import numpy as np

from .checks import check_probabilities
from .weighted import ratio

NUM_BINS = 15


def reliability_curve(probabilities: np.ndarray, labels: np.ndarray, num_bins: int = NUM_BINS) -> dict[str, np.ndarray]:
    """
    How often the event comes where a probability says it: one point for each of equal bins (lower, upper].

    Args:
        probabilities, labels (`np.ndarray` of shape `(N,)`): In [0, 1]; 0, 1 or NaN (left out).

    Returns:
        `dict[str, np.ndarray]`: `confidence` and `frequency` (means within a bin, NaN if empty) and `count`, each
        `(num_bins,)`.
    """
    probabilities, labels = np.asarray(probabilities, dtype=np.float64), np.asarray(labels, dtype=np.float64)
    known = ~np.isnan(labels)
    check_probabilities(probabilities[:, None])
    bins = _bin_of(probabilities[known], num_bins)
    count = np.bincount(bins, minlength=num_bins)
    sums = [np.bincount(bins, weights=part[known], minlength=num_bins) for part in (probabilities, labels)]
    means = [np.divide(part, count, out=np.full(num_bins, np.nan), where=count > 0) for part in sums]
    return {"confidence": means[0], "frequency": means[1], "count": count}


def calibration_error(confidence: np.ndarray, right: np.ndarray, known: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """(B,) mean distance between confidence and frequency over equal bins, weighted by their known rows."""
    members = _bin_of(confidence, NUM_BINS)[:, None] == np.arange(NUM_BINS)
    distance = np.abs(weights @ (members * (known * (confidence - right))[:, None])).sum(1)
    total = weights @ known
    return ratio(distance, total, total > 0)


def _bin_of(probabilities: np.ndarray, num_bins: int) -> np.ndarray:
    """Bin (lower, upper] of each probability; 0 is in the first."""
    return np.clip(np.digitize(probabilities, np.linspace(0, 1, num_bins + 1), right=True) - 1, 0, num_bins - 1)


__all__ = ["NUM_BINS", "calibration_error", "reliability_curve"]
