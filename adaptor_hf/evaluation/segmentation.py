"""
Segmentation metrics from four numbers an image, so that batches, processes and resamples of patients add up.

Published work calls three different things "dice"; each is here under its own name, and an all-empty mask is scored
beside it, because on images of mostly healthy people it scores high in the first.
"""

from collections.abc import Iterable, Mapping

import numpy as np

from .classification import Metrics, nearly_constant
from .draws import gather_draws
from .intervals import IntervalMethod, Intervals, make_intervals
from .statistics import resampled_weights
from .weighted import weighted_auroc

COUNTS = ("intersection", "predicted_pixels", "target_pixels", "score")


def segmentation_counts(
    predicted: Iterable[np.ndarray], targets: Iterable[np.ndarray], *, threshold: float = 0.5
) -> dict[str, np.ndarray]:
    """
    What the metrics need of each image.

    Args:
        predicted (`Iterable[np.ndarray]`): Masks (bool) or probabilities (float in [0, 1]), each `(H, W)`; images may
            differ in size, and an array `(N, H, W)` will do.
        targets (`Iterable[np.ndarray]`): Masks of the same size each: bool, or numbers of which all above 0 are inside.
        threshold (`float`, defaults to 0.5): A probability above it is inside.

    Returns:
        `dict[str, np.ndarray]`: `(N,)` each: `intersection`, `predicted_pixels`, `target_pixels` (int64), and `score`
        (float64), how sure the model is that there is any mask: the highest probability, or for a mask its share of
        the image. Concatenate those of batches and processes.

    Raises:
        ValueError: a prediction of another size than its mask, other shapes, NaN, logits, or unequal numbers of images.
    """
    columns: dict[str, list] = {name: [] for name in COUNTS}
    for row, (values, target) in enumerate(zip(predicted, targets, strict=True)):
        values, target = np.asarray(values), np.asarray(target)
        if values.ndim != 2 or values.shape != target.shape or values.size == 0:
            raise ValueError(
                f"Image {row}: the prediction has shape {values.shape}, the mask {target.shape}; expected one (H, W). "
                "Resize the prediction to the mask: resizing a mask changes the task."
            )
        if np.isnan(target.astype(np.float64, copy=False)).any():
            raise ValueError(f"Image {row}: the mask has NaN.")
        if values.dtype == bool:
            inside, score = values, values.mean()
        elif not np.issubdtype(values.dtype, np.floating):
            raise ValueError(f"Image {row}: the prediction is {values.dtype}, expected bool or probabilities (float).")
        elif not (values.min() >= 0 and values.max() <= 1):
            raise ValueError(
                f"Image {row}: predictions go from {values.min():g} to {values.max():g}, expected probabilities in "
                "[0, 1]. Apply the sigmoid to logits."
            )
        else:
            inside, score = values > threshold, values.max()
        target = target > 0
        for name, value in zip(COUNTS, ((inside & target).sum(), inside.sum(), target.sum(), score), strict=True):
            columns[name].append(value)
    return {
        name: np.array(values, dtype=np.float64 if name == "score" else np.int64) for name, values in columns.items()
    }


def segmentation_metrics(
    predicted: Iterable[np.ndarray], targets: Iterable[np.ndarray], *, threshold: float = 0.5
) -> Metrics:
    """Metrics of [`metrics_of_counts`], from the arguments of [`segmentation_counts`]."""
    return metrics_of_counts(segmentation_counts(predicted, targets, threshold=threshold))


def metrics_of_counts(counts: Mapping[str, np.ndarray]) -> Metrics:
    """
    Segmentation metrics of a set of images.

    Args:
        counts (`Mapping[str, np.ndarray]`): From [`segmentation_counts`].

    Returns:
        [`Metrics`]: With p predicted and t true pixels,

        * `dice_reference`: mean over images of 2|p and t| / (|p| + |t|), where an image without mask counts 1 if
          nothing is predicted and 0 otherwise (GLoRIA, MGCA and Adaptor; here a mean of images, not of batches);
        * `dice_positive`: the same over images with a mask;
        * `dice_pooled`: over all pixels of the set at once (LoVT);
        * `iou_positive`, `iou_pooled`: |p and t| / |p or t|, likewise;
        * `auroc_any_mask`: of `score` for "this image has a mask"; `sensitivity_any_mask` and `false_alarm_rate`:
          shares of images with and without mask where anything is predicted;
        * `all_empty/...`: each of them for a model that predicts nothing.
    """
    found, notes = counts_under_weights(counts, np.ones((1, _num_images(counts)))), []
    empty = {name: np.zeros_like(counts[name]) for name in COUNTS} | {"target_pixels": counts["target_pixels"]}
    trivial = counts_under_weights(empty, np.ones((1, _num_images(counts))))
    metrics = {name: float(value[0]) for name, value in found.items()}
    metrics |= {f"all_empty/{name}": float(value[0]) for name, value in trivial.items()}
    positives = int((counts["target_pixels"] > 0).sum())
    if positives == 0:
        notes.append(
            f"None of {_num_images(counts)} images has a mask: only dice_reference and false_alarm_rate exist."
        )
    elif positives == _num_images(counts):
        notes.append("Every image has a mask: there is no AUROC of any mask and no false alarm rate.")
    return Metrics(metrics, notes)


def segmentation_intervals(
    counts: Mapping[str, np.ndarray],
    patients: np.ndarray,
    *,
    num_resamples: int = 1000,
    level: float = 0.95,
    seed: int = 0,
    unit: str = "patients",
) -> Intervals:
    """Intervals over patients `(N,)` of [`metrics_of_counts`], all-empty scores not among them; `unit` as in
    [`classification_intervals`]."""
    if len(patients) != _num_images(counts):
        raise ValueError(f"Got {len(patients)} patients for {_num_images(counts)} images.")
    patients = np.asarray(patients)
    values = {
        name: float(value[0]) for name, value in counts_under_weights(counts, np.ones((1, len(patients)))).items()
    }
    blocks = resampled_weights(patients, num_resamples, seed)
    methods = segmentation_interval_methods(counts)
    draws = gather_draws(lambda weights: counts_under_weights(counts, weights), blocks, methods)
    return make_intervals(methods, values, draws, patients, level=level, unit=unit)


def segmentation_interval_methods(counts: Mapping[str, np.ndarray]) -> dict[str, IntervalMethod]:
    """How each metric gets its interval."""
    positive = np.asarray(counts["target_pixels"]) > 0
    everyone = np.ones(len(positive), dtype=bool)
    with_mask, without = {"with a mask": positive}, {"without a mask": ~positive}
    constant = "All scores are equal up to rounding." if nearly_constant(np.asarray(counts["score"])) else ""
    means = ("dice_positive", "dice_pooled", "iou_positive", "iou_pooled")
    return {
        "dice_reference": IntervalMethod("mean", everyone, needs={"": everyone}),
        **{name: IntervalMethod("mean", positive, needs=with_mask) for name in means},
        "auroc_any_mask": IntervalMethod("area", positive, ~positive, with_mask | without, reason=constant),
        "sensitivity_any_mask": IntervalMethod("share", positive, needs=with_mask),
        "false_alarm_rate": IntervalMethod("share", ~positive, needs=without),
    }


def image_dice(counts: Mapping[str, np.ndarray]) -> np.ndarray:
    """`(N,)` dice of each image by the reference's rule, for paired comparisons of two models."""
    shared, predicted, target = (np.asarray(counts[name], dtype=np.float64) for name in COUNTS[:3])
    total = predicted + target
    return np.where(total > 0, 2 * shared / np.maximum(total, 1), 1.0)


def _num_images(counts: Mapping[str, np.ndarray]) -> int:
    lengths = {name: len(counts[name]) for name in COUNTS}
    if len(set(lengths.values())) != 1 or 0 in lengths.values():
        raise ValueError(f"Counts need the same number of images, at least one, in each column; got {lengths}.")
    return lengths["score"]


def counts_under_weights(counts: Mapping[str, np.ndarray], weights: np.ndarray) -> dict[str, np.ndarray]:
    """Each metric, `(B,)`, under each row of weights `(B, N)`."""
    shared, predicted, target = (np.asarray(counts[name], dtype=np.float64) for name in COUNTS[:3])
    positive = target > 0
    dice = image_dice(counts)
    iou = shared / np.maximum(predicted + target - shared, 1)
    images, with_mask = weights.sum(1), weights @ positive
    pooled = [weights @ part for part in (shared, predicted, target)]
    return {
        "dice_reference": weights @ dice / images,
        "dice_positive": _divide(weights @ (dice * positive), with_mask),
        "dice_pooled": _divide(2 * pooled[0], pooled[1] + pooled[2], pooled[2]),
        "iou_positive": _divide(weights @ (iou * positive), with_mask),
        "iou_pooled": _divide(pooled[0], pooled[1] + pooled[2] - pooled[0], pooled[2]),
        "auroc_any_mask": weighted_auroc(np.asarray(counts["score"]), positive, weights),
        "sensitivity_any_mask": _divide(weights @ (positive & (predicted > 0)), with_mask),
        "false_alarm_rate": _divide(weights @ (~positive & (predicted > 0)), images - with_mask),
    }


def _divide(part: np.ndarray, whole: np.ndarray, needed: np.ndarray | None = None) -> np.ndarray:
    """Part of the whole, NaN where the whole (or what is needed for a meaning) is 0."""
    needed = whole if needed is None else needed
    return np.divide(part, whole, out=np.full(len(part), np.nan), where=needed > 0)


__all__ = [
    "COUNTS",
    "counts_under_weights",
    "image_dice",
    "metrics_of_counts",
    "segmentation_counts",
    "segmentation_interval_methods",
    "segmentation_intervals",
    "segmentation_metrics",
]
