"""The interval of one metric of plain arrays: an AUROC, a share."""

import numpy as np

from .intervals import IntervalMethod, make_intervals
from .statistics import bootstrap_draws
from .weighted import weighted_auroc


def auroc_interval(
    scores: np.ndarray,
    labels: np.ndarray,
    groups: np.ndarray,
    *,
    num_resamples: int = 1000,
    level: float = 0.95,
    seed: int = 0,
) -> tuple[float, float, float]:
    """
    Area under the ROC curve and its interval over groups (patients), as `classification_intervals` makes it.

    Args:
        scores (`np.ndarray` of shape `(N,)`): Higher means positive. Ties count half.
        labels (`np.ndarray` of shape `(N,)`): 0 or 1, both present.
        groups (`np.ndarray` of shape `(N,)`): Rows of one group are drawn together.
        num_resamples, level, seed: As in [`bootstrap_interval`].

    Returns:
        `tuple[float, float, float]`: The area, the lower and the upper end; NaN ends where fewer than five groups have
        a class, or there is one group.

    Raises:
        ValueError: if only one class is present, a label is neither 0 nor 1, a score is NaN, or the lengths differ.
    """
    scores, labels, groups = np.asarray(scores, dtype=np.float64), np.asarray(labels), np.asarray(groups)
    if not len(scores) == len(labels) == len(groups):
        raise ValueError(f"Got {len(scores)} scores, {len(labels)} labels and {len(groups)} groups.")
    if np.isnan(scores).any() or not np.isin(labels, (0, 1)).all():
        raise ValueError("Scores must not be NaN and labels must be 0 or 1: leave out uncertain and missing labels.")
    labels = labels.astype(bool)
    if labels.all() or not labels.any():
        raise ValueError(f"The AUROC needs both classes, got {int(labels.sum())} positives among {len(labels)} rows.")
    area = float(weighted_auroc(scores, labels, np.ones((1, len(labels))))[0])
    draws = bootstrap_draws(
        [scores, labels], groups, weighted_auroc, weighted=True, num_resamples=num_resamples, seed=seed
    )
    method = IntervalMethod("area", labels, ~labels, {"with the label": labels, "without it": ~labels})
    return area, *make_intervals({"auroc": method}, {"auroc": area}, {"auroc": draws}, groups, level=level)["auroc"]


def share_interval(
    hits: np.ndarray, groups: np.ndarray, *, num_resamples: int = 1000, level: float = 0.95, seed: int = 0
) -> tuple[float, float]:
    """
    Interval over groups (patients) of a share of rows.

    Args:
        hits (`np.ndarray` of shape `(N,)`): 0 or 1.
        groups (`np.ndarray` of shape `(N,)`): Rows of one group are drawn together.
        num_resamples, level, seed: As in [`bootstrap_interval`].

    Returns:
        `tuple[float, float]`: NaN with fewer than five groups.
    """
    hits, every = np.asarray(hits, dtype=np.float64), np.ones(len(hits), bool)
    draws = bootstrap_draws(
        [hits], groups, lambda values, weights: weights @ values / weights.sum(1), weighted=True,
        num_resamples=num_resamples, seed=seed,
    )  # fmt: skip
    method = IntervalMethod("share", every, needs={"": every})
    value = {"share": float(hits.mean())}
    return make_intervals({"share": method}, value, {"share": draws}, np.asarray(groups), level=level)["share"]


__all__ = ["auroc_interval", "share_interval"]
