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


__all__ = ["bootstrap_interval"]
