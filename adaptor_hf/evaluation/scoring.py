"""From predictions to numbers: value, interval over patients and trivial baseline of each metric."""

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from .baselines import best_baseline
from .classification import SINGLE, classification_intervals, classification_metrics, metrics_under_weights
from .mask_baselines import baseline_masks
from .predictions import Predictions
from .retrieval import RECALL_AT, chance_of_ranks, weighted_median
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
        trivial_baseline (`float`): The best that a model that has learned nothing scores on these rows, NaN where there
            is none, and
        trivial_name (`str`): which that is.
        trivial_baselines (`dict`): All of them by name: `value`, and `ci_lo` and `ci_hi` where it has an interval.
        note (`str`): What a reader must know.
    """

    metric: str
    value: float
    ci_lo: float = float("nan")
    ci_hi: float = float("nan")
    trivial_baseline: float = float("nan")
    trivial_name: str = ""
    trivial_baselines: dict[str, dict[str, float]] = field(default_factory=dict)
    note: str = ""


def score_predictions(predictions: Predictions) -> list[Score]:
    """
    All metrics of a run's predictions. Trivial baselines: for classification chance, the majority class, "always
    positive" (F1) and the class frequencies of training as probabilities; for segmentation an empty mask, the mean
    training mask and a full mask; for retrieval a random order.
    """
    return {"classification": _classification, "segmentation": _segmentation, "retrieval": _retrieval}[
        predictions.kind
    ](predictions)


def _score(
    metric: str, value: float, interval: tuple[float, float], trivial: dict[str, dict[str, float]], note: str = ""
) -> Score:
    """A score with the best of its baselines; those that are not defined are left out."""
    trivial = {name: numbers for name, numbers in trivial.items() if not np.isnan(numbers["value"])}
    name, best = best_baseline(metric, {name: numbers["value"] for name, numbers in trivial.items()})
    return Score(metric, value, *interval, best, name, trivial, note)


def _classification(predictions: Predictions) -> list[Score]:
    options = {name: value for name, value in predictions.settings.items() if name not in _OWN_SETTINGS}
    scores, labels = predictions.columns["score"], predictions.columns["target"]
    values = classification_metrics(scores, labels, **options)
    intervals = classification_intervals(scores, labels, predictions.patients, **options, **_resampling(predictions))
    trivial = _trivial_classification(predictions, options)
    notes = " ".join(values.notes)
    return [
        _score(name, value, intervals[name], trivial.get(name, {}), notes if np.isnan(value) else "")
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
    guessed = _random_guesses(np.asarray(frequencies), truth, exclusive)
    columns = (
        [""] if scores.shape[1] == 1 else ["", *(f"/{name}" for name in plain["class_names"] or range(len(truth[0])))]
    )
    for point in options.get("operating_points") or {}:
        trivial |= {f"sensitivity@specificity{point}{column}": round(1 - float(point), 9) for column in columns}
    found = {name: {_CONSTANT.get(name.split("/")[0], "chance"): {"value": value}} for name, value in trivial.items()}
    for column, accuracy in zip(columns, guessed, strict=False):
        found[f"accuracy{column}"]["chance"] = {"value": float(accuracy)}
    if not exclusive:
        always = classification_metrics(np.ones(scores.shape), labels, **plain)
        for name in [name for name in trivial if name.partition("/")[0] == "f1"]:
            found[name]["always positive"] = {"value": always[name]}
    return found


# What the class frequencies of training are as constant scores.
_CONSTANT = dict.fromkeys(
    ("accuracy", "balanced_accuracy", "f1", "precision", "recall", "specificity"), "majority class"
) | dict.fromkeys(("ece", "brier"), "class frequencies")


def _random_guesses(frequencies: np.ndarray, truth: np.ndarray, exclusive: bool) -> list[float]:
    """Expected accuracy of guesses drawn by the class frequencies: of all classes, and, of labels, of each."""
    if exclusive:
        return [float((truth.mean(0) * frequencies).sum())]
    known = ~np.isnan(truth.astype(np.float64))
    shares = np.where(known, truth, 0).sum(0) / np.maximum(known.sum(0), 1)
    each = np.where(known.any(0), shares * frequencies + (1 - shares) * (1 - frequencies), np.nan)
    mean = float(each[known.any(0)].mean()) if known.any() else float("nan")
    return [mean, *each.tolist()] if len(each) > 1 else [mean]


def _segmentation(predictions: Predictions) -> list[Score]:
    counts = {name: predictions.columns[name] for name in COUNTS}
    values = metrics_of_counts(counts)
    intervals = segmentation_intervals(counts, predictions.patients, **_resampling(predictions))
    notes = " ".join(values.notes)
    trivial: dict[str, dict[str, dict[str, float]]] = {name: {} for name in intervals}
    for name, guess in baseline_masks(predictions.columns).items():
        found = metrics_of_counts(guess)
        ends = segmentation_intervals(guess, predictions.patients, **_resampling(predictions))
        for metric, (low, high) in ends.items():
            interval = {} if np.isnan(low) else {"ci_lo": low, "ci_hi": high}
            trivial[metric][name] = {"value": found[metric]} | interval
    return [
        _score(name, values[name], interval, trivial[name], notes if np.isnan(values[name]) else "")
        for name, interval in intervals.items()
    ]


def _retrieval(predictions: Predictions) -> list[Score]:
    parts = _retrieval_parts(predictions)
    draws: dict[str, list[np.ndarray]] = {}
    sampling = _resampling(predictions)
    for weights in resampled_weights(predictions.patients, sampling["num_resamples"], sampling["seed"]):
        for name, draw in _weighted_means(parts, weights).items():
            draws.setdefault(name, []).append(draw)
    whole = _weighted_means(parts, np.ones((1, len(predictions))))
    chance = {name: float(chance[rows].mean()) for name, (rows, _, chance) in parts.items()}
    chance["mean_recall"] = float(np.mean([value for name, value in chance.items() if "_recall@" in name]))
    return [
        _score(name, float(value[0]), interval_of(np.concatenate(draws[name])), {"chance": {"value": chance[name]}})
        for name, value in whole.items()
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


def _weighted_means(parts: dict, weights: np.ndarray) -> dict[str, np.ndarray]:
    """Means, of median ranks the median, and the mean of the recalls."""
    found = {}
    for name, (rows, values, _) in parts.items():
        if name.endswith("_median_rank"):
            found[name] = weighted_median(values[rows], weights[:, rows])
            continue
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


def _resampling(predictions: Predictions) -> dict[str, int]:
    return {"num_resamples": predictions.settings["num_resamples"], "seed": predictions.settings["bootstrap_seed"]}


__all__ = ["CI_METHOD", "Score", "score_predictions", "values_under_weights"]
