"""
Areas under curves of many resamples at once: each resample is one row of weights, how often each image was drawn.

scikit-learn computes one weighted value a call; a thousand resamples of fourteen findings would take minutes.
"""

import numpy as np


def weighted_areas(
    scores: np.ndarray, positive: np.ndarray, weights: np.ndarray, known: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """
    Area under the ROC curve and average precision under each row of weights.

    Args:
        scores (`np.ndarray` of shape `(N,)`): Higher means positive; no NaN.
        positive (`np.ndarray` of shape `(N,)`): True or 1 for positives.
        weights (`np.ndarray` of shape `(B, N)`): Not negative.
        known (`np.ndarray` of shape `(N,)`, bool, *optional*): Rows that count; all by default.

    Returns:
        `tuple[np.ndarray, np.ndarray]`: `(B,)` each. The area counts ties half, and is NaN where the weighted rows have
        one class alone. Average precision is scikit-learn's, without interpolation; NaN without positives.
    """
    scores, positive = np.asarray(scores), np.asarray(positive).astype(bool)
    order = np.argsort(scores, kind="stable") if known is None else np.flatnonzero(known)
    if known is not None:
        order = order[np.argsort(scores[order], kind="stable")]
    ordered = scores[order]
    rows = np.flatnonzero(positive[order])
    # Of each positive: where the rows with its score begin and end.
    start, end = (np.searchsorted(ordered, ordered[rows], side=side) for side in ("left", "right"))
    below = np.zeros((len(weights), len(order) + 1))
    np.cumsum(np.take(weights, order, axis=1), axis=1, out=below[:, 1:])
    own = np.take(weights, order[rows], axis=1)
    lower, upper = np.take(below, start, axis=1), np.take(below, end, axis=1)
    total, positives = below[:, -1], own.sum(1)
    # Pairs of two positives, ties half, weigh half the square of their weight.
    wins = (own * (lower + upper)).sum(1) / 2 - positives**2 / 2
    pairs = positives * (total - positives)
    area = np.divide(wins, pairs, out=np.full(len(weights), np.nan), where=pairs > 0)
    hits_below = np.zeros((len(weights), len(rows) + 1))
    np.cumsum(own, axis=1, out=hits_below[:, 1:])
    hits = positives[:, None] - np.take(hits_below, np.searchsorted(ordered[rows], ordered[rows]), axis=1)
    called = total[:, None] - lower
    precision = np.divide(hits, called, out=np.zeros_like(hits), where=called > 0)
    average = np.divide((own * precision).sum(1), positives, out=np.full(len(weights), np.nan), where=positives > 0)
    return area, average


def weighted_auroc(scores: np.ndarray, positive: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """`(B,)` areas under the ROC curve: the first of [`weighted_areas`]."""
    return weighted_areas(scores, positive, weights)[0]


def ratio(part: np.ndarray, whole: np.ndarray, defined: np.ndarray | bool, empty: float = np.nan) -> np.ndarray:
    """Part of the whole; `empty` where the whole is 0, NaN where it is not defined."""
    value = np.divide(part, whole, out=np.full(np.shape(part), empty, dtype=np.float64), where=whole > 0)
    return np.where(defined, value, np.nan)


__all__ = ["ratio", "weighted_areas", "weighted_auroc"]
