"""Intervals and tests that respect that images of one patient are not independent."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

# Weights of one block of resamples: 8 MB in float64, near the processor's caches.
BLOCK_ELEMENTS = 2**20


def bootstrap_interval(
    values: np.ndarray | Sequence[np.ndarray],
    groups: np.ndarray | Sequence[np.ndarray],
    *,
    metric: Callable[..., float] | None = None,
    weighted: bool = False,
    num_resamples: int = 2000,
    level: float = 0.95,
    seed: int = 0,
) -> tuple[float, float]:
    """
    Percentile bootstrap interval of a mean, or of any metric, resampling whole groups (patients).

    Args:
        values (`np.ndarray` of shape `(N,)`, or several): Without `metric`: one number a row, for instance 1 for a hit
            and 0 for a miss; of several arrays, the interval is that of the mean of their means, under the same
            resampled groups; resamples that hold no row of one of them are left out. With `metric`: its arguments,
            arrays of `N` rows each.
        groups (`np.ndarray` of shape `(N,)`, or as many): Rows of one group are drawn together. Any dtype. With
            `metric`, one array.
        metric (`Callable`, *optional*): `metric(*values)` of the drawn rows, a number.
        weighted (`bool`, defaults to `False`): Call `metric(*values, weights)` with all rows and how often each was
            drawn, `(B, N)`, and get `(B,)` numbers: far faster where there is such a form (`weighted_auroc`).
        num_resamples (`int`, defaults to 2000): Number of bootstrap samples.
        level (`float`, defaults to 0.95): Coverage, in (0, 1).
        seed (`int`, defaults to 0): Seed of the resampling.

    Returns:
        `tuple[float, float]`: Lower and upper end. A metric that is NaN in a resample (one class alone) leaves it out;
        where it is NaN in more than half of them both ends are NaN.

    Raises:
        ValueError: if there is no row, a value is NaN or infinite, or values and groups differ in length.
    """
    if metric is not None:
        values = [values] if isinstance(values, np.ndarray) else values
        draws = bootstrap_draws(values, groups, metric, weighted=weighted, num_resamples=num_resamples, seed=seed)
        return interval_of(draws, level)
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
    return interval_of(np.concatenate(means), level, share=0)


def resampled_weights(groups: np.ndarray, num_resamples: int, seed: int) -> Iterator[np.ndarray]:
    """Blocks `(b, N)`, float64, of how often each row is drawn when whole groups are drawn with replacement."""
    names, codes = np.unique(groups, return_inverse=True)
    if len(names) == 0:
        raise ValueError("There is no row to resample.")
    generator = np.random.default_rng(seed)
    chances = np.full(len(names), 1 / len(names))
    block = max(1, BLOCK_ELEMENTS // len(codes))
    for start in range(0, num_resamples, block):
        drawn = generator.multinomial(len(names), chances, size=min(block, num_resamples - start))
        yield drawn[:, codes].astype(np.float64)


def bootstrap_draws(
    values: Sequence[np.ndarray],
    groups: np.ndarray,
    metric: Callable[..., float],
    *,
    weighted: bool = False,
    num_resamples: int = 2000,
    seed: int = 0,
) -> np.ndarray:
    """
    A metric of each resample, `(num_resamples,)`; arguments as of [`bootstrap_interval`]. The same groups and seed draw
    the same patients, so that draws of two models can be subtracted.
    """
    values, groups = [np.asarray(value) for value in values], np.asarray(groups)
    if any(len(value) != len(groups) for value in values):
        raise ValueError(f"Got {len(groups)} groups for values of {[len(value) for value in values]} rows.")
    draws = []
    for weights in resampled_weights(groups, num_resamples, seed):
        if weighted:
            draws.append(metric(*values, weights))
        else:
            rows = [np.repeat(np.arange(len(groups)), counts.astype(np.int64)) for counts in weights]
            draws.append(np.array([metric(*(value[chosen] for value in values)) for chosen in rows]))
    return np.concatenate(draws)


def interval_of(draws: np.ndarray, level: float = 0.95, *, share: float = 0.5) -> tuple[float, float]:
    """Percentile interval of draws that are not NaN; NaN ends if no more than `share` of them are left."""
    if not 0 < level < 1:
        raise ValueError(f"level is a coverage in (0, 1), got {level}. For 95 % pass 0.95.")
    known = draws[~np.isnan(draws)]
    if len(known) == 0 or len(known) <= share * len(draws):
        return float("nan"), float("nan")
    tail = (1 - level) / 2
    lower, upper = np.quantile(known, [tail, 1 - tail])
    return float(lower), float(upper)


@dataclass
class Difference:
    """
    First minus second, with its interval and a two-sided p-value for "no difference".

    Args:
        value, ci_lo, ci_hi (`float`): The difference and the ends of its interval.
        p_value (`float`): In (0, 1].
        method (`str`): How the interval was made.
        standard_error (`float`): Of the difference; NaN where it is not known.
    """

    value: float
    ci_lo: float
    ci_hi: float
    p_value: float
    method: str
    standard_error: float = float("nan")

    def detectable(self, power: float = 0.8, alpha: float = 0.05) -> float:
        """
        The smallest true difference that a two-sided test at `alpha` finds with this power on data like these, by the
        normal approximation: (z(1 - alpha / 2) + z(power)) standard errors.
        """
        from scipy.stats import norm

        return float((norm.ppf(1 - alpha / 2) + norm.ppf(power)) * self.standard_error)


def paired_bootstrap(
    first: np.ndarray | Sequence[np.ndarray],
    second: np.ndarray | Sequence[np.ndarray],
    groups: np.ndarray,
    *,
    metric: Callable[..., float] | None = None,
    weighted: bool = False,
    num_resamples: int = 2000,
    level: float = 0.95,
    seed: int = 0,
) -> Difference:
    """
    Difference of a metric between two models on the same rows: both are scored on the same resampled patients.

    Args:
        first, second (`np.ndarray` of shape `(N,)`, or several): What the metric takes, of each model; for instance
            `(scores, labels)`. Without `metric`, one number a row, and the metric is the mean.
        groups (`np.ndarray` of shape `(N,)`): Patient of each row.
        metric, weighted, num_resamples, level, seed: As in [`bootstrap_interval`].

    Returns:
        [`Difference`]: The p-value is twice the smaller share of resamples on either side of 0, counting one more
        resample on each side, so that it is never 0.

    Raises:
        ValueError: if rows and groups differ in length, or the metric of all rows is NaN.
    """
    first, second = ([side] if isinstance(side, np.ndarray) else list(side) for side in (first, second))
    if metric is None:
        metric, weighted = weighted_mean, True
    whole = np.ones((1, len(groups)))
    values = []
    for side in (first, second):
        if any(len(column) != len(groups) for column in side):
            raise ValueError(f"Got {len(groups)} groups for values of {[len(column) for column in side]} rows.")
        values.append(float(metric(*side, whole)[0] if weighted else metric(*side)))
    if np.isnan(values).any():
        raise ValueError(f"The metric is NaN on all rows ({values[0]:g}, {values[1]:g}): there is nothing to compare.")
    draws = [
        bootstrap_draws(side, groups, metric, weighted=weighted, num_resamples=num_resamples, seed=seed)
        for side in (first, second)
    ]
    differences = draws[0] - draws[1]
    known = differences[~np.isnan(differences)]
    smaller = min((known <= 0).sum(), (known >= 0).sum())
    p_value = min(1.0, 2 * (smaller + 1) / (len(known) + 1))
    return Difference(values[0] - values[1], *interval_of(differences, level), float(p_value), "paired bootstrap")


def weighted_mean(values: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """`(B,)` means of `values` `(N,)` under `weights` `(B, N)`."""
    return weights @ np.asarray(values, dtype=np.float64) / weights.sum(1)


def delong(
    scores: np.ndarray,
    labels: np.ndarray,
    patients: np.ndarray,
    other: np.ndarray | None = None,
    *,
    level: float = 0.95,
) -> Difference | tuple[float, float, float]:
    """
    DeLong's interval of an AUROC, or his paired test of two (Biometrics 1988, by midranks as Sun and Xu 2014).

    Its variance takes every image as independent, so it is refused where a patient has more than one.

    Args:
        scores (`np.ndarray` of shape `(N,)`): Higher means positive.
        labels (`np.ndarray` of shape `(N,)`): 0 or 1, both present at least twice.
        patients (`np.ndarray` of shape `(N,)`): Patient of each row, all different.
        other (`np.ndarray` of shape `(N,)`, *optional*): A second model's scores of the same rows.
        level (`float`, defaults to 0.95): Coverage.

    Returns:
        `tuple[float, float, float]`: The area, lower and upper end; or, with `other`, a [`Difference`].

    Raises:
        ValueError: if a patient has several rows, or rows, labels and scores do not fit.
    """
    from scipy.stats import norm, rankdata

    labels, patients = np.asarray(labels), np.asarray(patients)
    models = np.array([scores] if other is None else [scores, other], dtype=np.float64)
    if not models.shape[1] == len(labels) == len(patients):
        raise ValueError(f"Got {models.shape[1]} scores, {len(labels)} labels and {len(patients)} patients.")
    if len(np.unique(patients)) < len(patients):
        raise ValueError(
            f"{len(patients)} rows are of {len(np.unique(patients))} patients: DeLong needs one image a patient. "
            "Use the bootstrap over patients, or aggregate to the patient first."
        )
    if not np.isfinite(models).all() or not np.isin(labels, (0, 1)).all():
        raise ValueError("Scores must be finite and labels 0 or 1.")
    positive = labels.astype(bool)
    m, n = int(positive.sum()), int((~positive).sum())
    if min(m, n) < 2:
        raise ValueError(f"DeLong needs two rows of each class, got {m} positives and {n} negatives.")
    ranks = rankdata(models, axis=1)
    of_positive = (ranks[:, positive] - rankdata(models[:, positive], axis=1)) / n
    of_negative = 1 - (ranks[:, ~positive] - rankdata(models[:, ~positive], axis=1)) / m
    areas = of_positive.mean(1)
    covariance = np.atleast_2d(np.cov(of_positive)) / m + np.atleast_2d(np.cov(of_negative)) / n
    quantile = norm.ppf((1 + level) / 2)
    if other is None:
        half = quantile * np.sqrt(covariance[0, 0])
        return float(areas[0]), float(max(0, areas[0] - half)), float(min(1, areas[0] + half))
    difference = areas[0] - areas[1]
    error = np.sqrt(max(0.0, covariance[0, 0] + covariance[1, 1] - 2 * covariance[0, 1]))
    p_value = 1.0 if difference == 0 else float(2 * norm.sf(abs(difference) / error)) if error > 0 else 0.0
    half = quantile * error
    return Difference(float(difference), float(difference - half), float(difference + half), p_value, "DeLong")


def holm(p_values: Sequence[float]) -> np.ndarray:
    """
    P-values adjusted for their number by Holm's step-down rule (1979), in the order given.

    Raises:
        ValueError: if a p-value is not in [0, 1].
    """
    values = np.asarray(p_values, dtype=np.float64)
    if values.ndim != 1 or not ((values >= 0) & (values <= 1)).all():
        raise ValueError("p-values are numbers in [0, 1], in one list. Leave out comparisons that were not possible.")
    order = np.argsort(values, kind="stable")
    adjusted = np.empty_like(values)
    adjusted[order] = np.minimum(1, np.maximum.accumulate(values[order] * np.arange(len(values), 0, -1)))
    return adjusted


def seed_interval(values: Sequence[float], level: float = 0.95) -> tuple[float, float, float]:
    """
    Mean over seeds and its interval by Student's t, which at five seeds is 1.4 times as wide as by the normal.

    Returns:
        `tuple[float, float, float]`: Mean, lower and upper end; the ends of one value alone are NaN.

    Raises:
        ValueError: if there is no value, or one is NaN or infinite.
    """
    from scipy.stats import t

    values = np.asarray(values, dtype=np.float64)
    if values.size == 0 or not np.isfinite(values).all():
        raise ValueError("Need at least one value, and none that is NaN or infinite.")
    mean = float(values.mean())
    if len(values) == 1:
        return mean, float("nan"), float("nan")
    half = t.ppf((1 + level) / 2, len(values) - 1) * values.std(ddof=1) / np.sqrt(len(values))
    return mean, float(mean - half), float(mean + half)


__all__ = [
    "Difference",
    "bootstrap_draws",
    "bootstrap_interval",
    "delong",
    "holm",
    "interval_of",
    "paired_bootstrap",
    "resampled_weights",
    "seed_interval",
    "weighted_mean",
]
