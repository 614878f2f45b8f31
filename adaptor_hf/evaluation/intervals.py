"""
Intervals that cover at few patients: of shares, means, AUROC and average precision, of their means and differences.

The spread comes from a bootstrap over patients; its percentiles do not cover at 5 to 20 positives, and near 1 hardly at
all (`benchmarks/bench_coverage.py`). Each kind of metric therefore has an interval of its own, and what is a mean or a
difference of others is combined from theirs (MOVER: Zou and Donner 2008). docs/evaluation.md has the formulas and the
simulated coverage.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np

from .formulas import PRIORS, combine, hanley_mcneil, interval_ends
from .statistics import Difference

MIN_PATIENTS = 5
"""Of each class; with fewer there is no interval: none was found that covers and still says anything."""

METHODS = {
    "share": "Wilson, at the effective number of images over {unit}",
    "ratio": "Wilson, at the effective number of {unit} at this share of positives",
    "mean": "Wilson, at the effective number of {unit}",
    "area": "logit, variance over {unit} and Hanley-McNeil's",
    "ap": "logit, variance over {unit} at this share of positives",
    "average": "MOVER over {unit}",
}
_STEPS = 36


@dataclass(frozen=True)
class IntervalMethod:
    """
    How a metric gets its interval.

    Args:
        kind (`str`): `share` (of rows), `mean` (of numbers in [0, 1]), `ratio` (such as F1), `area` (AUROC), `ap`
            (average precision), `average` (of `parts`), or `none`.
        rows (`np.ndarray` of shape `(N,)`, bool): Rows in the denominator; of `area`, `ap`
            and F1 the positives.
        others (`np.ndarray` of shape `(N,)`, bool, *optional*): Of `area`, `ap` and F1, the negatives.
        needs (`Mapping[str, np.ndarray]`): Name to `(N,)` bool of rows of which at least [`MIN_PATIENTS`] must be.
        parts (`tuple[str, ...]`): Metrics whose mean this is.
        reason (`str`): Why there is none, if that is known before.
        scale (`float`): The metric lies in [0, `scale`].
    """

    kind: str
    rows: np.ndarray | None = None
    others: np.ndarray | None = None
    needs: Mapping[str, np.ndarray] = field(default_factory=dict)
    parts: tuple[str, ...] = ()
    reason: str = ""
    scale: float = 1.0


class Intervals(dict[str, tuple[float, float]]):
    """Name to ends, both NaN where there is no interval; `reasons` says why, `cautions` where one is doubtful, and
    `methods` how it was made."""

    def __init__(self):
        super().__init__()
        self.reasons: dict[str, str] = {}
        self.cautions: dict[str, str] = {}
        self.methods: dict[str, str] = {}


def make_intervals(
    methods: Mapping[str, IntervalMethod],
    values: Mapping[str, float],
    draws: Mapping[str, np.ndarray],
    groups: np.ndarray,
    *,
    level: float = 0.95,
    unit: str = "patients",
) -> Intervals:
    """
    Intervals of many metrics of one set of rows.

    Args:
        methods (`Mapping[str, IntervalMethod]`): By metric; parts of an average among them.
        values (`Mapping[str, float]`): Of all rows.
        draws (`Mapping[str, np.ndarray]`): `(B,)` of each metric, under the same resamples of whole groups.
        groups (`np.ndarray` of shape `(N,)`): Patient of each row.
        level (`float`, defaults to 0.95): Coverage, in (0, 1).
        unit (`str`, defaults to `"patients"`): What a group is, for the sentences.
    """
    if not 0 < level < 1:
        raise ValueError(f"level is a coverage in (0, 1), got {level}. For 95 % pass 0.95.")
    codes = np.unique(groups, return_inverse=True)[1]
    found = Intervals()
    for name, method in methods.items():
        # Parts of an average may be few: their mean is shown with a caution.
        ends, few = _ends(name, methods, values, draws, codes, level), _too_few(name, methods, codes, unit)
        reason = method.reason
        if codes.max() == 0:
            reason = f"All rows are of one {unit.removesuffix('s')}: nothing is known about others."
        elif method.kind != "average" or len(few) == len(method.parts):
            reason = reason or next(iter(few.values()), "")
        if np.isnan(values[name]) or reason or np.isnan(ends).any():
            ends = (np.nan, np.nan)
            if not np.isnan(values[name]):
                found.reasons[name] = "No interval: " + (reason or f"undefined in most resamples of {unit}.")
        else:
            found.methods[name] = METHODS[method.kind].format(unit=unit)
            if few:
                found.cautions[name] = (
                    f"Interval in doubt: {len(few)} of {len(method.parts)} classes have fewer than {MIN_PATIENTS} "
                    f"{unit} with or without it."
                )
        found[name] = (float(ends[0]), float(ends[1]))
    return found


def _too_few(name: str, methods: Mapping[str, IntervalMethod], codes: np.ndarray, unit: str) -> dict[str, str]:
    """Of the metric, or of each part of an average: why its rows are too few."""
    method = methods[name]
    if method.kind == "average":
        return {
            part: next(iter(why.values())) for part in method.parts if (why := _too_few(part, methods, codes, unit))
        }
    counts = {what: _count(codes, rows) for what, rows in method.needs.items()}
    wrong = [f"{number} {unit}{' ' + what if what else ''}" for what, number in counts.items() if number < MIN_PATIENTS]
    if method.kind == "none" or method.reason:
        return {name: method.reason}
    return {name: f"{wrong[0]}, fewer than {MIN_PATIENTS}."} if wrong else {}


def _ends(name, methods, values, draws, codes, level: float) -> tuple[float, float]:
    method, value = methods[name], values[name]
    if np.isnan(value) or method.kind == "none":
        return np.nan, np.nan
    if method.kind == "average":
        return _average(method.parts, methods, values, draws, codes, level, value)
    known = draws[name][~np.isnan(draws[name])]
    if len(known) <= 0.5 * len(draws[name]):
        return np.nan, np.nan
    low, high = _single(method, value / method.scale, known.var(ddof=1) / method.scale**2, codes, level)
    # Rounding must not put the value outside.
    return method.scale * min(low, value / method.scale), method.scale * max(high, value / method.scale)


def _single(
    method: IntervalMethod, value: float, variance: float, codes: np.ndarray, level: float
) -> tuple[float, float]:
    classes = [rows for rows in (method.rows, method.others if method.kind == "area" else None) if rows is not None]
    patients, rows = [_count(codes, of) for of in classes], [int(of.sum()) for of in classes]
    if 0 in patients:
        return np.nan, np.nan
    low, high = interval_ends(method.kind, np.float64(value), np.float64(variance), patients, sum(rows), level)
    return float(low), float(high)


def _search(inner: float, outer: float, outside: Callable[[float], bool]) -> float:
    """Where, from `inner` to `outer`, `outside` becomes true."""
    for _ in range(_STEPS):
        middle = (inner + outer) / 2
        if outside(middle):
            outer = middle
        else:
            inner = middle
    return outer


def _average(parts, methods, values, draws, codes, level: float, value: float) -> tuple[float, float]:
    ends = np.array([_ends(part, methods, values, draws, codes, level) for part in parts])
    below, above = np.array([values[part] for part in parts]) - ends[:, 0], ends[:, 1] - [values[p] for p in parts]
    # Of few patients, correlations below 0 are mostly chance, and would make the mean look too certain.
    correlation = np.maximum(_correlation(np.stack([draws[part] for part in parts])), 0)
    # Average precision of few positives errs upwards in every class, so that its errors do not cancel.
    alike = np.ones_like(correlation) if all(methods[part].kind == "ap" for part in parts) else correlation
    sides = ((below, alike), (above, correlation))
    halves = [np.sqrt(max(0.0, side @ matrix @ side)) / len(parts) for side, matrix in sides]
    return value - halves[0], value + halves[1]


def _correlation(draws: np.ndarray) -> np.ndarray:
    """`(C, C)` of draws `(C, B)`; 0 beside a metric that does not vary."""
    known = draws[:, ~np.isnan(draws).any(0)]
    if known.shape[1] < 2:
        return np.eye(len(draws))
    centred = known - known.mean(1, keepdims=True)
    lengths = np.sqrt((centred**2).sum(1))
    # Rounding of a constant is no variation.
    vary = lengths > 1e-12 * np.sqrt(known.shape[1])
    scaled = np.where(vary[:, None], centred / np.where(vary, lengths, 1)[:, None], 0)
    correlation = scaled @ scaled.T
    np.fill_diagonal(correlation, 1.0)
    return correlation


def difference_interval(
    methods: tuple[Mapping[str, IntervalMethod], Mapping[str, IntervalMethod]],
    values: tuple[Mapping[str, float], Mapping[str, float]],
    draws: tuple[Mapping[str, np.ndarray], Mapping[str, np.ndarray]],
    metric: str,
    groups: tuple[np.ndarray, np.ndarray],
    *,
    level: float = 0.95,
    unit: str = "patients",
) -> Difference:
    """
    First minus second of a metric on the same rows, by MOVER from the two intervals and the draws' correlation.

    Args:
        methods, values, draws: Of both sides, as of [`make_intervals`]; draws under the same resamples.
        metric (`str`): Which.
        groups: Of both sides, whose rows may be in another order.
        level, unit: As there.

    Returns:
        [`Difference`]: The p-value is 1 minus the largest level whose interval leaves out 0, so that p < 0.05 exactly
        where the 95 % interval does. Where either side has no interval, its ends and the p-value are NaN.
    """
    first, second = (side[metric] for side in values)
    difference = float(first - second)
    method = f"paired MOVER over {unit}"
    both = np.stack([side[metric] for side in draws])
    sides = list(zip(methods, values, draws, [np.unique(part, return_inverse=True)[1] for part in groups], strict=True))
    single = [make_intervals(*side, unit=unit) for side in sides]
    if any(metric in side.reasons for side in single):
        return Difference(difference, np.nan, np.nan, np.nan, "none: " + _first_reason(single, metric))
    if np.nanmax(np.abs(both[0] - both[1])) < 1e-12 and abs(difference) < 1e-12:
        return Difference(0.0, 0.0, 0.0, 1.0, method)
    smaller = min(_count(sides[0][3], rows) for rows in _denominators(metric, methods[0]))
    # Of few patients the correlation is as uncertain as the variances: the same two patients stand for "none".
    correlation = _correlation(both)[0, 1] * smaller / (smaller + PRIORS["mean"])

    def at(level: float) -> tuple[float, float]:
        (low_1, high_1), (low_2, high_2) = (_ends(metric, *side, level) for side in sides)
        lower = float(combine(first - low_1, high_2 - second, correlation))
        return difference - lower, difference + float(combine(high_1 - first, second - low_2, correlation))

    def holds_zero(level: float) -> bool:
        low, high = at(level)
        return low <= 0 <= high

    p_value = 1.0 - _search(0.0, 1.0 - 1e-12, holds_zero) if difference else 1.0
    return Difference(difference, *(float(end) for end in at(level)), float(p_value), method)


def _denominators(metric: str, methods: Mapping[str, IntervalMethod]) -> list[np.ndarray]:
    method = methods[metric]
    if method.kind == "average":
        return [rows for part in method.parts for rows in _denominators(part, methods)]
    return [rows for rows in (method.rows, method.others) if rows is not None]


def _first_reason(sides: Iterable[Intervals], metric: str) -> str:
    return next(side.reasons[metric] for side in sides if metric in side.reasons)


def _count(codes: np.ndarray, rows: np.ndarray) -> int:
    return len(np.unique(codes[rows]))


__all__ = ["IntervalMethod", "Intervals", "difference_interval", "hanley_mcneil", "make_intervals"]
