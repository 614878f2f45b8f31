"""Masks from numbers: SIIM's run lengths, and filled rectangles, ellipses and polygons.

A pixel is inside a shape if its centre is, so a box of whole numbers is `mask[y1:y2, x1:x2]`, as MGCA fills it.
"""

from __future__ import annotations

import numpy as np

SHAPES = ("rectangle", "ellipse", "polygon")


def decode_rle(runs: str, width: int, height: int) -> np.ndarray:
    """
    Mask of SIIM-ACR run lengths.

    Pairs "start length" in column-major order: down the first column, then the next one. Each start counts from the
    end of the run before it, and the first from 0. (Kaggle's other run lengths are absolute and count from 1.)

    Args:
        runs: Whole numbers, separated by blanks. "-1" and an empty text are an empty mask.

    Returns:
        bool array (height, width).

    Raises:
        ValueError: Not whole numbers, an odd count of them, a negative one, or a run that ends outside the image.
    """
    starts, ends = parse_rle(runs)
    if len(ends) and ends[-1] > width * height:
        raise ValueError(
            f"run lengths end at pixel {ends[-1]}, but an image of {width} x {height} has {width * height}. Are they "
            "relative starts, for this image size?"
        )
    edges = np.zeros(width * height + 1, dtype=np.int8)
    np.add.at(edges, starts, 1)
    np.add.at(edges, ends, -1)
    return np.cumsum(edges[:-1], dtype=np.int8).astype(bool).reshape(width, height).T


def parse_rle(runs: str) -> tuple[np.ndarray, np.ndarray]:
    """Absolute first pixel and end (exclusive) of each run of SIIM run lengths, int64. Raises as `decode_rle`."""
    words = runs.split()
    if words in ([], ["-1"]):
        return np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64)
    try:
        numbers = np.array([int(word) for word in words], dtype=np.int64)
    except (ValueError, OverflowError):
        raise ValueError(f"run lengths are whole numbers, found {runs[:40]!r}.") from None
    if len(numbers) % 2 or (numbers < 0).any():
        raise ValueError(
            f"run lengths are pairs of start and length, none negative, found {len(numbers)} numbers from "
            f"{numbers.min()} on, {runs[:40]!r}."
        )
    ends = np.cumsum(numbers)[1::2]
    return ends - numbers[1::2], ends


def encode_rle(mask: np.ndarray) -> str:
    """SIIM run lengths of a mask (H, W), as a submission has them; "-1" for an empty one. Inverse of `decode_rle`."""
    flat = np.concatenate([[False], np.asarray(mask, dtype=bool).T.ravel(), [False]])
    edges = np.flatnonzero(flat[1:] != flat[:-1])
    if len(edges) == 0:
        return "-1"
    return " ".join(map(str, np.diff(edges, prepend=0)))


def parse_shape(text: str) -> tuple[str, np.ndarray]:
    """
    Kind and coordinates of a shape written by `adaptor_hf.data.masks.format_shape`.

    Returns:
        "rectangle", "ellipse" or "polygon", and a float64 array (n, 2) of its points (x, y): of a rectangle or an
        ellipse the two corners of its bounding box.

    Raises:
        ValueError: An unknown kind, coordinates that are no finite numbers, or too few or too many of them.
    """
    kind, *words = text.split() or [""]
    try:
        points = np.array([float(word) for word in words], dtype=np.float64)
    except ValueError:
        raise ValueError(f"coordinates of a shape are numbers, found {text[:60]!r}.") from None
    enough = len(points) >= 6 and len(points) % 2 == 0 if kind == "polygon" else len(points) == 4
    if kind not in SHAPES or not enough or not np.isfinite(points).all():
        raise ValueError(
            f"a shape is 'rectangle x1 y1 x2 y2', 'ellipse x1 y1 x2 y2' or 'polygon x1 y1 x2 y2 x3 y3 ...', found "
            f"{text[:60]!r}."
        )
    return kind, points.reshape(-1, 2)


def shape_box(points: np.ndarray) -> np.ndarray:
    """Bounding box (4,), xyxy, of a shape's points (n, 2)."""
    return np.concatenate([points.min(axis=0), points.max(axis=0)])


def draw_shape(inside: np.ndarray, text: str) -> None:
    """
    Fill a shape in a bool mask (H, W), in place; what lies outside the mask is cut off.

    A polygon is closed by itself, and where its outline crosses itself it is filled by the even-odd rule.

    Raises:
        ValueError: as `parse_shape`.
    """
    kind, points = parse_shape(text)
    height, width = inside.shape
    left, top, right, bottom = shape_box(points)
    columns = slice(_first_centre(left, width), _first_centre(right, width))
    rows = slice(_first_centre(top, height), _first_centre(bottom, height))
    window = inside[rows, columns]
    if window.size == 0:
        return
    if kind == "rectangle":
        window[...] = True
        return
    y, x = np.arange(rows.start, rows.stop) + 0.5, np.arange(columns.start, columns.stop) + 0.5
    if kind == "ellipse":
        across = (x - (left + right) / 2) / ((right - left) / 2)
        down = (y - (top + bottom) / 2) / ((bottom - top) / 2)
        window |= across**2 + down[:, None] ** 2 <= 1
    else:
        window |= _polygon(points, x, y)


def _polygon(points: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Even-odd fill: each edge flips, on the rows that it crosses, all pixels from the crossing to the right."""
    flips = np.zeros((len(y), len(x) + 1), dtype=bool)
    for (x1, y1), (x2, y2) in zip(points, np.roll(points, -1, axis=0), strict=True):
        if y1 == y2:
            continue
        rows = np.flatnonzero((y >= min(y1, y2)) & (y < max(y1, y2)))
        crossing = x1 + (y[rows] - y1) * (x2 - x1) / (y2 - y1)
        flips[rows, np.searchsorted(x, crossing)] ^= True
    return np.logical_xor.accumulate(flips, axis=1)[:, :-1]


def _first_centre(edge: float, length: int) -> int:
    """First pixel whose centre is at or behind an edge, within 0..length."""
    return int(np.clip(np.ceil(edge - 0.5), 0, length))


__all__ = ["decode_rle", "draw_shape", "encode_rle", "parse_rle", "parse_shape", "shape_box"]
