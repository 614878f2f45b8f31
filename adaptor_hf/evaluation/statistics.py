"""Intervals that respect that images of one patient are not independent."""

from collections.abc import Sequence

import numpy as np


def bootstrap_interval(
    values: np.ndarray | Sequence[np.ndarray],
    groups: np.ndarray | Sequence[np.ndarray],
    *,
    num_resamples: int = 2000,
    level: float = 0.95,
    seed: int = 0,
) -> tuple[float, float]:
    """
    Percentile bootstrap interval of a mean, resampling whole groups (patients).

    Args:
        values (`np.ndarray` of shape `(N,)`, or several): One number a row, for instance 1 for a hit and 0 for a miss.
            Of several arrays, the interval is that of the mean of their means, under the same resampled groups;
            resamples that hold no row of one of them are left out.
        groups (`np.ndarray` of shape `(N,)`, or as many): Rows of one group are drawn together. Any dtype.
        num_resamples (`int`, defaults to 2000): Number of bootstrap samples.
        level (`float`, defaults to 0.95): Coverage, in (0, 1).
        seed (`int`, defaults to 0): Seed of the resampling.

    Returns:
        `tuple[float, float]`: Lower and upper end.

    Raises:
        ValueError: if there is no row, a value is NaN or infinite, or values and groups differ in length.
    """
    if isinstance(values, np.ndarray):
        values, groups = [values], [groups]
    lengths = [(len(value), len(group)) for value, group in zip(values, groups, strict=True)]
    if any(count == 0 or count != members for count, members in lengths):
        raise ValueError(f"Need one group per value and at least one row, got (values, groups) of {lengths}.")
    if not all(np.isfinite(value).all() for value in values):
        raise ValueError("A value is NaN or infinite: the mean would be too.")
    names, codes = np.unique(np.concatenate(groups), return_inverse=True)
    codes = np.split(codes, np.cumsum([count for count, _ in lengths])[:-1])
    sums = [np.bincount(code, weights=value, minlength=len(names)) for code, value in zip(codes, values, strict=True)]
    sizes = [np.bincount(code, minlength=len(names)) for code in codes]
    generator = np.random.default_rng(seed)
    means = []
    # In blocks: all resamples of 50,000 patients at once would be 800 MB.
    block = max(1, 2**22 // len(names))
    for start in range(0, num_resamples, block):
        drawn = generator.integers(len(names), size=(min(block, num_resamples - start), len(names)))
        totals, counts = (np.stack([part[drawn].sum(1) for part in parts]) for parts in (sums, sizes))
        whole = (counts > 0).all(0)
        means.append((totals[:, whole] / counts[:, whole]).mean(0))
    tail = (1 - level) / 2
    lower, upper = np.quantile(np.concatenate(means), [tail, 1 - tail])
    return float(lower), float(upper)


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
    Area under the ROC curve and its percentile bootstrap interval, resampling whole groups (patients).

    Args:
        scores (`np.ndarray` of shape `(N,)`): Higher means positive. Ties count half.
        labels (`np.ndarray` of shape `(N,)`): 0 or 1, both present.
        groups (`np.ndarray` of shape `(N,)`): Rows of one group are drawn together.
        num_resamples, level, seed: As in [`bootstrap_interval`].

    Returns:
        `tuple[float, float, float]`: The area, the lower and the upper end. Resamples of one class alone are left out.

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
    positive, negative = scores[labels], scores[~labels]
    wins = (positive[:, None] > negative[None, :]) + 0.5 * (positive[:, None] == negative[None, :])
    _, codes = np.unique(groups, return_inverse=True)
    number = codes.max() + 1
    drawn = np.random.default_rng(seed).multinomial(number, np.full(number, 1 / number), size=num_resamples)
    of_positive, of_negative = drawn[:, codes[labels]], drawn[:, codes[~labels]]
    pairs = of_positive.sum(1) * of_negative.sum(1)
    areas = ((of_positive @ wins) * of_negative).sum(1)[pairs > 0] / pairs[pairs > 0]
    tail = (1 - level) / 2
    lower, upper = np.quantile(areas, [tail, 1 - tail])
    return float(wins.mean()), float(lower), float(upper)


__all__ = ["auroc_interval", "bootstrap_interval"]
