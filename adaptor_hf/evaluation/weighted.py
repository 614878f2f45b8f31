"""
Areas under curves of many resamples at once: each resample is one row of weights, how often each image was drawn.

scikit-learn computes one weighted value a call; a thousand resamples of fourteen findings would take minutes.
"""

import numpy as np


def _by_distinct_score(scores: np.ndarray, positive: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Weights of positives and of negatives, `(B, D)` each, at every distinct score in ascending order."""
    order = np.argsort(scores, kind="stable")
    ordered = scores[order]
    starts = np.flatnonzero(np.r_[True, ordered[1:] != ordered[:-1]])
    is_positive, drawn = positive[order], weights[:, order]
    of_positive = np.add.reduceat(drawn * is_positive, starts, axis=1)
    return of_positive, np.add.reduceat(drawn * ~is_positive, starts, axis=1)


def weighted_auroc(scores: np.ndarray, positive: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """
    Area under the ROC curve under each row of weights; ties count half.

    Args:
        scores (`np.ndarray` of shape `(N,)`): Higher means positive; no NaN.
        positive (`np.ndarray` of shape `(N,)`): True or 1 for positives.
        weights (`np.ndarray` of shape `(B, N)`): Not negative.

    Returns:
        `np.ndarray` of shape `(B,)`: NaN where the weighted rows have one class alone.
    """
    positive = np.asarray(positive).astype(bool)
    of_positive, of_negative = _by_distinct_score(np.asarray(scores), positive, weights)
    below = np.cumsum(of_negative, axis=1) - of_negative
    wins = (of_positive * (below + 0.5 * of_negative)).sum(1)
    pairs = of_positive.sum(1) * of_negative.sum(1)
    return np.divide(wins, pairs, out=np.full(len(weights), np.nan), where=pairs > 0)


def weighted_average_precision(scores: np.ndarray, positive: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """
    Average precision, the area under the precision-recall curve without interpolation (scikit-learn's definition).

    Arguments as of [`weighted_auroc`]; NaN where the weighted rows have no positive.
    """
    positive = np.asarray(positive).astype(bool)
    of_positive, of_negative = (part[:, ::-1] for part in _by_distinct_score(np.asarray(scores), positive, weights))
    hits = np.cumsum(of_positive, axis=1)
    called = hits + np.cumsum(of_negative, axis=1)
    precision = np.divide(hits, called, out=np.zeros_like(hits), where=called > 0)
    total = hits[:, -1]
    return np.divide((of_positive * precision).sum(1), total, out=np.full(len(weights), np.nan), where=total > 0)


__all__ = ["weighted_auroc", "weighted_average_precision"]
