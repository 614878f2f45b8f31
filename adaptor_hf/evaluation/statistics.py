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
            Of several arrays, the interval is that of the mean of their means, under the same resampled groups.
        groups (`np.ndarray` of shape `(N,)`, or as many): Rows of one group are drawn together. Any dtype.
        num_resamples (`int`, defaults to 2000): Number of bootstrap samples.
        level (`float`, defaults to 0.95): Coverage, in (0, 1).
        seed (`int`, defaults to 0): Seed of the resampling.

    Returns:
        `tuple[float, float]`: Lower and upper end.

    Raises:
        ValueError: if there is no row, or values and groups differ in length.
    """
    if isinstance(values, np.ndarray):
        values, groups = [values], [groups]
    lengths = [(len(value), len(group)) for value, group in zip(values, groups, strict=True)]
    if any(count == 0 or count != members for count, members in lengths):
        raise ValueError(f"Need one group per value and at least one row, got (values, groups) of {lengths}.")
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
        parts = [
            total[drawn].sum(1) / np.maximum(size[drawn].sum(1), 1) for total, size in zip(sums, sizes, strict=True)
        ]
        means.append(np.mean(parts, axis=0))
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
        ValueError: if only one class is present.
    """
    scores, labels = np.asarray(scores, dtype=np.float64), np.asarray(labels).astype(bool)
    if labels.all() or not labels.any():
        raise ValueError(f"The AUROC needs both classes, got {int(labels.sum())} positives among {len(labels)} rows.")
    positive, negative = scores[labels], scores[~labels]
    wins = (positive[:, None] > negative[None, :]) + 0.5 * (positive[:, None] == negative[None, :])
    _, codes = np.unique(np.asarray(groups), return_inverse=True)
    number = codes.max() + 1
    drawn = np.random.default_rng(seed).multinomial(number, np.full(number, 1 / number), size=num_resamples)
    of_positive, of_negative = drawn[:, codes[labels]], drawn[:, codes[~labels]]
    pairs = of_positive.sum(1) * of_negative.sum(1)
    areas = ((of_positive @ wins) * of_negative).sum(1)[pairs > 0] / pairs[pairs > 0]
    tail = (1 - level) / 2
    lower, upper = np.quantile(areas, [tail, 1 - tail])
    return float(wins.mean()), float(lower), float(upper)


__all__ = ["auroc_interval", "bootstrap_interval"]
