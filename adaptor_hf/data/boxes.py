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


def _as_boxes(boxes) -> np.ndarray:
    array = np.array(boxes, dtype=np.float64)
    if array.size == 0:
        return array.reshape(0, 4)
    if array.ndim != 2 or array.shape[1] != 4:
        raise ValueError(f"Boxes have shape (n, 4), got {array.shape}.")
    return array


__all__ = ["boxes_of", "group_boxes", "no_boxes", "usable_boxes", "xywh_to_xyxy", "xyxy_to_xywh"]
