"""From predictions to numbers: value, interval over patients and trivial baseline of each metric."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from .classification import (
    SINGLE,
    classification_intervals,
    classification_metrics,
    classification_recipes,
    metrics_under_weights,
    nearly_constant,
)
from .intervals import Intervals, Recipe
from .predictions import Predictions
from .retrieval import RECALL_AT, mean_intervals, mean_recipes, means_under_weights
from .segmentation import COUNTS, counts_under_weights, segmentation_intervals, segmentation_recipes

_OWN_SETTINGS = ("num_resamples", "bootstrap_seed", "train_frequencies")


@dataclass
class Score:
    """
    One metric of a run.

    Args:
        metric (`str`): Its name.
        value (`float`): NaN where the rows do not determine it; then `note` says why, if it is known.
        ci_lo, ci_hi (`float`): Ends of the 95 % interval; NaN where there is none.
        trivial_baseline (`float`): What a model that has learned nothing scores on these rows; NaN where there is none.
        note (`str`): What a reader must know.
        interval_note (`str`): Why there is no interval, or why it is in doubt.
        ci_method (`str`, *optional*): How the interval was made.
    """

    metric: str
    value: float
    ci_lo: float = float("nan")
    ci_hi: float = float("nan")
    trivial_baseline: float = float("nan")
    note: str = ""
    interval_note: str = ""
    ci_method: str | None = None


def score_predictions(predictions: Predictions) -> list[Score]:
    """
    All metrics of a run's predictions. Trivial baselines: for classification the class frequencies of training as
    constant scores (for F1 the better of that and "always positive"), for segmentation an all-empty mask, for retrieval
    a random order.
    """
    from .hf_metrics import score_with_metrics

    values, notes = score_with_metrics(predictions)
    return {"classification": _classification, "segmentation": _segmentation, "retrieval": _retrieval}[
        predictions.kind
    ](predictions, values, notes)


def _score(name: str, value: float, intervals: Intervals, trivial: float, note: str) -> Score:
    reason = intervals.reasons.get(name) or intervals.cautions.get(name, "")
    return Score(name, value, *intervals[name], trivial, note, reason, intervals.methods.get(name))


def metric_options(predictions: Predictions) -> dict:
    """Settings that the metrics take."""
    return {name: value for name, value in predictions.settings.items() if name not in _OWN_SETTINGS}


def _classification(predictions: Predictions, values: dict[str, float], notes: str) -> list[Score]:
    options = metric_options(predictions)
    scores, labels = predictions.columns["score"], predictions.columns["target"]
    intervals = classification_intervals(scores, labels, predictions.patients, **options, **_resampling(predictions))
    trivial = _trivial_classification(predictions, options)
    constant = _constant_note(scores)
    return [
        _score(name, value, intervals, trivial.get(name, float("nan")), notes if np.isnan(value) else constant)
        for name, value in values.items()
    ]


def _constant_note(scores: np.ndarray) -> str:
    if len(scores) > 1 and all(nearly_constant(column) for column in scores.reshape(len(scores), -1).T):
        return "Every image has the same score."
    if scores.ndim == 2 and scores.shape[1] > 1 and len(np.unique(scores.argmax(1))) == 1 and len(scores) > 1:
        return "Every image has the same class first."
    return ""


def _trivial_classification(predictions: Predictions, options: dict) -> dict[str, float]:
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
    if not exclusive:
        always = classification_metrics(np.ones(scores.shape), labels, **plain)
        for name in [name for name in trivial if name.partition("/")[0] == "f1"]:
            trivial[name] = max(trivial[name], always[name])
    trivial |= _random_precision(truth, options)
    columns = (
        [""] if scores.shape[1] == 1 else ["", *(f"/{name}" for name in plain["class_names"] or range(len(truth[0])))]
    )
    for point in options.get("operating_points") or {}:
        trivial |= {f"sensitivity@specificity{point}{column}": round(1 - float(point), 9) for column in columns}
    return trivial


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
    empty = "" if counts["predicted_pixels"].any() else "Nothing is predicted in any image: an all-empty mask."
    return [
        _score(name, values[name], intervals, values[f"all_empty/{name}"], notes if np.isnan(values[name]) else empty)
        for name in intervals
    ]


def _retrieval(predictions: Predictions, values: dict[str, float], notes: str) -> list[Score]:
    parts = _retrieval_parts(predictions)
    means = {name: (rows, of_query) for name, (rows, of_query, _) in parts.items()}
    intervals = mean_intervals(means, predictions.patients, **_resampling(predictions))
    trivial = {name: float(chance[rows].mean()) for name, (rows, _, chance) in parts.items()}
    trivial["mean_recall"] = float(np.mean([trivial[name] for name in parts if "_recall@" in name]))
    medians = [name for name in values if name.endswith("_median_rank")]
    return [
        *(_score(name, values[name], intervals, trivial[name], "") for name in parts),
        *(Score(name, values[name], interval_note="No interval: none is made for a median.") for name in medians),
        _score("mean_recall", values["mean_recall"], intervals, trivial["mean_recall"], ""),
    ]


def _retrieval_parts(predictions: Predictions) -> dict[str, tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Of each metric that is a mean: its rows, their values, and what a random order gives, `(N,)` each."""
    parts = {}
    ranks = predictions.columns["score"]
    for way in ("image_to_text", "text_to_image"):
        rows = predictions.columns["direction"] == way
        if not rows.any():
            continue
        for k in RECALL_AT:
            parts[f"{way}_recall@{k}"] = (rows, ranks <= k, _chance(predictions, k))
        parts[f"{way}_mrr"] = (rows, 1 / ranks, _chance_reciprocal(predictions))
        for name, values in predictions.columns.items():
            if name.startswith("precision@") and not np.isnan(values[rows]).any():
                parts[f"{way}_{name}"] = (rows, np.where(rows, values, 0), np.full(len(rows), np.nan))
    return parts


def values_under_weights(predictions: Predictions) -> Callable[[np.ndarray], dict[str, np.ndarray]]:
    """A function from weights of the rows `(B, N)` to each metric `(B,)` that may have an interval."""
    if predictions.kind == "classification":
        columns = predictions.columns
        return metrics_under_weights(columns["score"], columns["target"], **metric_options(predictions))
    if predictions.kind == "segmentation":
        counts = {name: predictions.columns[name] for name in COUNTS}
        return lambda weights: counts_under_weights(counts, weights)
    parts = {name: (rows, values) for name, (rows, values, _) in _retrieval_parts(predictions).items()}
    return lambda weights: means_under_weights(parts, weights)


def interval_recipes(predictions: Predictions) -> dict[str, Recipe]:
    """How each metric of [`values_under_weights`] gets its interval."""
    columns = predictions.columns
    if predictions.kind == "classification":
        return classification_recipes(columns["score"], columns["target"], **metric_options(predictions))
    if predictions.kind == "segmentation":
        return segmentation_recipes({name: columns[name] for name in COUNTS})
    return mean_recipes({name: (rows, values) for name, (rows, values, _) in _retrieval_parts(predictions).items()})


def _chance(predictions: Predictions, k: int) -> np.ndarray:
    """(N,) probability that a random order has a positive among the first k."""
    candidates, positives = (predictions.columns[name].astype(np.float64) for name in ("candidates", "target"))
    missed = np.ones(len(candidates))
    for draw in range(k):
        left = candidates - draw
        missed *= np.where(left > 0, np.maximum(left - positives, 0) / np.maximum(left, 1), 0)
    return 1 - missed


def _chance_reciprocal(predictions: Predictions) -> np.ndarray:
    """(N,) expected reciprocal of the first positive's rank in a random order."""
    expected = {}
    for n, m in set(
        zip(predictions.columns["candidates"].tolist(), predictions.columns["target"].tolist(), strict=True)
    ):
        first, missed = np.arange(1, n - m + 2), 1.0
        chances = []
        for rank in first:
            left = n - rank + 1
            chances.append(missed * m / left)
            missed *= (left - m) / left
        expected[n, m] = float((np.array(chances) / first).sum())
    pairs = zip(predictions.columns["candidates"].tolist(), predictions.columns["target"].tolist(), strict=True)
    return np.array([expected[pair] for pair in pairs])


def _resampling(predictions: Predictions) -> dict:
    settings = predictions.settings
    return {
        "num_resamples": settings["num_resamples"],
        "seed": settings["bootstrap_seed"],
        "unit": predictions.interval_over,
    }


__all__ = [
    "Score",
    "expected_average_precision",
    "interval_recipes",
    "metric_options",
    "score_predictions",
    "values_under_weights",
]
