"""Images that are nearly copies: encoded anew, resized, or shifted by a few per cent. Found on request."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from PIL import Image

MIN_CORRELATION = 0.99
"""
Pearson correlation of two aligned images from which on they are copies. Of two radiographs of one patient it is mostly
under 0.98 (docs/data.md).
"""

_SIDE = 64
_HASH_SIDE, _HASH_FACTOR = 16, 2
_WORKING_SIDE = 128
# Shares of the side. A hash bears a shift of 1 %: hashes of a window at these places bear every shift up to 5 %.
_SHIFTS = (-0.04, -0.02, 0.0, 0.02, 0.04)
_MAX_SHIFT = 0.05
_MAX_DISTANCE = 72  # of 256 bits; two different radiographs are at 128 +- 14
_LIKELY = 0.8
_BLOCK = 256


@dataclass
class ImageHashes:
    """
    What images are compared by.

    Attributes:
        centre: `(n, 4)` uint64, perceptual hash of the image's middle window, 256 bits.
        shifted: `(n, 25, 4)` uint64, the same of windows around it.
        small: `(n, 64, 64)` uint8, the grey image.
    """

    centre: np.ndarray
    shifted: np.ndarray
    small: np.ndarray

    def __len__(self) -> int:
        return len(self.centre)


def perceptual_hashes(images: Iterable[Image.Image]) -> ImageHashes:
    """
    Hashes of images, a few milliseconds each.

    Args:
        images: 8-bit grey pictures (PIL), any size, one after the other.

    Raises:
        ModuleNotFoundError: The package imagehash is not installed.
    """
    phash = _phash()
    centre, shifted, small = [], [], []
    for image in images:
        working = image.convert("L").resize((_WORKING_SIDE, _WORKING_SIDE), _lanczos())
        hashes = [phash(working.crop(box)) for box in _windows()]
        shifted.append(hashes)
        centre.append(hashes[len(hashes) // 2])
        small.append(np.asarray(image.convert("L").resize((_SIDE, _SIDE), _lanczos())))
    count = len(centre)
    return ImageHashes(
        np.array(centre, np.uint64).reshape(count, 4),
        np.array(shifted, np.uint64).reshape(count, len(_SHIFTS) ** 2, 4),
        np.array(small, np.uint8).reshape(count, _SIDE, _SIDE),
    )


def near_copies(hashes: ImageHashes, min_correlation: float = MIN_CORRELATION) -> list[tuple[int, int, float]]:
    """
    Pairs of images that are nearly copies: candidates by perceptual hash (`imagehash.phash`, Zauner 2010), confirmed by
    the correlation of the aligned small images. Time grows with the square of the number of images.

    Args:
        hashes: Of `perceptual_hashes`.
        min_correlation: From which on a pair is one.

    Returns:
        Places of both images, the lower first, and their correlation, in order.
    """
    if len(hashes) < 2:
        return []
    found = []
    for first, second in _candidates(hashes):
        likely = _peaks(hashes.small, first, second) >= _LIKELY
        for a, b in zip(first[likely], second[likely], strict=True):
            value = aligned_correlation(hashes.small[a], hashes.small[b])
            if value >= min_correlation:
                found.append((int(a), int(b), value))
    return sorted(found)


def aligned_correlation(first: np.ndarray, second: np.ndarray) -> float:
    """
    Pearson correlation of two grey images where they overlap after a shift of up to 5 % of the side; 0 if one is flat.

    Args:
        first, second: `(64, 64)` grey values.
    """
    from scipy.ndimage import shift as shifted_by
    from skimage.registration import phase_cross_correlation

    first, second = first.astype(np.float64), second.astype(np.float64)
    window = _window()
    shift, _, _ = phase_cross_correlation(
        (first - first.mean()) * window, (second - second.mean()) * window, upsample_factor=10, normalization=None
    )
    best = _correlation(first[1:-1, 1:-1], second[1:-1, 1:-1])
    if 0 < np.abs(shift).max() <= _MAX_SHIFT * _SIDE + 0.5:
        # One pixel more: the spline looks beyond the border.
        margin = int(np.ceil(np.abs(shift).max())) + 1
        inner = slice(margin, -margin)
        best = max(best, _correlation(first[inner, inner], shifted_by(second, shift, mode="nearest")[inner, inner]))
    return best


def _peaks(small: np.ndarray, first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """(m,) largest correlation of windowed pairs over whole-pixel shifts, by Fourier transform."""
    window, peaks = _window().astype(np.float32), [np.zeros(0)]
    for start in range(0, len(first), _BLOCK):
        spectra = []
        for places in (first[start : start + _BLOCK], second[start : start + _BLOCK]):
            values = small[places].astype(np.float32)
            values = (values - values.mean((1, 2), keepdims=True)) * window
            norms = np.sqrt((values**2).sum((1, 2), keepdims=True))
            spectra.append(np.fft.rfft2(values / np.maximum(norms, 1e-6)))
        peaks.append(np.fft.irfft2(spectra[0].conj() * spectra[1]).max((1, 2)))
    return np.concatenate(peaks)


def _candidates(hashes: ImageHashes) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Pairs whose hashes are close at some shift, a block of first images at a time."""
    for start in range(0, len(hashes), _BLOCK):
        stop = min(start + _BLOCK, len(hashes))
        rest = hashes.centre[start:]
        near = np.zeros((stop - start, len(rest)), bool)
        for place in range(hashes.shifted.shape[1]):
            differences = np.zeros(near.shape, np.uint16)
            for word in range(4):
                differences += np.bitwise_count(hashes.shifted[start:stop, place, word, None] ^ rest[None, :, word])
            near |= differences <= _MAX_DISTANCE
        first, second = np.nonzero(np.triu(near, 1))
        yield first + start, second + start


def _windows() -> list[tuple[int, int, int, int]]:
    margin = round(max(_SHIFTS) * _WORKING_SIDE)
    side = _WORKING_SIDE - 2 * margin
    starts = [margin + round(share * _WORKING_SIDE) for share in _SHIFTS]
    return [(left, top, left + side, top + side) for top in starts for left in starts]


def _phash():
    try:
        import imagehash
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "Near copies are looked for with the package imagehash: pip install 'adaptor-hf[duplicates]'."
        ) from error

    def hashed(image: Image.Image) -> np.ndarray:
        bits = imagehash.phash(image, _HASH_SIDE, _HASH_FACTOR).hash
        return np.packbits(bits).view(np.uint64)

    return hashed


def _lanczos():
    from PIL import Image

    return Image.Resampling.LANCZOS


def _window() -> np.ndarray:
    line = np.hanning(_SIDE + 2)[1:-1]
    return np.outer(line, line)


def _correlation(first: np.ndarray, second: np.ndarray) -> float:
    first, second = first - first.mean(), second - second.mean()
    norm = np.sqrt((first**2).sum() * (second**2).sum())
    return float((first * second).sum() / norm) if norm > 0 else 0.0


__all__ = ["MIN_CORRELATION", "ImageHashes", "aligned_correlation", "near_copies", "perceptual_hashes"]
