"""Thresholds of scores, chosen on validation rows."""

import numpy as np

from .checks import as_columns


def specificity_thresholds(scores: np.ndarray, labels: np.ndarray, specificity: float) -> np.ndarray:
    """
    The lowest thresholds at which validation rows reach a specificity: scores above are called positive.

    Args:
        scores (`np.ndarray` of shape `(N,)` or `(N, C)`): Of validation rows.
        labels (`np.ndarray`, same shape): 0, 1 or NaN (unknown).
        specificity (`float`): Share of negatives to be called negative, in (0, 1].

    Returns:
        `np.ndarray` of shape `(C,)`: NaN for a label without negatives on validation.

    Raises:
        ValueError: if shapes differ, a score is NaN, or `specificity` is out of range.
    """
    if not 0 < specificity <= 1:
        raise ValueError(f"specificity is a share in (0, 1], got {specificity}. For 90 % pass 0.9.")
    scores, labels = (as_columns(np.asarray(values, dtype=np.float64)) for values in (scores, labels))
    if scores.shape != labels.shape or np.isnan(scores).any():
        raise ValueError(f"Scores {scores.shape} and labels {labels.shape} need one shape, and scores must not be NaN.")
    thresholds = np.full(scores.shape[1], np.nan)
    for column in range(scores.shape[1]):
        negatives = np.sort(scores[labels[:, column] == 0, column])
        if len(negatives):
            # Rounded: 0.9 * 10 must not become the eleventh value.
            thresholds[column] = negatives[int(np.ceil(np.round(specificity * len(negatives), 9))) - 1]
    return thresholds


def f1_thresholds(scores: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """
    Threshold of the highest F1 of each label on validation rows; scores above it are called positive.

    Args:
        scores, labels (`np.ndarray` of shape `(N,)` or `(N, C)`): As in [`specificity_thresholds`].

    Returns:
        `np.ndarray` of shape `(C,)`: NaN for a label without positives on validation.
    """
    from sklearn.metrics import precision_recall_curve

    scores, labels = (as_columns(np.asarray(values, dtype=np.float64)) for values in (scores, labels))
    thresholds = np.full(scores.shape[1], np.nan)
    for column in range(scores.shape[1]):
        known = ~np.isnan(labels[:, column])
        if (labels[known, column] == 1).any():
            precision, recall, cuts = precision_recall_curve(labels[known, column], scores[known, column])
            total = precision + recall
            f1 = np.divide(2 * precision * recall, total, out=np.zeros_like(total), where=total > 0)[:-1]
            # The curve calls "at least the cut" positive, we call "above" it.
            thresholds[column] = np.nextafter(cuts[f1.argmax()], -np.inf)
    return thresholds


__all__ = ["f1_thresholds", "specificity_thresholds"]
