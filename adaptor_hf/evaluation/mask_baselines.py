"""
Masks that look at no image (empty, full, the mean of the training masks), and counts that show turned or grey masks.

Lungs are where lungs are: a mean mask has a Dice of .8 there, which a reader must see beside a model's.
"""

from collections.abc import Iterable, Mapping

import numpy as np

from .segmentation import COUNTS, counts_under_weights

TURNS = (
    "a rotation by 90 degrees counter-clockwise",
    "a rotation by 180 degrees",
    "a rotation by 90 degrees clockwise",
    "a left-right flip",
    "a transposition (rows and columns swapped)",
    "an upside-down flip",
    "a transposition along the other diagonal",
)
"""What [`turned`] does, by number from 1 on."""

EXTRA_COUNTS = ("image_pixels", "undecided_pixels", "turned_intersection")
MEAN_COUNTS = ("mean_mask_pixels", "mean_mask_intersection", "mean_mask_turned_intersection")
NUM_LEVELS = 100
# Probabilities between these say neither yes nor no.
UNDECIDED = (0.25, 0.75)


def turned(masks: np.ndarray, number: int) -> np.ndarray:
    """Masks `(..., H, W)` turned or flipped: 0 as they are, 1 to 7 as `TURNS` says."""
    masks = masks[..., ::-1] if number > 3 else masks
    return np.rot90(masks, number % 4, axes=(-2, -1))


def mean_mask(masks: Iterable[np.ndarray]) -> np.ndarray:
    """
    Share of the masks that hold each pixel, in one pass.

    Args:
        masks (`Iterable[np.ndarray]`): Training masks, each `(H, W)`, one size; above 0 is inside.

    Returns:
        `np.ndarray` of shape `(H, W)`, float64, in [0, 1].

    Raises:
        ValueError: no mask, or masks of different sizes.
    """
    total, count = None, 0
    for mask in masks:
        inside = np.asarray(mask) > 0
        if total is None:
            total = np.zeros(inside.shape)
        if inside.ndim != 2 or inside.shape != total.shape:
            raise ValueError(f"Training mask {count} has shape {inside.shape}, expected one (H, W): resize them first.")
        total += inside
        count += 1
    if total is None:
        raise ValueError("There is no training mask to take the mean of.")
    return total / count


def mean_mask_threshold(mean: np.ndarray, masks: Iterable[np.ndarray], metric: str = "dice_pooled") -> float:
    """
    Threshold at which the mean training mask scores best on validation masks.

    Args:
        mean (`np.ndarray` of shape `(H, W)`): From [`mean_mask`].
        masks (`Iterable[np.ndarray]`): Of the validation part, each of a shape that `mean` is resized to.
        metric (`str`): Of `metrics_of_counts`, higher is better.

    Returns:
        `float`: One of 100 levels from 0 up to the highest mean; half of the highest where no level has a value.
    """
    levels = np.linspace(0, mean.max(), NUM_LEVELS + 1)[:-1]
    columns: list[tuple[np.ndarray, np.ndarray, int]] = []
    places: dict[tuple[int, int], np.ndarray] = {}
    for mask in masks:
        inside = np.asarray(mask) > 0
        if inside.shape not in places:
            # A pixel is inside at the levels before its own place.
            places[inside.shape] = np.searchsorted(levels, _resized(mean, inside.shape), side="left")
        place = places[inside.shape]
        hits, pixels = (np.bincount(part.ravel(), minlength=NUM_LEVELS + 1) for part in (place[inside], place))
        columns.append((hits[::-1].cumsum()[::-1][1:], pixels[::-1].cumsum()[::-1][1:], int(inside.sum())))
    scores = []
    for level in range(NUM_LEVELS):
        counts = {
            "intersection": np.array([hits[level] for hits, _, _ in columns]),
            "predicted_pixels": np.array([pixels[level] for _, pixels, _ in columns]),
            "target_pixels": np.array([target for _, _, target in columns]),
            "score": np.zeros(len(columns)),
        }
        scores.append(counts_under_weights(counts, np.ones((1, len(columns))))[metric][0])
    return float(mean.max() / 2 if np.isnan(scores).all() else levels[int(np.nanargmax(scores))])


def baseline_counts(
    predicted: Iterable[np.ndarray],
    targets: Iterable[np.ndarray],
    mean: np.ndarray | None = None,
    mean_threshold: float = 0.5,
    *,
    threshold: float = 0.5,
) -> dict[str, np.ndarray]:
    """
    What the baselines and the notes on masks need of each image, beside [`segmentation_counts`]: join both with `|` and
    pass them to `segmentation_predictions`.

    Args:
        predicted, targets, threshold: As of `segmentation_counts`.
        mean (`np.ndarray` of shape `(H, W)`, *optional*): From [`mean_mask`]; resized (bilinear) to images of another
            size, as predictions are.
        mean_threshold (`float`): From [`mean_mask_threshold`].

    Returns:
        `dict[str, np.ndarray]`: `(N,)` int64 `image_pixels`, `undecided_pixels` (probabilities in (.25, .75)), and
        `(N, 7)` `turned_intersection` of the predicted mask after each of `TURNS` (-1 where the turn changes the
        shape); with `mean` also `mean_mask_pixels`, `mean_mask_intersection`, `mean_mask_turned_intersection`.
    """
    names = (*EXTRA_COUNTS, *(MEAN_COUNTS if mean is not None else ()))
    columns: dict[str, list] = {name: [] for name in names}
    resized: dict[tuple[int, int], np.ndarray] = {}
    for values, target in zip(predicted, targets, strict=True):
        values, target = np.asarray(values), np.asarray(target) > 0
        undecided = 0 if values.dtype == bool else int(((values > UNDECIDED[0]) & (values < UNDECIDED[1])).sum())
        inside = values if values.dtype == bool else values > threshold
        columns["image_pixels"].append(target.size)
        columns["undecided_pixels"].append(undecided)
        columns["turned_intersection"].append(_turned_intersections(inside, target))
        if mean is not None:
            if target.shape not in resized:
                resized[target.shape] = _resized(mean, target.shape) > mean_threshold
            guess = resized[target.shape]
            columns["mean_mask_pixels"].append(int(guess.sum()))
            columns["mean_mask_intersection"].append(int((guess & target).sum()))
            columns["mean_mask_turned_intersection"].append(_turned_intersections(guess, target))
    return {name: np.array(values, dtype=np.int64) for name, values in columns.items()}


def baseline_masks(counts: Mapping[str, np.ndarray]) -> dict[str, dict[str, np.ndarray]]:
    """Name of each trivial mask to its counts, as of `segmentation_counts`, as far as `counts` tell them."""
    targets, zeros = counts["target_pixels"], np.zeros_like(counts["target_pixels"])
    constant = np.zeros(len(targets))
    found = {"empty mask": (zeros, zeros)}
    if "mean_mask_pixels" in counts:
        found["mean training mask"] = (counts["mean_mask_intersection"], counts["mean_mask_pixels"])
    if "image_pixels" in counts:
        found["full mask"] = (targets, counts["image_pixels"])
    return {
        name: dict(zip(COUNTS, (shared, pixels, targets, constant), strict=True))
        for name, (shared, pixels) in found.items()
    }


def _turned_intersections(guess: np.ndarray, target: np.ndarray) -> list[int]:
    found = []
    for number in range(1, len(TURNS) + 1):
        other = turned(guess, number)
        found.append(int((other & target).sum()) if other.shape == target.shape else -1)
    return found


def _resized(mean: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    if mean.shape == shape:
        return mean
    from PIL import Image

    return np.asarray(Image.fromarray(mean.astype(np.float32)).resize(shape[::-1], Image.Resampling.BILINEAR))


__all__ = ["TURNS", "baseline_counts", "baseline_masks", "mean_mask", "mean_mask_threshold", "turned"]
