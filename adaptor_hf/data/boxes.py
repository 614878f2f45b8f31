"""Boxes in one form: float xyxy in pixels of the original image, shape (n, 4), and (0, 4) where there is none."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import pandas as pd


def no_boxes() -> np.ndarray:
    """The boxes of an image without any: float32, shape (0, 4). Never a zero box, which would be a target."""
    return np.zeros((0, 4), dtype=np.float32)


def xywh_to_xyxy(boxes: np.ndarray) -> np.ndarray:
    """Upper-left corner, width and height to two corners, as a new float array of shape (n, 4)."""
    boxes = _as_boxes(boxes)
    return np.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], axis=1)


def xyxy_to_xywh(boxes: np.ndarray) -> np.ndarray:
    """Two corners to upper-left corner, width and height, as a new float array of shape (n, 4)."""
    boxes = _as_boxes(boxes)
    return np.concatenate([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], axis=1)


def usable_boxes(boxes: np.ndarray, width: float | None = None, height: float | None = None) -> np.ndarray:
    """
    Mask of the boxes that are boxes: finite, a positive area, and with `width` and `height` some of it in the image.

    Args:
        boxes: (n, 4), xyxy.

    Returns:
        bool array (n,).
    """
    boxes = _as_boxes(boxes)
    good = np.isfinite(boxes).all(axis=1) & (boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1])
    good &= (boxes[:, 2] > 0) & (boxes[:, 3] > 0)
    if width is not None:
        good &= boxes[:, 0] < width
    if height is not None:
        good &= boxes[:, 1] < height
    return good


def group_boxes(keys: pd.Series, boxes: np.ndarray, labels: np.ndarray) -> pd.DataFrame:
    """
    A table of one row a box as one row an image.

    Args:
        keys: (n,) image of each box. Its boxes need not be neighbours; their order is kept.
        boxes: (n, 4), xyxy.
        labels: (n,) class number of each box.

    Returns:
        Columns `boxes` (float32 (k, 4) arrays) and `box_labels` (lists of int), indexed by key in order of appearance.
    """
    import pandas as pd

    codes, names = pd.factorize(keys)
    order = np.argsort(codes, kind="stable")
    ends = np.cumsum(np.bincount(codes, minlength=len(names)))[:-1] if len(names) else []
    grouped = np.split(_as_boxes(boxes)[order].astype(np.float32), ends) if len(names) else []
    classes = np.split(np.asarray(labels, dtype=np.int64)[order], ends) if len(names) else []
    index = pd.Index(names, dtype=object)
    return pd.DataFrame(
        {
            "boxes": pd.Series(grouped, index, dtype=object),
            "box_labels": pd.Series([group.tolist() for group in classes], index, dtype=object),
        }
    )


def boxes_of(grouped: pd.DataFrame, keys: pd.Series) -> pd.DataFrame:
    """`group_boxes` for these keys, in their order; (0, 4) and no labels for an image without boxes."""
    import pandas as pd

    rows = grouped.index.get_indexer(keys)
    boxes = [grouped["boxes"].iat[row] if row >= 0 else no_boxes() for row in rows]
    labels = [grouped["box_labels"].iat[row] if row >= 0 else [] for row in rows]
    return pd.DataFrame(
        {"boxes": pd.Series(boxes, keys.index, dtype=object), "box_labels": pd.Series(labels, keys.index, dtype=object)}
    )


def box_fault(box: np.ndarray, size: tuple[float, float] | None = None) -> str | None:
    """
    What is wrong with a box; None where nothing is. A part outside the image is nothing wrong: see `reaches_out`.

    Args:
        box: (4,), xyxy.
        size: Width and height of the image, if they are known.
    """
    left, top, right, bottom = map(float, box)
    shown = f"({left:g}, {top:g}, {right:g}, {bottom:g})"
    if not np.isfinite([left, top, right, bottom]).all():
        return f"the box {shown} is not finite"
    if right <= left or bottom <= top:
        return (
            f"the box {shown} has no area or its corners are exchanged, expected x1 y1 x2 y2 with x1 under x2 and y1 "
            "under y2. Are they x, y, width and height?"
        )
    outside = right <= 0 or bottom <= 0
    if outside or (size is not None and (left >= size[0] or top >= size[1])):
        image = "" if size is None else f" of {size[0]:g} x {size[1]:g} pixels"
        return f"the box {shown} lies outside the image{image}. Is it of another image, or of one of another size?"
    return None


def reaches_out(boxes: np.ndarray, size: tuple[float, float]) -> np.ndarray:
    """Mask (n,) of the boxes (n, 4), xyxy, that leave an image of width and height `size` by more than a pixel."""
    boxes = _as_boxes(boxes)
    return (boxes[:, :2] < -1).any(axis=1) | (boxes[:, 2:] > np.add(size, 1)).any(axis=1)


def same_shape(size: tuple[int, int], other: tuple[int, int]) -> bool:
    """Whether one width and height may be a scaled copy of the other, each side rounded to whole pixels."""
    small, large = sorted((tuple(size), tuple(other)), key=lambda one: one[0] * one[1])
    scales = [((few - 1) / many, (few + 1) / many) for few, many in zip(small, large, strict=True)]
    return max(low for low, _ in scales) <= min(high for _, high in scales)


def _as_boxes(boxes) -> np.ndarray:
    array = np.array(boxes, dtype=np.float64)
    if array.size == 0:
        return array.reshape(0, 4)
    if array.ndim != 2 or array.shape[1] != 4:
        raise ValueError(f"Boxes have shape (n, 4), got {array.shape}.")
    return array


__all__ = [
    "box_fault",
    "boxes_of",
    "group_boxes",
    "no_boxes",
    "reaches_out",
    "same_shape",
    "usable_boxes",
    "xywh_to_xyxy",
    "xyxy_to_xywh",
]
