"""Two kinds of run on the same test images: their difference, over patients and seeds at once."""

from collections.abc import Sequence

import numpy as np

from .draws import gather_draws
from .intervals import difference_interval, make_intervals
from .predictions import Predictions
from .scoring import interval_methods, values_under_weights
from .statistics import Difference, resampled_weights


def compare_predictions(
    first: Sequence[Predictions],
    second: Sequence[Predictions],
    metric: str,
    *,
    num_resamples: int = 2000,
    level: float = 0.95,
    seed: int = 0,
) -> Difference:
    """
    Mean of a metric over the seeds of one kind of run, minus that of another, on the same images.

    Each resample draws patients, the same for both sides, and of each side as many of its seeds as it has, so that the
    interval holds chance of both kinds. With one seed a side it speaks of these two trained models only.

    Args:
        first, second (`Sequence[Predictions]`): One a seed.
        metric (`str`): A name that `score_predictions` gives, other than a median.
        num_resamples, level, seed: As in `bootstrap_interval`.

    Returns:
        [`Difference`]: As of `difference_interval`. NaN ends and p-value where a side has no interval, which `method`
        then explains.

    Raises:
        ValueError: if the runs are not of the same images, patients and targets, or do not have the metric.
    """
    if not first or not second:
        raise ValueError("Need at least one run on each side.")
    (found,) = compare_all([first, second], metric, num_resamples=num_resamples, level=level, seed=seed).values()
    return found


def compare_all(
    kinds: Sequence[Sequence[Predictions]],
    metric: str,
    *,
    num_resamples: int = 2000,
    level: float = 0.95,
    seed: int = 0,
) -> dict[tuple[int, int], Difference]:
    """
    [`compare_predictions`] of every pair of several kinds of run; each run is scored once on each resample.

    Returns:
        `dict[tuple[int, int], Difference]`: By the numbers of first and second, the first smaller.

    Raises:
        ValueError: as of `compare_predictions`.
    """
    runs = [predictions for kind in kinds for predictions in kind]
    orders = [_order(predictions) for predictions in runs]
    reference, order = runs[0], orders[0]
    for predictions, other in zip(runs, orders, strict=True):
        for name in ("image_id", "patient_id", "target", "direction"):
            if name in reference.columns and not _equal(
                reference.columns[name][order], predictions.columns.get(name, np.empty(0))[other]
            ):
                raise ValueError(f"The runs differ in {name}: a paired comparison needs the same test images.")
    functions = [values_under_weights(predictions) for predictions in runs]
    # Resampled rows are those of the first run; `back` sends them to the rows of each.
    back = [order[np.argsort(other)] for other in orders]
    points = [
        {name: float(value[0]) for name, value in function(np.ones((1, len(reference)))).items()}
        for function in functions
    ]
    if metric not in points[0]:
        raise ValueError(f"No metric {metric!r} here. There are: {', '.join(points[0])}.")
    if np.isnan([point[metric] for point in points]).any():
        raise ValueError(f"{metric} is not defined on these rows: there is nothing to compare.")
    blocks = list(resampled_weights(reference.patients, num_resamples, seed))
    draws = [
        gather_draws(function, (weights[:, rows] for weights in blocks), interval_methods(predictions))
        for function, rows, predictions in zip(functions, back, runs, strict=True)
    ]
    found, ends = {}, np.cumsum([0, *(len(kind) for kind in kinds)])
    for one in range(len(kinds)):
        for other in range(one + 1, len(kinds)):
            generator = np.random.default_rng(seed + 1)
            parts = [slice(ends[number], ends[number + 1]) for number in (one, other)]
            sides = [_mean_over_seeds(points[part], draws[part], generator) for part in parts]
            places = [int(ends[number]) for number in (one, other)]
            difference = difference_interval(
                tuple(interval_methods(runs[place]) for place in places),
                (sides[0][0], sides[1][0]),
                (sides[0][1], sides[1][1]),
                metric,
                tuple(reference.patients[back[place]] for place in places),
                level=level,
                unit=reference.interval_over,
            )
            drawn = sides[0][1][metric] - sides[1][1][metric]
            defined = drawn[~np.isnan(drawn)]
            difference.standard_error = float(defined.std(ddof=1)) if len(defined) > 1 else float("nan")
            if len(kinds[one]) + len(kinds[other]) > 2 and not difference.method.startswith("none"):
                difference.method += " and seeds"
            found[one, other] = difference
    return found


def mean_interval(
    runs: Sequence[Predictions], metric: str, *, num_resamples: int = 2000, level: float = 0.95, seed: int = 0
) -> tuple[float, float, float]:
    """
    Mean of a metric over the seeds of one kind of run, and the ends of its interval over patients and seeds.

    Args:
        runs (`Sequence[Predictions]`): One a seed, of the same rows in the same order.
        metric, num_resamples, level, seed: As in [`compare_predictions`].

    Returns:
        `tuple[float, float, float]`: NaN ends where there is no interval.
    """
    first = runs[0]
    if any(not _equal(run.columns["image_id"], first.columns["image_id"]) for run in runs):
        raise ValueError("The runs have other rows, or the same in another order.")
    functions = [values_under_weights(run) for run in runs]
    whole = np.ones((1, len(first)))
    points = [{name: float(value[0]) for name, value in function(whole).items()} for function in functions]
    blocks = list(resampled_weights(first.patients, num_resamples, seed))
    draws = [
        gather_draws(function, blocks, interval_methods(run)) for function, run in zip(functions, runs, strict=True)
    ]
    means, resampled = _mean_over_seeds(points, draws, np.random.default_rng(seed + 1))
    ends = make_intervals(interval_methods(first), means, resampled, first.patients, level=level)
    return means[metric], *ends[metric]


def _mean_over_seeds(
    points: Sequence[dict[str, float]], draws: Sequence[dict[str, np.ndarray]], generator: np.random.Generator
) -> tuple[dict[str, float], dict[str, np.ndarray]]:
    """Mean over seeds of each metric, of all rows and of each resample; a resample draws seeds too."""
    means = {name: float(np.mean([point[name] for point in points])) for name in points[0]}
    first = next(iter(draws[0].values()))
    chosen = generator.integers(len(draws), size=(len(draws), len(first)))
    resampled = {
        name: np.take_along_axis(np.stack([of_seed[name] for of_seed in draws]), chosen, axis=0).mean(0)
        for name in draws[0]
    }
    return means, resampled


def _order(predictions: Predictions) -> np.ndarray:
    """Rows in the order of image and direction."""
    ids = predictions.columns["image_id"].astype(str)
    names = [ids] if "direction" not in predictions.columns else [ids, predictions.columns["direction"].astype(str)]
    if len(set(zip(*names, strict=True))) < len(ids):
        raise ValueError("An image is there more than once: rows of two runs cannot be matched by it.")
    return np.lexsort(names)


def _equal(first: np.ndarray, second: np.ndarray) -> bool:
    if first.dtype == object or second.dtype == object:
        return first.tolist() == second.tolist()
    return first.shape == second.shape and np.array_equal(first.astype(float), second.astype(float), equal_nan=True)


__all__ = ["compare_all", "compare_predictions", "mean_interval"]
