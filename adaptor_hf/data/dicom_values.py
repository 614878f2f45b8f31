"""Numbers, tables and lengths in a DICOM header, checked: an empty element is as absent, a faulty one is named."""

from __future__ import annotations

import logging
import math
import re
from collections import Counter
from typing import NamedTuple

import numpy as np

logger = logging.getLogger(__name__)

PIXELS = {"PixelData": "", "FloatPixelData": "Float", "DoubleFloatPixelData": "DoubleFloat"}
"""Elements that hold pixels, and how the names of the elements on their padding start."""

_FLOAT_BITS = {"FloatPixelData": 32, "DoubleFloatPixelData": 64}
_SMEAR, _ALMOST = 0.2, 0.05
_counts: Counter[str] = Counter()


def element(keyword: str) -> str:
    """An element for messages: keyword and tag."""
    from pydicom.datadict import tag_for_keyword
    from pydicom.tag import Tag

    return f"{keyword} {Tag(tag_for_keyword(keyword))}"


def number(dataset, keyword: str, name: str) -> float | None:
    """
    First number of an element, or None where it is absent or empty.

    Raises:
        ValueError: It holds no finite number. The message names file and element.
    """
    try:
        value = dataset.get(keyword)
        if hasattr(value, "__iter__") and not isinstance(value, (str, bytes)):
            value = next(iter(value), None)
        if value is None or value == "" or value == b"":
            return None
        found = float(value)
    except (ValueError, TypeError, OverflowError):
        found = math.nan
    if not math.isfinite(found):
        raise ValueError(f"{name}: {element(keyword)} holds no number. Expected one: export the file again.")
    return found


def whole(dataset, keyword: str, name: str, default: int) -> int:
    """As `number`, for whole numbers of at least 1; `default` where it is absent, empty or 0."""
    value = number(dataset, keyword, name)
    if value is not None and (value < 0 or value != int(value)):
        raise ValueError(f"{name}: {element(keyword)} is {value:g}, expected a whole number. Export the file again.")
    return int(value or default)


def modality(dataset, stored: np.ndarray, name: str) -> np.ndarray:
    """
    Stored values after the modality LUT, or rescale slope and intercept if the file has both, PS3.3 C.11.1.

    Raises:
        ValueError: A slope of 0, or one that is no number.
    """
    item = lut_item(dataset, "ModalityLUTSequence")
    if item is not None:
        return look_up(item, stored, dataset, name)[0]
    slope, intercept = number(dataset, "RescaleSlope", name), number(dataset, "RescaleIntercept", name)
    if slope == 0:
        raise ValueError(
            f"{name}: {element('RescaleSlope')} is 0, which makes all pixels equal. Expected another number: export "
            "the file again, or leave the row out."
        )
    return stored if slope is None or intercept is None else stored.astype(np.float64) * slope + intercept


def lut_item(dataset, keyword: str):
    """First item of a sequence of LUTs, or None where the sequence, its descriptor or its data is absent or empty."""
    sequence = dataset.get(keyword)
    item = sequence[0] if sequence else None
    return item if item is not None and item.get("LUTDescriptor") and item.get("LUTData") else None


def look_up(item, values: np.ndarray, dataset, name: str) -> tuple[np.ndarray, int]:
    """
    Values through a LUT, PS3.3 C.11.1.1 and C.11.2.1.1, and the bits of its output.

    Raises:
        ValueError: Descriptor and data do not agree.
    """
    descriptor, data = item.LUTDescriptor, item.LUTData
    try:
        entries, first, bits = (int(value) for value in descriptor)
    except (TypeError, ValueError):
        raise ValueError(f"{name}: {element('LUTDescriptor')} does not hold three whole numbers.") from None
    entries = entries or 1 << 16
    if isinstance(data, bytes):
        order = "<" if dataset.file_meta.TransferSyntaxUID.is_little_endian else ">"
        # Tables of 8 bits are written with one byte an entry, or two.
        wide = len(data) >= 2 * entries
        data = np.frombuffer(data[: len(data) // 2 * 2], f"{order}u2") if wide else np.frombuffer(data, np.uint8)
    table = np.atleast_1d(np.asarray(data, dtype=np.int64))[:entries]
    if len(table) < entries or not 8 <= bits <= 16:
        raise ValueError(
            f"{name}: {element('LUTData')} has {len(table)} entries, but {element('LUTDescriptor')} says {entries} of "
            f"{bits} bits (8 to 16 are read). Export the file again."
        )
    index = np.rint(values).astype(np.int64)
    # Written unsigned though the values are signed.
    first -= (1 << 16) if first >= 1 << 15 and index.min() < 0 else 0
    return table[np.clip(index - first, 0, entries - 1)], bits


def padding(dataset, stored: np.ndarray, keyword: str, name: str) -> np.ndarray | None:
    """Mask of padding pixels, PS3.3 C.7.5.1.1.2, or None when the file declares none or has none."""
    prefix = PIXELS[keyword]
    start = number(dataset, f"{prefix}PixelPaddingValue", name)
    if start is None:
        return None
    end = number(dataset, f"{prefix}PixelPaddingRangeLimit", name)
    low, high = sorted(_as_stored(value, dataset, stored) for value in (start, start if end is None else end))
    mask = (stored >= low) & (stored <= high)
    return mask if mask.any() else None


class Smear(NamedTuple):
    """Padding that lossy compression has spread over its neighbours, as masks of the picture's pixels."""

    padding: np.ndarray
    """Pixels of the padding value, or almost."""
    apart: np.ndarray
    """Pixels that are not beside padding: no smeared value is among them."""


def find_smear(dataset, stored: np.ndarray, keyword: str, name: str) -> Smear | None:
    """
    Padding that lossy compression has smeared so that it sets the minimum or the maximum, or None.

    It has where over `_SMEAR` of the range of values, towards the padding value, is only reached by pixels beside
    padding, or by those of almost its value.
    """
    from scipy.ndimage import maximum_filter

    start = number(dataset, f"{PIXELS[keyword]}PixelPaddingValue", name)
    if start is None or not _is_lossy(dataset):
        return None
    mask = padding(dataset, stored, keyword, name)
    inside = stored[~mask] if mask is not None else stored.ravel()
    if not inside.size:
        return None
    spread = float(inside.max()) - float(inside.min())
    start = _as_stored(start, dataset, stored)
    near = np.abs(stored - np.float32(start)) <= _ALMOST * spread
    if mask is not None:
        near |= mask
    # A block of JPEG has 8 pixels a side.
    apart = maximum_filter(near.astype(np.uint8), size=17) == 0
    rest = stored[apart]
    if not rest.size:
        return None
    low, high = float(rest.min()), float(rest.max())
    below, above = (low - float(inside.min()), start < low), (float(inside.max()) - high, start > high)
    smeared = any(side and reached > _SMEAR * spread for reached, side in (below, above))
    return Smear(near, apart) if smeared else None


def _is_lossy(dataset) -> bool:
    from pydicom import uid

    lossy = (uid.JPEGBaseline8Bit, uid.JPEGExtended12Bit, uid.JPEGLSNearLossless, uid.JPEG2000)
    return dataset.get("LossyImageCompression") == "01" or dataset.file_meta.TransferSyntaxUID in lossy


def _as_stored(value: float, dataset, stored: np.ndarray) -> float:
    """A padding value of the pixels' own sign: written unsigned for signed pixels, or the other way round, it wraps."""
    if stored.dtype.kind not in "iu":
        return value
    sizes = [int(dataset.BitsStored), int(dataset.BitsAllocated)]
    if stored.dtype.kind == "u":
        return value + (1 << sizes[1]) if value < 0 else value
    for bits in sizes:
        if 1 << (bits - 1) <= value < 1 << bits:
            return value - (1 << bits)
    return value


def pixel_bytes(rows: int, columns: int, samples: int, frames: int, bits: int, photometric: str | None) -> int:
    """
    Bytes of uncompressed pixels (PS3.5, 8.1.1; PS3.3, C.7.6.3.1.2), without the byte that makes them even.

    Args:
        bits: Allocated for each sample.
        photometric: In "YBR_FULL_422" two pixels share their colour: 4 samples for both.
    """
    values = rows * columns * samples * frames
    if photometric == "YBR_FULL_422" and samples == 3:
        values = values // 3 * 2
    return -(-values * bits // 8)


def check_length(dataset, keyword: str, name: str) -> None:
    """
    Whether the pixels' element holds one picture.

    Raises:
        ValueError: It holds less than one, or several that NumberOfFrames does not tell of.
    """
    data = dataset[keyword].value or b""
    if dataset.file_meta.TransferSyntaxUID.is_encapsulated:
        if (frames := _compressed_frames(data, dataset.file_meta.TransferSyntaxUID)) > 1:
            raise ValueError(
                f"{name}: {element(keyword)} holds {frames} compressed pictures, but {element('NumberOfFrames')} is 1 "
                "or absent: expected a single radiograph. Export the frame you want."
            )
        return
    samples = whole(dataset, "SamplesPerPixel", name, 1)
    bits = _FLOAT_BITS.get(keyword) or int(dataset.BitsAllocated)
    expected = pixel_bytes(int(dataset.Rows), int(dataset.Columns), samples, 1, bits, dataset.PhotometricInterpretation)
    found = f"{element(keyword)} has {len(data):,} bytes"
    shape = f"{dataset.Columns} x {dataset.Rows} pixels with {samples} of {bits} bits"
    if len(data) < expected:
        raise ValueError(
            f"{name}: {found}, expected {expected:,} for {shape}. The file is truncated or damaged: copy or download "
            "it again, or leave the row out."
        )
    if len(data) >= 2 * expected and len(data) > expected + 1:
        raise ValueError(
            f"{name}: {found}, {len(data) / expected:g} times the {expected:,} for {shape}, but "
            f"{element('NumberOfFrames')} is 1 or absent: these are several frames, or other bits a pixel than "
            f"{element('BitsAllocated')} says. Export the frame you want."
        )


def _compressed_frames(data: bytes, syntax) -> int:
    from pydicom.encaps import generate_fragments, parse_basic_offsets
    from pydicom.uid import RLELossless

    # A header of RLE is the number of its segments, and where they start: the first after these 64 bytes.
    starts = re.compile(rb"[\x01-\x0f]\0\0\0\x40\0\0\0" if syntax == RLELossless else rb"\xff\xd8|\xff\x4f\xff\x51")
    try:
        offsets = len(parse_basic_offsets(data))
        found = sum(starts.match(fragment) is not None for fragment in generate_fragments(data))
    except Exception:
        # Whatever damaged data raises, the decoder names.
        return 1
    # One picture may lie in several fragments, of which the first has its start.
    return max(offsets, found)


def say_count(message: str) -> None:
    """A warning with how often it held in this process, with {} for the count: at 1, 10, 100, ... times."""
    _counts[message] += 1
    count = _counts[message]
    if str(count).strip("0") == "1":
        logger.warning(message.format(f"{count:,}"))


__all__ = [
    "PIXELS", "Smear", "check_length", "element", "find_smear", "look_up", "lut_item", "modality", "number", "padding",
    "pixel_bytes", "say_count", "whole",
]  # fmt: skip
