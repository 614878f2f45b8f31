"""Boxes that refer to the published images, brought to the size of the copies on disk."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from .boxes import box_fault, reaches_out, same_shape
from .catalog import LoadedRows
from .images import image_size
from .public_report import LoadReport

_SAMPLE = 32
# Of a sample of images without a known frame: so many with a box that is none of theirs stop the load.
_FAULTY_SHARE = 0.1


def fit_boxes(loaded: LoadedRows, root: Path, report: LoadReport) -> None:
    """
    Scale the boxes of resized copies to the size of each copy. Sizes are read from headers: of a sample of the images
    with boxes, and of all of them if one of the sample has another size than `loaded.box_frame`. Without a frame the
    boxes of the sample are compared with their images.

    Raises:
        ValueError: A copy has another shape than the published image: cropped or padded, so its boxes are not known.
            Without a frame: boxes leave the images of over a tenth of the sample, as with resized copies.
    """
    rows, frame = loaded.rows, loaded.box_frame
    if "boxes" not in rows:
        return
    boxed = np.flatnonzero(rows["boxes"].map(lambda boxes: boxes is not None and len(boxes) > 0))
    sample = boxed[:: max(1, len(boxed) // _SAMPLE)]
    if frame is None:
        _check_inside(rows, sample, root, report)
        return
    if all(_size(rows, place, root) in (None, frame) for place in sample):
        return
    boxes, resized = rows["boxes"].tolist(), 0
    for place in boxed:
        size = _size(rows, place, root)
        if size in (None, frame):
            continue
        if not same_shape(size, frame):
            raise ValueError(
                f"{rows['image'].iloc[place]}: {size[0]} x {size[1]} pixels, expected {frame[0]} x {frame[1]} or a "
                "resized copy of the same shape. The boxes do not say where they are in a cropped or stretched image: "
                "use the published images."
            )
        boxes[place] = (np.asarray(boxes[place]) * np.tile(np.divide(size, frame), 2)).astype(np.float32)
        resized += 1
    loaded.rows = rows.assign(boxes=boxes)
    report.notes.append(f"{resized} images are resized copies: their boxes are brought to their size.")


def _check_inside(rows, sample: np.ndarray, root: Path, report: LoadReport) -> None:
    leaving, first = 0, None
    for place in sample:
        size = _size(rows, place, root)
        boxes = np.asarray(rows["boxes"].iloc[place], dtype=np.float64)
        if size is None:
            continue
        fault = next((fault for box in boxes if (fault := box_fault(box, size))), None)
        if fault is None and (out := reaches_out(boxes, size)).any():
            fault = f"the box {tuple(boxes[out.argmax()].tolist())} leaves the image of {size[0]} x {size[1]} pixels"
        if fault is not None:
            leaving += 1
            first = first or f"{rows['source'].iloc[place] if 'source' in rows else f'row {place}'}: {fault}"
    if leaving > max(1, _FAULTY_SHARE * len(sample)):
        raise ValueError(
            f"{first}. The boxes of {leaving} of {len(sample)} images that were looked at leave their image: are these "
            "the published images, or copies of another size? Use the published ones."
        )
    if leaving:
        report.notes.append(f"The boxes of {leaving} of {len(sample)} images that were looked at leave their image.")


def _size(rows, place: int, root: Path) -> tuple[int, int] | None:
    """Size of an image, or None where its header does not say: reading it will name the fault."""
    image = rows["image"].iloc[place]
    try:
        return image_size(image["bytes"] if isinstance(image, dict) else os.path.join(root, image))
    except (OSError, ValueError, ImportError):
        return None


__all__ = ["fit_boxes"]
