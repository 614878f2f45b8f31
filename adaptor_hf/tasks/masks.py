"""The masks of a data set in the frame that a model sees, read once: those filled, what was tolerated, their mean."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ..data.masks import RadiographMask, read_mask
from ..evaluation.notes import tolerated_mask_notes

if TYPE_CHECKING:
    from datasets import Dataset


@dataclass
class MaskSummary:
    """
    What one pass over a part's masks found.

    Args:
        filled (`np.ndarray` of shape `(n,)`, bool): Whether each has a pixel inside.
        notes (`Counter`): What was tolerated, as of `read_mask`.
        mean (`np.ndarray` of shape `(H, W)`): As of `mean_mask`, in the frame that the model sees.
    """

    filled: np.ndarray
    notes: Counter
    mean: np.ndarray


def framed_masks(dataset: Dataset, collator: Any, notes: Counter | None = None) -> Iterator[tuple[np.ndarray, bool]]:
    """
    Each mask as the model sees it, `(H, W)` bool, and whether the whole mask has a pixel inside. No image is read.

    Args:
        dataset (`Dataset`): With `mask`.
        collator (`MaskCollator`): Without augmentation.
        notes (`Counter`, *optional*): As of `read_mask`.
    """
    # Of a picture that came another way than by `RadiographMask` there are no grey levels to count.
    stored = isinstance(dataset.features["mask"], RadiographMask)
    dataset = dataset.select_columns(["mask"])
    if stored:
        dataset = dataset.cast_column("mask", RadiographMask(decode=False))
    for row in dataset:
        mask = read_mask(row["mask"], notes) if stored else row["mask"]
        labels = collator([{"image": mask, "mask": mask}])["labels"][0]
        yield np.asarray(labels) > 0, mask.getbbox() is not None


def summarize_masks(dataset: Dataset, collator: Any) -> MaskSummary:
    """One pass over a part's masks."""
    from ..evaluation import mean_mask

    notes, filled = Counter(), []

    def masks() -> Iterator[np.ndarray]:
        for mask, has_any in framed_masks(dataset, collator, notes):
            filled.append(has_any)
            yield mask

    mean = mean_mask(masks())
    return MaskSummary(np.array(filled), notes, mean)


class MeanMasks:
    """
    The mean training mask of each share of the training rows, and its threshold, made when it is first asked for.

    Args:
        train, validation (`Dataset`): With `mask`.
        collator (`MaskCollator`): Without augmentation.
        whole (`np.ndarray` of shape `(H, W)`): Mean over all of `train`.
        metric (`str`): The threshold is the best by it on validation.
    """

    def __init__(self, train: Dataset, validation: Dataset, collator: Any, whole: np.ndarray, metric: str):
        self.train, self.validation, self.collator = train, validation, collator
        self.whole, self.metric = whole, metric
        self.made: dict[bytes, tuple[np.ndarray, float]] = {}

    def of(self, kept: np.ndarray) -> tuple[np.ndarray, float]:
        """Mean `(H, W)` of the training rows `kept` `(n,)` bool, and its threshold."""
        from ..evaluation import mean_mask, mean_mask_threshold

        key = np.packbits(kept).tobytes()
        if key not in self.made:
            mean = self.whole
            if not kept.all():
                rows = self.train.select(np.flatnonzero(kept))
                mean = mean_mask(mask for mask, _ in framed_masks(rows, self.collator))
            masks = (mask for mask, _ in framed_masks(self.validation, self.collator))
            self.made[key] = mean, mean_mask_threshold(mean, masks, self.metric)
        return self.made[key]


class ToleratedMasks:
    """
    Sentences on masks that were read with reserve, of each part and test set; each is read once, when first asked for.

    Args:
        dataset (`str`): Name of the data set whose test part is called so.
        train (`MaskSummary`): Of the training part.
        validation (`Dataset`): With `mask`.
    """

    def __init__(self, dataset: str, train: MaskSummary, validation: Dataset):
        self.dataset, self.validation = dataset, validation
        self.made: dict[str, list[str]] = {"training": tolerated_mask_notes("training", train.notes, len(train.filled))}

    def notes(self, test_set: str, rows: Dataset) -> list[str]:
        """Of training, validation and a test set."""
        name = "test" if test_set == self.dataset else f"{test_set}'s"
        for part, masks in (("validation", self.validation), (name, rows)):
            if part not in self.made:
                self.made[part] = tolerated_mask_notes(part, _count(masks), len(masks))
        return [note for part in ("training", "validation", name) for note in self.made[part]]


def _count(dataset: Dataset) -> Counter:
    notes = Counter()
    if isinstance(dataset.features["mask"], RadiographMask):
        for row in dataset.select_columns(["mask"]).cast_column("mask", RadiographMask(decode=False)):
            read_mask(row["mask"], notes)
    return notes


__all__ = ["MaskSummary", "MeanMasks", "ToleratedMasks", "framed_masks", "summarize_masks"]
