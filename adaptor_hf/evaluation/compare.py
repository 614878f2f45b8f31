"""Two kinds of run on the same test images: their difference, over patients and seeds at once."""

from collections.abc import Sequence

import numpy as np

from .predictions import Predictions
from .scoring import values_under_weights
from .statistics import Difference, interval_of, resampled_weights


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
    interval holds chance of both kinds. With one seed a side it is the paired bootstrap over patients, and speaks of
    these two trained models only.

    Args:
        first, second (`Sequence[Predictions]`): One a seed.
        metric (`str`): A name that `score_predictions` gives, other than a median.
        num_resamples, level, seed: As in `bootstrap_interval`.

    Returns:
        [`Difference`]: With a two-sided p-value, as of `paired_bootstrap`.

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
    whole = np.ones((1, len(reference)))
    known = functions[0](whole)
    if metric not in known:
        raise ValueError(f"No metric {metric!r} here. There are: {', '.join(known)}.")
    points = np.array([function(whole)[metric][0] for function in functions])
    if np.isnan(points).any():
        raise ValueError(f"{metric} is not defined on these rows: there is nothing to compare.")
    blocks = [
        np.stack([function(weights[:, rows])[metric] for function, rows in zip(functions, back, strict=True)], axis=1)
        for weights in resampled_weights(reference.patients, num_resamples, seed)
    ]
    ends = np.cumsum([len(kind) for kind in kinds])[:-1]
    draws, values = np.split(np.concatenate(blocks), ends, axis=1), np.split(points, ends)
    return {
        (one, other): _difference(draws[one], draws[other], values[one], values[other], level, seed)
        for one in range(len(kinds))
        for other in range(one + 1, len(kinds))
    }


def _difference(first, second, first_values, second_values, level: float, seed: int) -> Difference:
    """Of draws `(B, seeds)` and the values of all rows `(seeds,)` of two sides."""
    generator = np.random.default_rng(seed + 1)
    means = [
        np.take_along_axis(side, generator.integers(side.shape[1], size=side.shape), axis=1).mean(1)
        for side in (first, second)
    ]
    difference = means[0] - means[1]
    defined = difference[~np.isnan(difference)]
    smaller = min((defined <= 0).sum(), (defined >= 0).sum())
    several = len(first_values) + len(second_values) > 2
    return Difference(
        float(first_values.mean() - second_values.mean()),
        *interval_of(difference, level),
        float(min(1.0, 2 * (smaller + 1) / (len(defined) + 1))),
        "paired bootstrap over patients" + (" and seeds" if several else ""),
        float(defined.std(ddof=1)) if len(defined) > 1 else float("nan"),
    )


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


__all__ = ["compare_all", "compare_predictions"]
