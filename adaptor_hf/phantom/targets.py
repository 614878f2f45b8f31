"""Masks and boxes of a drawing, from the areas that its findings cover."""

import numpy as np

from .findings import WITH_SIDE, Finding
from .render import Rendering

BOXED = (*WITH_SIDE, "device")
"""Findings with a place of their own: each lesion of them has a box."""
MASKS = ("lungs", *BOXED)


def lesion_mask(cover: np.ndarray) -> np.ndarray:
    """Pixels of a lesion, bool: covered to at least half of what its best covered pixel is."""
    return (cover > 0) & (cover >= 0.5 * cover.max())


def masks_of(rendering: Rendering, findings: tuple[Finding, ...]) -> dict[str, np.ndarray]:
    """A bool array for each of MASKS, lesions of both sides joined, all False where there is none.

    "lungs" are the lung fields that heart and diaphragm leave free, whatever a finding lays over them.
    """
    masks = {name: np.zeros(rendering.picture.shape, dtype=bool) for name in BOXED}
    for finding, cover in zip(findings, rendering.covers, strict=True):
        if finding.name in masks:
            masks[finding.name] |= lesion_mask(cover)
    return {"lungs": rendering.lungs > 0.5, **masks}


def boxes_of(rendering: Rendering, findings: tuple[Finding, ...]) -> tuple[np.ndarray, list[str]]:
    """Boxes float32 (n, 4), xyxy in pixels, each the smallest around a lesion's mask; and their findings' names."""
    boxes, names = [], []
    for finding, cover in zip(findings, rendering.covers, strict=True):
        rows, columns = np.nonzero(lesion_mask(cover))
        if finding.name in BOXED and len(rows):
            boxes.append((columns.min(), rows.min(), columns.max() + 1, rows.max() + 1))
            names.append(finding.name)
    return np.array(boxes, dtype=np.float32).reshape(-1, 4), names
