"""Boxes that refer to the published images, brought to the size of the copies on disk."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from .catalog import LoadedRows
from .images import image_size
from .public_report import LoadReport

_SAMPLE = 32


def fit_boxes(loaded: LoadedRows, root: Path, report: LoadReport) -> None:
    """
    Scale the boxes of resized copies to the size of each copy. Sizes are read from headers: of a sample of the images
    with boxes, and of all of them if one of the sample has another size than `loaded.box_frame`.

    Raises:
        ValueError: A copy has another shape than the published image: cropped or padded, so its boxes are not known.
    """
    rows, frame = loaded.rows, loaded.box_frame
    if frame is None or "boxes" not in rows:
        return
    boxed = np.flatnonzero(rows["boxes"].map(lambda boxes: boxes is not None and len(boxes) > 0))
    sample = boxed[:: max(1, len(boxed) // _SAMPLE)]
    if all(_size(rows, place, root) in (None, frame) for place in sample):
        return
    boxes, resized = rows["boxes"].tolist(), 0
    for place in boxed:
        size = _size(rows, place, root)
        if size in (None, frame):
            continue
        across, down = size[0] / frame[0], size[1] / frame[1]
        # Rounding a side to whole pixels changes the shape by up to one of them.
        if abs(across - down) * max(frame) > 1:
            raise ValueError(
                f"{rows['image'].iloc[place]}: {size[0]} x {size[1]} pixels, expected {frame[0]} x {frame[1]} or a "
                "resized copy of the same shape. The boxes do not say where they are in a cropped or stretched image: "
                "use the published images."
            )
        boxes[place] = (np.asarray(boxes[place]) * np.tile(np.divide(size, frame), 2)).astype(np.float32)
        resized += 1
    loaded.rows = rows.assign(boxes=boxes)
    report.notes.append(f"{resized} images are resized copies: their boxes are brought to their size.")


def _size(rows, place: int, root: Path) -> tuple[int, int] | None:
    """Size of an image, or None where its header does not say: reading it will name the fault."""
    image = rows["image"].iloc[place]
    try:
        return image_size(image["bytes"] if isinstance(image, dict) else os.path.join(root, image))
    except (OSError, ValueError, ImportError):
        return None


__all__ = ["fit_boxes"]
