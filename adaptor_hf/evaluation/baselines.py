"""Trivial baselines: the best of them for a metric, whether a value is above it, and the rows that tables show."""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from .metrics import METRICS, metric_of

MARK = "†"
LEGEND = (
    f"{MARK} Not above its best trivial baseline: the 95 % interval does not lie on the better side of it, or there is "
    "no interval. Nothing is shown to be learned."
)


def lower_is_better(metric: str) -> bool:
    """
    Whether a smaller value of a metric, such as `brier/edema` or `image_to_text_median_rank`, is the better one. One
    that is not declared, in lines that somebody else wrote, goes by the end of its name: `macro_brier` as `brier`; else
    larger is better.
    """
    if (declared := metric_of(metric)) is not None:
        return not declared.higher_is_better
    return metric.partition("/")[0].endswith(tuple(m.name for m in METRICS.values() if not m.higher_is_better))


def is_one_sided(metric: str) -> bool:
    """Whether no mark is due: a metric such as recall is perfect for a predictor that always says the same, and of a
    median no interval is made."""
    declared = metric_of(metric)
    return declared is not None and not declared.is_marked


def best_baseline(metric: str, values: Mapping[str, float]) -> tuple[str, float]:
    """
    Name and value of the trivial baseline that is hardest to beat.

    Args:
        metric (`str`): Its name.
        values (`Mapping[str, float]`): Name of a baseline to its value; NaN ones do not count.

    Returns:
        `tuple[str, float]`: Of equal ones the first; `("", nan)` where there is none.
    """
    known = [(name, value) for name, value in values.items() if not math.isnan(value)]
    if not known:
        return "", math.nan
    return (min if lower_is_better(metric) else max)(known, key=lambda pair: pair[1])


def above_baseline(metric: str, ci_lo: float, ci_hi: float, baseline: float) -> bool:
    """
    Whether a value is shown to be better than a trivial baseline: its interval lies on the better side of it, without
    touching it. Without an interval nothing is shown. True where there is no baseline, and for metrics of which a
    trivial predictor is perfect in one of a pair (`is_one_sided`).
    """
    if math.isnan(baseline) or is_one_sided(metric):
        return True
    # A comparison with NaN is false.
    return bool(ci_hi < baseline if lower_is_better(metric) else ci_lo > baseline)


def baselines_of(line: Mapping[str, Any]) -> dict[str, dict[str, float]]:
    """A result line's trivial baselines by name; of lines of an older version the one that they have."""
    found = line.get("trivial_baselines")
    if found is None:
        value = line["trivial_baseline"]
        return {} if math.isnan(value) else {"trivial": {"value": value}}
    return {name: dict(numbers) for name, numbers in found.items()}


def baseline_rows(lines: Iterable[Mapping[str, Any]], metrics: Sequence[str]) -> list[tuple[str, str, list[str]]]:
    """
    What tables show of baselines, a row each.

    Args:
        lines (`Iterable[Mapping]`): Result lines of one test set.
        metrics (`Sequence[str]`): The table's columns.

    Returns:
        `list[tuple[str, str, list[str]]]`: Label; share of the training data, such as "10 %", where a baseline differs
        by it (another mean mask), else nothing; and a cell a metric: value and interval, the span of the values where
        runs still differ, or nothing.
    """
    found: dict[str, dict[float | None, dict[str, list[dict[str, float]]]]] = {}
    for line in lines:
        for name, numbers in baselines_of(line).items():
            of_share = found.setdefault(name, {}).setdefault(line.get("fraction"), {})
            of_share.setdefault(line["metric"], []).append(numbers)
    rows = []
    for name, shares in found.items():
        cells = {share: [_span(m, by.get(m, [])) for m in metrics] for share, by in shares.items()}
        label = "trivial baseline" if name == "trivial" else f"trivial: {name}"
        if not any(map(any, cells.values())):
            continue
        if len({tuple(row) for row in cells.values()}) == 1:
            rows.append((label, "", next(iter(cells.values()))))
        else:
            rows += [(label, "" if share is None else f"{100 * share:g} %", row) for share, row in cells.items()]
    return rows


def _span(metric: str, members: list[dict[str, float]]) -> str:
    digits = 1 if metric.endswith("_rank") else 3
    texts = {}
    for numbers in sorted(members, key=lambda numbers: numbers["value"]):
        texts.setdefault(f"{numbers['value']:.{digits}f}", numbers)
    if len(texts) != 1:
        values = list(texts)
        return f"{values[0]} to {values[-1]}" if values else ""
    ((text, numbers),) = texts.items()
    if numbers.get("ci_lo") is None:
        return text
    return f"{text} [{numbers['ci_lo']:.{digits}f}, {numbers['ci_hi']:.{digits}f}]"


__all__ = [
    "LEGEND",
    "MARK",
    "above_baseline",
    "baseline_rows",
    "baselines_of",
    "best_baseline",
    "is_one_sided",
    "lower_is_better",
]
