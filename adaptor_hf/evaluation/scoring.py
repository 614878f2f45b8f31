"""From predictions to numbers: value, interval over patients and trivial baseline of each metric."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from .baselines import best_baseline
from .classification import (
    SINGLE,
    classification_interval_methods,
    classification_intervals,
    classification_metrics,
    metrics_under_weights,
)
from .intervals import IntervalMethod, Intervals
from .mask_baselines import baseline_masks
from .metrics import declared_metric
from .notes import label_notes, mask_notes, retrieval_notes
from .predictions import KINDS, Kind, Predictions, declare_kind, metric_options
from .retrieval import RECALL_AT, chance_of_ranks, mean_interval_methods, mean_intervals, means_under_weights
from .segmentation import (
    COUNTS,
    counts_under_weights,
    metrics_of_counts,
    segmentation_interval_methods,
    segmentation_intervals,
)


@dataclass
class Score:
    """
    One metric of a run.

    Args:
        metric (`str`): Its name.
        value (`float`): NaN where the rows do not determine it; then `note` says why, if it is known.
        ci_lo, ci_hi (`float`): Ends of the 95 % interval; NaN where there is none.
        trivial_baseline (`float`): The best that a model that has learned nothing scores on these rows, NaN where there
            is none, and
        trivial_name (`str`): which that is.
        trivial_baselines (`dict`): All of them by name: `value`, and `ci_lo` and `ci_hi` where it has an interval.
        note (`str`): What a reader must know.
        interval_note (`str`): Why there is no interval, or why it is in doubt.
        ci_method (`str`, *optional*): How the interval was made.
    """

    metric: str
    value: float
    ci_lo: float = float("nan")
    ci_hi: float = float("nan")
    trivial_baseline: float = float("nan")
    trivial_name: str = ""
    trivial_baselines: dict[str, dict[str, float]] = field(default_factory=dict)
    note: str = ""
    interval_note: str = ""
    ci_method: str | None = None


def score_predictions(predictions: Predictions) -> list[Score]:
    """
    All metrics of a run's predictions. Trivial baselines: for classification chance, the majority class, "always
    positive" (F1) and the class frequencies of training as probabilities; for segmentation an empty mask, the mean
    training mask and a full mask; for retrieval a random order.
    """
    from .hf_metrics import score_with_metrics

    values, notes = score_with_metrics(predictions)
    return KINDS[predictions.kind].score(predictions, values, notes)


def _score(
    metric: str, value: float, intervals: Intervals, trivial: dict[str, dict[str, float]], note: str = ""
) -> Score:
    """
    A score with the best of its baselines; those that are not defined are left out.

    Raises:
        ValueError: the metric is not declared, or its trivial baseline was not computed.
    """
    declared = declared_metric(metric)
    if declared.is_marked and declared.trivial_baseline not in trivial:
        raise ValueError(f"{metric} needs the trivial baseline {declared.trivial_baseline!r}, got {list(trivial)}.")
    trivial = {name: numbers for name, numbers in trivial.items() if not np.isnan(numbers["value"])}
    name, best = best_baseline(metric, {name: numbers["value"] for name, numbers in trivial.items()})
    reason = intervals.reasons.get(metric) or intervals.cautions.get(metric, "")
    method = intervals.methods.get(metric)
    return Score(metric, value, *intervals[metric], best, name, trivial, note, reason, method)


def _classification(predictions: Predictions, values: dict[str, float], notes: str) -> list[Score]:
    options = metric_options(predictions)
    scores, labels = predictions.columns["score"], predictions.columns["target"]
    intervals = classification_intervals(scores, labels, predictions.patients, **options, **_resampling(predictions))
    trivial = _trivial_classification(predictions, options)
    return [
        _score(name, value, intervals, trivial.get(name, {}), notes if np.isnan(value) else "")
        for name, value in values.items()
    ]


def _trivial_classification(predictions: Predictions, options: dict) -> dict[str, dict[str, dict[str, float]]]:
    """Of each metric the trivial baselines by name."""
    scores, labels = predictions.columns["score"], predictions.columns["target"]
    scores = scores[:, None] if scores.ndim == 1 else scores
    exclusive = options["problem_type"] == SINGLE and scores.shape[1] > 1
    truth = labels[:, None] == np.arange(scores.shape[1]) if exclusive else labels.reshape(scores.shape)
    frequencies = predictions.settings.get("train_frequencies")
    if frequencies is None:
        known = ~np.isnan(truth.astype(np.float64))
        frequencies = np.where(known, truth, 0).sum(0) / np.maximum(known.sum(0), 1)
    if len(frequencies) != scores.shape[1]:
        raise ValueError(f"Got {len(frequencies)} train_frequencies for {scores.shape[1]} classes.")
    plain = {"problem_type": options["problem_type"], "class_names": options.get("class_names")}
    trivial = dict(classification_metrics(np.tile(frequencies, (len(scores), 1)), labels, **plain))
    trivial |= _random_precision(truth, options)
    guessed = _random_guesses(np.asarray(frequencies), truth, exclusive)
    columns = (
        [""] if scores.shape[1] == 1 else ["", *(f"/{name}" for name in plain["class_names"] or range(len(truth[0])))]
    )
    for point in options.get("operating_points") or {}:
        trivial |= {f"sensitivity@specificity{point}{column}": round(1 - float(point), 9) for column in columns}
    found = {name: {declared_metric(name).trivial_baseline: {"value": value}} for name, value in trivial.items()}
    for column, accuracy in zip(columns, guessed, strict=False):
        found[f"accuracy{column}"]["chance"] = {"value": float(accuracy)}
    if not exclusive:
        always = classification_metrics(np.ones(scores.shape), labels, **plain)
        for name in [name for name in trivial if name.partition("/")[0] == "f1"]:
            found[name]["always positive"] = {"value": always[name]}
    return found


def _random_guesses(frequencies: np.ndarray, truth: np.ndarray, exclusive: bool) -> list[float]:
    """Expected accuracy of guesses drawn by the class frequencies: of all classes, and, of labels, of each."""
    if exclusive:
        return [float((truth.mean(0) * frequencies).sum())]
    known = ~np.isnan(truth.astype(np.float64))
    shares = np.where(known, truth, 0).sum(0) / np.maximum(known.sum(0), 1)
    each = np.where(known.any(0), shares * frequencies + (1 - shares) * (1 - frequencies), np.nan)
    mean = float(each[known.any(0)].mean()) if known.any() else float("nan")
    return [mean, *each.tolist()] if len(each) > 1 else [mean]


def _random_precision(truth: np.ndarray, options: dict) -> dict[str, float]:
    """`auprc` of random scores: constant ones give the prevalence, which random ones exceed at few rows."""
    known = ~np.isnan(truth.astype(np.float64))
    names = options.get("class_names") or range(truth.shape[1])
    of_class = {
        f"auprc/{name}": expected_average_precision(int((truth[rows, column] == 1).sum()), int(rows.sum()))
        for column, (name, rows) in enumerate(zip(names, known.T, strict=True))
    }
    defined = [value for value in of_class.values() if not np.isnan(value)]
    mean = {"auprc": float(np.mean(defined)) if defined else float("nan")}
    return mean if truth.shape[1] == 1 else mean | of_class


def expected_average_precision(positives: int, rows: int) -> float:
    """
    Mean average precision over all orders of so many rows (Bestgen 2015): `positives / rows` only where rows are many.

    Returns:
        `float`: NaN without positives.
    """
    if not 0 <= positives <= rows:
        raise ValueError(f"positives go from 0 to {rows}, the number of rows; got {positives}.")
    if positives == 0:
        return float("nan")
    if rows == 1:
        return 1.0
    harmonic = float((1 / np.arange(1, rows + 1)).sum())
    return (harmonic + (positives - 1) / (rows - 1) * (rows - harmonic)) / rows


def _segmentation(predictions: Predictions, values: dict[str, float], notes: str) -> list[Score]:
    counts = {name: predictions.columns[name] for name in COUNTS}
    intervals = segmentation_intervals(counts, predictions.patients, **_resampling(predictions))
    trivial: dict[str, dict[str, dict[str, float]]] = {name: {} for name in intervals}
    for name, guess in baseline_masks(predictions.columns).items():
        found = metrics_of_counts(guess)
        ends = segmentation_intervals(guess, predictions.patients, **_resampling(predictions))
        for metric, (low, high) in ends.items():
            interval = {} if np.isnan(low) else {"ci_lo": low, "ci_hi": high}
            trivial[metric][name] = {"value": found[metric]} | interval
    return [
        _score(name, values[name], intervals, trivial[name], notes if np.isnan(values[name]) else "")
        for name in intervals
    ]


def _retrieval(predictions: Predictions, values: dict[str, float], notes: str) -> list[Score]:
    parts = _retrieval_parts(predictions)
    means = _retrieval_means(predictions)
    intervals = mean_intervals(
        means, predictions.patients, scales=_rank_scales(predictions), **_resampling(predictions)
    )
    for name in parts.keys() - means.keys():
        intervals[name] = (float("nan"), float("nan"))
        intervals.reasons[name] = "No interval: none is made for a median."
    chance = {name: float(chance[rows].mean()) for name, (rows, _, chance) in parts.items()}
    chance["mean_recall"] = float(np.mean([value for name, value in chance.items() if "_recall@" in name]))
    return [
        _score(name, values[name], intervals, {"chance": {"value": chance[name]}}) for name in (*parts, "mean_recall")
    ]


def _retrieval_parts(predictions: Predictions) -> dict[str, tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Of each metric: its rows, their values, and what a random order gives, `(N,)` each."""
    parts = {}
    ranks, candidates = (predictions.columns[name].astype(np.float64) for name in ("score", "candidates"))
    for way in ("image_to_text", "text_to_image"):
        rows = predictions.columns["direction"] == way
        if not rows.any():
            continue
        found = chance_of_ranks(*(predictions.columns[name][rows] for name in ("candidates", "target")))
        chance = {name: np.full(len(rows), np.nan) for name in found}
        for name, values in found.items():
            chance[name][rows] = values
        for k in RECALL_AT:
            parts[f"{way}_recall@{k}"] = (rows, ranks <= k, chance[f"recall@{k}"])
        parts[f"{way}_mrr"] = (rows, 1 / ranks, chance["mrr"])
        for name in ("mean_rank", "median_rank"):
            parts[f"{way}_{name}"] = (rows, ranks, chance[name])
        for name, values in predictions.columns.items():
            if name.startswith("precision@") and not np.isnan(values[rows]).any():
                unknown = np.full(len(rows), np.nan)
                share = (
                    predictions.columns["same_class"] / candidates if "same_class" in predictions.columns else unknown
                )
                parts[f"{way}_{name}"] = (rows, np.where(rows, values, 0), share)
    return parts


def _retrieval_means(predictions: Predictions) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Rows and values of each metric that is a mean."""
    parts = _retrieval_parts(predictions)
    return {name: (rows, values) for name, (rows, values, _) in parts.items() if not name.endswith("_median_rank")}


def _rank_scales(predictions: Predictions) -> dict[str, float]:
    """Upper ends of the mean ranks: the number of candidates."""
    columns = predictions.columns
    return {
        f"{way}_mean_rank": float(columns["candidates"][columns["direction"] == way].max())
        for way in ("image_to_text", "text_to_image")
        if (columns["direction"] == way).any()
    }


def values_under_weights(predictions: Predictions) -> Callable[[np.ndarray], dict[str, np.ndarray]]:
    """A function from weights of the rows `(B, N)` to each metric `(B,)` that may have an interval."""
    return KINDS[predictions.kind].values(predictions)


def interval_methods(predictions: Predictions) -> dict[str, IntervalMethod]:
    """How each metric of [`values_under_weights`] gets its interval."""
    return KINDS[predictions.kind].intervals(predictions)


def _resampling(predictions: Predictions) -> dict:
    settings = predictions.settings
    return {
        "num_resamples": settings["num_resamples"],
        "seed": settings["bootstrap_seed"],
        "unit": predictions.interval_over,
    }


def _label_metrics(predictions: Predictions, **kwargs: Any) -> list:
    from .hf_metrics import ClassificationMetric

    scores = predictions.columns["score"]
    num_classes = 1 if scores.ndim == 1 else scores.shape[1]
    return [ClassificationMetric(num_classes=num_classes, **metric_options(predictions), **kwargs)]


def _label_rows(predictions: Predictions, rows: slice) -> dict[str, Any]:
    scores, labels = (predictions.columns[name][rows] for name in ("score", "target"))
    scores = scores[:, None] if scores.ndim == 1 else scores
    exclusive = predictions.settings["problem_type"] == SINGLE and scores.shape[1] > 1
    references = labels.astype(np.int64) if exclusive else labels.reshape(scores.shape).astype(np.float64)
    return {"predictions": scores, "references": references}


def _label_values(predictions: Predictions) -> Callable[[np.ndarray], dict[str, np.ndarray]]:
    columns = predictions.columns
    return metrics_under_weights(columns["score"], columns["target"], **metric_options(predictions))


def _label_intervals(predictions: Predictions) -> dict[str, IntervalMethod]:
    columns = predictions.columns
    return classification_interval_methods(columns["score"], columns["target"], **metric_options(predictions))


def _mask_metrics(predictions: Predictions, **kwargs: Any) -> list:
    from .hf_metrics import SegmentationMetric

    return [SegmentationMetric(**kwargs)]


def _counts(predictions: Predictions, rows: slice = slice(None)) -> dict[str, np.ndarray]:
    return {name: predictions.columns[name][rows] for name in COUNTS}


def _mask_values(predictions: Predictions) -> Callable[[np.ndarray], dict[str, np.ndarray]]:
    counts = _counts(predictions)
    return lambda weights: counts_under_weights(counts, weights)


def _rank_metrics(predictions: Predictions, **kwargs: Any) -> list:
    from .hf_metrics import PrecisionMetric, RankMetric, RecallMetric

    ks = [int(name.partition("@")[2]) for name in predictions.columns if name.startswith("precision@")]
    return [RecallMetric(**kwargs), RankMetric(**kwargs), *(PrecisionMetric(k=k, **kwargs) for k in ks)]


def _rank_rows(predictions: Predictions, rows: slice) -> dict[str, Any]:
    columns = {name: values[rows] for name, values in predictions.columns.items()}
    precisions = {name: values for name, values in columns.items() if name.startswith("precision@")}
    return {"predictions": columns["score"], "references": columns["direction"].astype(str)} | precisions


def _rank_values(predictions: Predictions) -> Callable[[np.ndarray], dict[str, np.ndarray]]:
    parts = _retrieval_means(predictions)
    return lambda weights: means_under_weights(parts, weights)


def _rank_intervals(predictions: Predictions) -> dict[str, IntervalMethod]:
    return mean_interval_methods(_retrieval_means(predictions), _rank_scales(predictions))


for _kind in (
    Kind(
        "classification",
        columns=(),
        metrics=_label_metrics,
        rows=_label_rows,
        score=_classification,
        values=_label_values,
        intervals=_label_intervals,
        notes=label_notes,
    ),
    Kind(
        "segmentation",
        columns=COUNTS[:3],
        metrics=_mask_metrics,
        rows=_counts,
        score=_segmentation,
        values=_mask_values,
        intervals=lambda predictions: segmentation_interval_methods(_counts(predictions)),
        notes=mask_notes,
    ),
    Kind(
        "retrieval",
        columns=("direction", "candidates"),
        metrics=_rank_metrics,
        rows=_rank_rows,
        score=_retrieval,
        values=_rank_values,
        intervals=_rank_intervals,
        notes=retrieval_notes,
        repeats_images=True,
    ),
):
    declare_kind(_kind)

__all__ = [
    "Score",
    "expected_average_precision",
    "interval_methods",
    "metric_options",
    "score_predictions",
    "values_under_weights",
]
