"""Small image operations on float32 arrays, NumPy and Pillow only."""

import numpy as np
from PIL import Image


def ramp(distance: np.ndarray, width: float) -> np.ndarray:
    """0 outside, 1 inside, linear over `width` around distance 0 (positive inside)."""
    return np.clip(distance * np.float32(1 / width) + np.float32(0.5), 0, 1)


def resize(field: np.ndarray, size: int, resample: Image.Resampling = Image.Resampling.BICUBIC) -> np.ndarray:
    """`field` as a square float32 array of side `size`."""
    image = Image.fromarray(np.ascontiguousarray(field, dtype=np.float32))
    return np.asarray(image.resize((size, size), resample))


def smooth_noise(rng: np.random.Generator, size: int, cells: int) -> np.ndarray:
    """Gaussian noise with about `cells` hills a side, standard deviation near 0.7; the same hills at every size."""
    return resize(rng.standard_normal((cells, cells), dtype=np.float32), size)


def wide_blur(field: np.ndarray, cells: int) -> np.ndarray:
    """A blur over about 1 / `cells` of the side, by way of a small image."""
    return resize(resize(field, cells, Image.Resampling.BOX), field.shape[0])


def soften(field: np.ndarray, weight: float) -> np.ndarray:
    """A blur by (weight, 1 - 2 weight, weight) along both axes; edges repeat."""
    centre = np.float32(1 - 2 * weight)
    side = np.float32(weight)
    for axis in (0, 1):
        padded = np.pad(field, [(1, 1) if a == axis else (0, 0) for a in (0, 1)], mode="edge")
        before, after = (padded[:-2], padded[2:]) if axis == 0 else (padded[:, :-2], padded[:, 2:])
        field = centre * field + side * (before + after)
    return field
