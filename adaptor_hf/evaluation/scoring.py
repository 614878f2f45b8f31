"""From predictions to numbers: value, interval over patients and trivial baseline of each metric."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from .classification import SINGLE, classification_intervals, classification_metrics, metrics_under_weights
from .predictions import Predictions
from .retrieval import RECALL_AT
from .segmentation import COUNTS, counts_under_weights, metrics_of_counts, segmentation_intervals
from .statistics import interval_of, resampled_weights

CI_METHOD = "percentile bootstrap over patients"
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
    """

    metric: str
    value: float
    ci_lo: float = float("nan")
    ci_hi: float = float("nan")
    trivial_baseline: float = float("nan")
    note: str = ""


def score_predictions(predictions: Predictions) -> list[Score]:
    """
    All metrics of a run's predictions. Trivial baselines: for classification the class frequencies of training as
    constant scores (for F1 the better of that and "always positive"), for segmentation an all-empty mask, for retrieval
    a random order.
    """
    return {"classification": _classification, "segmentation": _segmentation, "retrieval": _retrieval}[
        predictions.kind
    ](predictions)


def _classification(predictions: Predictions) -> list[Score]:
    options = {name: value for name, value in predictions.settings.items() if name not in _OWN_SETTINGS}
    scores, labels = predictions.columns["score"], predictions.columns["target"]
    values = classification_metrics(scores, labels, **options)
    intervals = classification_intervals(scores, labels, predictions.patients, **options, **_resampling(predictions))
    trivial = _trivial_classification(predictions, options)
    notes = " ".join(values.notes)
    constant = _constant_note(scores)
    return [
        Score(name, value, *intervals[name], trivial.get(name, float("nan")), notes if np.isnan(value) else constant)
        for name, value in values.items()
    ]


def _constant_note(scores: np.ndarray) -> str:
    if len(scores) > 1 and (scores == scores[:1]).all():
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
    columns = (
        [""] if scores.shape[1] == 1 else ["", *(f"/{name}" for name in plain["class_names"] or range(len(truth[0])))]
    )
    for point in options.get("operating_points") or {}:
        trivial |= {f"sensitivity@specificity{point}{column}": round(1 - float(point), 9) for column in columns}
    return trivial


def _segmentation(predictions: Predictions) -> list[Score]:
    counts = {name: predictions.columns[name] for name in COUNTS}
    values = metrics_of_counts(counts)
    intervals = segmentation_intervals(counts, predictions.patients, **_resampling(predictions))
    notes = " ".join(values.notes)
    empty = "" if counts["predicted_pixels"].any() else "Nothing is predicted in any image: an all-empty mask."
    return [
        Score(name, values[name], *interval, values[f"all_empty/{name}"], notes if np.isnan(values[name]) else empty)
        for name, interval in intervals.items()
    ]


def _retrieval(predictions: Predictions) -> list[Score]:
    parts = _retrieval_parts(predictions)
    ranks, directions = predictions.columns["score"], predictions.columns["direction"]
    medians = [
        Score(f"{way}_median_rank", float(np.median(ranks[directions == way])))
        for way in dict.fromkeys(directions.tolist())
    ]
    draws: dict[str, list[np.ndarray]] = {}
    sampling = _resampling(predictions)
    for weights in resampled_weights(predictions.patients, sampling["num_resamples"], sampling["seed"]):
        for name, draw in _weighted_means(parts, weights).items():
            draws.setdefault(name, []).append(draw)
    joined = {name: np.concatenate(values) for name, values in draws.items()}
    recalls = [name for name in parts if "_recall@" in name]
    scores = [
        Score(name, float(values[rows].mean()), *interval_of(joined[name]), float(chance[rows].mean()))
        for name, (rows, values, chance) in parts.items()
    ]
    by_name = {score.metric: score for score in scores}
    mean = Score(
        "mean_recall",
        float(np.mean([by_name[name].value for name in recalls])),
        *interval_of(joined["mean_recall"]),
        float(np.mean([by_name[name].trivial_baseline for name in recalls])),
    )
    return [*scores, *medians, mean]


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


def _weighted_means(parts: dict, weights: np.ndarray) -> dict[str, np.ndarray]:
    found = {}
    for name, (rows, values, _) in parts.items():
        total = weights @ rows
        found[name] = np.divide(weights @ (rows * values), total, out=np.full(len(total), np.nan), where=total > 0)
    found["mean_recall"] = np.mean([found[name] for name in found if "_recall@" in name], axis=0)
    return found


def values_under_weights(predictions: Predictions) -> Callable[[np.ndarray], dict[str, np.ndarray]]:
    """A function from weights of the rows `(B, N)` to each metric `(B,)` that has an interval."""
    if predictions.kind == "classification":
        options = {name: value for name, value in predictions.settings.items() if name not in _OWN_SETTINGS}
        return metrics_under_weights(predictions.columns["score"], predictions.columns["target"], **options)
    if predictions.kind == "segmentation":
        counts = {name: predictions.columns[name] for name in COUNTS}
        return lambda weights: counts_under_weights(counts, weights)
    parts = _retrieval_parts(predictions)
    return lambda weights: _weighted_means(parts, weights)


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


def _resampling(predictions: Predictions) -> dict[str, int]:
    return {"num_resamples": predictions.settings["num_resamples"], "seed": predictions.settings["bootstrap_seed"]}


__all__ = ["CI_METHOD", "Score", "score_predictions", "values_under_weights"]
