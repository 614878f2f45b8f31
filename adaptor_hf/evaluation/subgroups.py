"""Where a model works less well: a metric by sex, age band, view, site or any column; and scores by study."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from ..data.demographics import age_years
from ..data.missing import is_missing
from .intervals import IntervalMethod, Intervals, make_intervals
from .statistics import interval_of, resampled_weights
from .weighted import weighted_auroc

UNKNOWN = "unknown"
AGGREGATES = ("mean", "max")
"""How the scores of a study's images become one."""
AGE_EDGES = (18, 40, 60, 80)
"""Years at which a band of ages ends and the next begins."""


@dataclass
class Subgroup:
    """
    A metric within one group.

    Args:
        name (`str`): Of the group.
        rows, patients, positives (`int`): Their numbers.
        value, ci_lo, ci_hi (`float`): NaN where the group does not determine it.
    """

    name: str
    rows: int
    patients: int
    positives: int
    value: float
    ci_lo: float
    ci_hi: float


@dataclass
class Subgroups:
    """
    A metric by the groups of a column.

    Args:
        groups (`list[Subgroup]`): In the order of their names, `unknown` last.
        worst, best (`str`, *optional*): Groups with the lowest and highest value, `unknown` and undefined ones aside.
        gap, gap_lo, gap_hi (`float`): Value of the best group minus that of the worst, and its interval over patients
            with these two groups held fixed. The two were picked from these very rows, so the interval leans upwards
            with many groups: of two groups it is an ordinary interval, of ten a hint.
        notes (`list[str]`): Groups that were left out, and why.
    """

    groups: list[Subgroup]
    worst: str | None = None
    best: str | None = None
    gap: float = float("nan")
    gap_lo: float = float("nan")
    gap_hi: float = float("nan")
    notes: list[str] = field(default_factory=list)


def subgroup_metrics(
    scores: np.ndarray,
    labels: np.ndarray,
    column: Sequence,
    patients: np.ndarray,
    *,
    metric: Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray] = weighted_auroc,
    min_rows: int = 10,
    num_resamples: int = 1000,
    level: float = 0.95,
    seed: int = 0,
) -> Subgroups:
    """
    A metric within each group of a column, with intervals over patients, the gap and the worst group.

    Args:
        scores (`np.ndarray` of shape `(N,)`): Of one label.
        labels (`np.ndarray` of shape `(N,)`): 0, 1 or NaN (left out).
        column (`Sequence` of length N): Group of each row; None, NaN or "" is the group `unknown`. Of ages, see
            [`age_bands`].
        patients (`np.ndarray` of shape `(N,)`): Images of one patient are drawn together.
        metric (`Callable`): `metric(scores, labels, weights)` under weights `(B, N)`, `(B,)` numbers, higher is better.
            The default AUROC has the interval of a result line; others have percentiles, too narrow at few rows.
        min_rows (`int`, defaults to 10): A smaller group is listed and is no part of the gap.
        num_resamples, level, seed: As in `bootstrap_interval`.

    Raises:
        ValueError: if lengths differ, a score is NaN, or a label is neither 0, 1 nor NaN.
    """
    scores, labels = np.asarray(scores, dtype=np.float64), np.asarray(labels, dtype=np.float64)
    names, patients = np.array([_name(value) for value in column], dtype=object), np.asarray(patients)
    lengths = {"scores": scores.shape, "labels": labels.shape, "column": names.shape, "patients": patients.shape}
    if len(set(lengths.values())) != 1 or scores.ndim != 1:
        raise ValueError(f"Need one number a row and as many rows each, got {lengths}.")
    known = ~np.isnan(labels)
    if not np.isin(labels[known], (0, 1)).all() or np.isnan(scores).any():
        raise ValueError("Labels must be 0, 1 or NaN, and scores must not be NaN.")
    scores, labels, names, patients = (part[known] for part in (scores, labels, names, patients))
    order = sorted(set(names.tolist()), key=lambda name: (name == UNKNOWN, name))
    members = {name: names == name for name in order}
    draws: dict[str, list[np.ndarray]] = {name: [] for name in order}
    for weights in resampled_weights(patients, num_resamples, seed):
        for name, rows in members.items():
            draws[name].append(metric(scores[rows], labels[rows], weights[:, rows]))
    joined = {name: np.concatenate(parts) for name, parts in draws.items()}
    found = Subgroups([])
    values = {
        name: float(metric(scores[rows], labels[rows], np.ones((1, rows.sum())))[0]) for name, rows in members.items()
    }
    areas = _areas(members, labels, values, joined, patients, level) if metric is weighted_auroc else Intervals()
    compared = {}
    for name, rows in members.items():
        value, count, positives = values[name], int(rows.sum()), int(labels[rows].sum())
        ends = areas.get(name) or interval_of(joined[name], level)
        found.groups.append(Subgroup(name, count, len(np.unique(patients[rows])), positives, value, *ends))
        if np.isnan(value):
            found.notes.append(f"{name}: {positives} positives among {count} rows do not determine the metric.")
        elif count < min_rows:
            found.notes.append(f"{name}: {count} rows, fewer than {min_rows}; no part of the gap.")
        elif name in areas.reasons:
            found.notes.append(f"{name}: {areas.reasons[name]} No part of the gap.")
        elif name != UNKNOWN:
            compared[name] = value
    if len(compared) > 1:
        found.worst, found.best = min(compared, key=compared.get), max(compared, key=compared.get)
        found.gap = compared[found.best] - compared[found.worst]
        found.gap_lo, found.gap_hi = (
            _gap(found, areas) if areas else interval_of(joined[found.best] - joined[found.worst], level)
        )
    else:
        found.notes.append("Fewer than two groups can be compared: there is no gap.")
    return found


def _areas(members, labels, values, draws, patients, level: float) -> Intervals:
    methods = {
        name: IntervalMethod(
            "area", rows & (labels == 1), rows & (labels == 0),
            {"with the label": rows & (labels == 1), "without it": rows & (labels == 0)},
        )
        for name, rows in members.items()
    }  # fmt: skip
    return make_intervals(methods, values, draws, patients, level=level)


def _gap(found: Subgroups, areas: Intervals) -> tuple[float, float]:
    """Of two groups of other patients: squares of the half-widths add up (MOVER)."""
    (low, high), (worst_low, worst_high) = areas[found.best], areas[found.worst]
    values = {group.name: group.value for group in found.groups}
    best, worst = values[found.best], values[found.worst]
    return (
        found.gap - float(np.hypot(best - low, worst_high - worst)),
        found.gap + float(np.hypot(high - best, worst - worst_low)),
    )


def age_bands(ages: Sequence[float | None], edges: Sequence[float] = AGE_EDGES) -> list[str | None]:
    """
    Bands such as "40-59" and "80+" of ages; None where the age is missing or no human age.

    Args:
        ages (`Sequence`): In years, or as `age_years` reads them.
        edges (`Sequence[float]`): Where a band ends and the next begins, ascending.
    """
    names = [f"{low:02g}-{high - 1:02g}" for low, high in zip((0, *edges[:-1]), edges, strict=True)]
    names.append(f"{edges[-1]:g}+")
    known = [age_years(age) for age in ages]
    return [None if age is None else names[int(np.searchsorted(edges, age, side="right"))] for age in known]


def aggregate_rows(
    scores: np.ndarray, labels: np.ndarray, ids: Sequence, *, how: str = "mean"
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """
    One row a study (or patient): its images' scores as one.

    Args:
        scores (`np.ndarray` of shape `(N,)` or `(N, C)`): One row an image.
        labels (`np.ndarray` of shape `(N,)` or `(N, C)`): Class numbers, or 0, 1 and NaN.
        ids (`Sequence` of length N): Study of each row, all known.
        how (`str`, defaults to `"mean"`): `"mean"` or `"max"` of the scores.

    Returns:
        `tuple`: Scores `(S, ...)`, labels `(S, ...)` and ids `(S,)`, in the order of the ids. NaN labels of a study
        give way to known ones.

    Raises:
        ValueError: if images of a study have different known labels: then it is no label of the study.
    """
    if how not in AGGREGATES:
        raise ValueError(f"how is {' or '.join(map(repr, AGGREGATES))}, got {how!r}.")
    scores, labels = np.asarray(scores, dtype=np.float64), np.asarray(labels)
    if not len(scores) == len(labels) == len(ids):
        raise ValueError(f"Got {len(scores)} scores, {len(labels)} labels and {len(ids)} ids.")
    missing = [row for row, value in enumerate(ids) if _name(value) == UNKNOWN]
    if missing:
        raise ValueError(
            f"Row {missing[0]} has no study id, and {len(missing) - 1} others. Give each a name of its own."
        )
    names, codes = np.unique(np.array([str(value) for value in ids]), return_inverse=True)
    combined = np.full((len(names), *scores.shape[1:]), -np.inf if how == "max" else 0.0)
    if how == "max":
        np.maximum.at(combined, codes, scores)
    else:
        np.add.at(combined, codes, scores)
        combined /= np.bincount(codes).reshape(-1, *[1] * (scores.ndim - 1))
    numbers = labels.astype(np.float64)
    low, high = (np.full((len(names), *labels.shape[1:]), sign * np.inf) for sign in (1, -1))
    np.fmin.at(low, codes, numbers)
    np.fmax.at(high, codes, numbers)
    known = np.isfinite(low)
    if (low != high)[known].any():
        study = int(np.argwhere((low != high) & known)[0][0])
        rows = np.flatnonzero(codes == study)
        raise ValueError(
            f"Images of one study have different labels (rows {', '.join(map(str, rows[:5]))}): these are labels of "
            "images. Aggregate only labels that hold for the study."
        )
    return combined, np.where(known, low, np.nan).astype(labels.dtype), names


def _name(value) -> str:
    return UNKNOWN if is_missing(value) else str(value).strip()


__all__ = ["AGGREGATES", "Subgroup", "Subgroups", "age_bands", "aggregate_rows", "subgroup_metrics"]
