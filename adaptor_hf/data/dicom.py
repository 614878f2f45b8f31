"""Decode one DICOM picture: rescale, window, polarity, and the refusals that keep wrong numbers out."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from typing import BinaryIO

import numpy as np

DICOM_SUFFIXES = (".dcm", ".dicom", ".dic", ".ima")
HEADER_BYTES = 132

# Files written without the 128-byte preamble start with one of these elements (PS3.5, PS3.10).
_FIRST_ELEMENTS = {0x0002: {0x0000, 0x0001, 0x0002, 0x0010}, 0x0008: {0x0000, 0x0001, 0x0005, 0x0008, 0x0016, 0x0018}}
_NEEDED = ("Rows", "Columns", "BitsAllocated", "PhotometricInterpretation")
_WHEELS = {
    "JPEG 2000": "pylibjpeg pylibjpeg-openjpeg",
    "JPEG": "pylibjpeg pylibjpeg-libjpeg",
    "RLE": "pylibjpeg pylibjpeg-rle",
}


def looks_like_dicom(head: bytes) -> bool:
    """Whether a file's first bytes are those of a DICOM file, with or without the preamble."""
    if head[128:132] == b"DICM":
        return True
    tags = [(int.from_bytes(head[0:2], order), int.from_bytes(head[2:4], order)) for order in ("little", "big")]
    return len(head) >= 8 and any(element in _FIRST_ELEMENTS.get(group, ()) for group, element in tags)


def is_deflated(head: bytes) -> bool:
    """Whether a file is of the deflated transfer syntax, by its first bytes: it may unpack to a thousandfold size."""
    if b"1.2.840.10008.1.2.1.99" not in head:
        return False
    from pydicom.filereader import read_dataset, read_preamble
    from pydicom.uid import DeflatedExplicitVRLittleEndian

    # Other elements may name it too, such as one that says what a server understands.
    stream = BytesIO(head)
    try:
        with quiet_pydicom():
            read_preamble(stream, force=True)
            meta = read_dataset(stream, False, True, stop_when=lambda tag, vr, length: tag >> 16 != 0x0002)
            return meta.get("TransferSyntaxUID") == DeflatedExplicitVRLittleEndian
    except Exception:
        return True


@contextmanager
def quiet_pydicom() -> Iterator[None]:
    """No warning and no log line of pydicom: both quote values of headers, which can be a patient's."""
    logger = logging.getLogger("pydicom")
    # Not its level: setting that clears what all loggers have cached, which takes as long as reading a header.
    before, logger.disabled = logger.disabled, True
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.disabled = before


class _WithinFile:
    """A stream that is asked for no more bytes than it has left: Python allocates all that is asked for."""

    def __init__(self, stream: BinaryIO):
        self._stream = stream
        self._end = stream.seek(0, 2)
        stream.seek(0)
        self.seek, self.tell = stream.seek, stream.tell

    def read(self, size: int = -1) -> bytes:
        left = max(self._end - self._stream.tell(), 0)
        return self._stream.read(left if size is None or size < 0 else min(size, left))


def read_dicom(stream: BinaryIO, name: str, *, voi_lut: bool, return_raw: bool, max_pixels: int) -> np.ndarray:
    """Decode a DICOM stream by the rules that `read_image` documents.

    Args:
        stream: Seekable, at its start.
        name: What messages call the file.
        max_pixels: Larger pictures are refused from the header.

    Returns:
        uint8 array (H, W) or (H, W, 3); with `return_raw` the values after the modality transform.

    Raises:
        ValueError, ImportError: As `read_image`, the message starting with `name`; a damaged file also raises whatever
            pydicom meets in it.
    """
    import pydicom

    stream = _checked(stream, name)
    with quiet_pydicom():
        header = pydicom.dcmread(stream, stop_before_pixels=True, force=True)
        _set_transfer_syntax(header)
        _check_header(header, name, max_pixels)
        stream.seek(0)
        dataset = pydicom.dcmread(stream, force=True)
        _set_transfer_syntax(dataset)
        if not any(keyword in dataset for keyword in ("PixelData", "FloatPixelData", "DoubleFloatPixelData")):
            raise ValueError(f"{name}: a DICOM object without pixel data. Leave the row out.")
        stored = dataset.pixel_array
        bits = dataset.BitsStored
        if dataset.PhotometricInterpretation == "PALETTE COLOR":
            from pydicom.pixels import apply_color_lut

            if "RedPaletteColorLookupTableDescriptor" not in dataset:
                raise ValueError(
                    f"{name}: a picture of PALETTE COLOR without the tables of its palette. Export it again."
                )
            stored = apply_color_lut(stored, dataset)
            bits = 8 * stored.dtype.itemsize
        if stored.ndim == 3:
            return stored if return_raw else _to_8_bit(stored.astype(np.float32), 0, 2**bits - 1)
        return _grey(dataset, stored, name, voi_lut, return_raw)


def dicom_size(stream: BinaryIO, name: str, *, max_pixels: int) -> tuple[int, int]:
    """Width and height in pixels from a DICOM stream's header. Raises as `read_dicom`."""
    import pydicom

    stream = _checked(stream, name)
    with quiet_pydicom():
        header = pydicom.dcmread(stream, stop_before_pixels=True, force=True)
        _set_transfer_syntax(header)
        _check_header(header, name, max_pixels)
        return int(header.Columns), int(header.Rows)


def _checked(stream: BinaryIO, name: str) -> _WithinFile:
    # The syntax stands in the first kilobyte; more is looked at, for files that were made to harm.
    if is_deflated(stream.read(1 << 20)):
        raise ValueError(f"{name}: the deflated transfer syntax is not read. Convert it to an uncompressed one.")
    return _WithinFile(stream)


def _grey(dataset, stored: np.ndarray, name: str, voi_lut: bool, return_raw: bool) -> np.ndarray:
    from pydicom.pixels import apply_modality_lut

    values = apply_modality_lut(stored, dataset).astype(np.float32)
    padding = _padding(dataset, stored)
    if not np.isfinite(values).all():
        raise ValueError(f"{name}: the pixel values have NaN or infinite numbers after the rescale. Export it again.")
    inverted = dataset.PhotometricInterpretation == "MONOCHROME1"
    inside = values if padding is None else values[~padding]
    low, high = (float(inside.min()), float(inside.max())) if inside.size else (0.0, 0.0)
    if return_raw:
        return low + high - values if inverted else values
    if voi_lut and "VOILUTSequence" in dataset:
        picture = _voi_lut(dataset, values)
    elif voi_lut and dataset.get("WindowCenter") not in (None, "") and dataset.get("WindowWidth") not in (None, ""):
        picture = _window(dataset, values, name)
    elif dataset.BitsStored == 8 and np.array_equal(values, stored) and low >= 0 and high <= 255:
        picture = stored.astype(np.uint8)
    else:
        picture = _to_8_bit(values, low, high)
    if inverted:
        picture = 255 - picture
    if padding is not None:
        picture[padding] = 0
    return picture


def _window(dataset, values: np.ndarray, name: str) -> np.ndarray:
    """First window of the file, PS3.3 C.11.2.1.2 and C.11.2.1.3."""
    center, width = (_first(dataset.get(keyword)) for keyword in ("WindowCenter", "WindowWidth"))
    function = str(dataset.get("VOILUTFunction") or "LINEAR").upper()
    if width < 1 if function == "LINEAR" else width <= 0:
        raise ValueError(f"{name}: WindowWidth {width} is not valid for {function}. Read it with voi_lut=False.")
    if function == "SIGMOID":
        return _to_8_bit(1 / (1 + np.exp(-4 * (values - center) / width)), 0, 1)
    if function == "LINEAR_EXACT":
        return _to_8_bit(values, center - width / 2, center + width / 2)
    if function != "LINEAR":
        raise ValueError(f"{name}: VOILUTFunction {function!r} is not known. Read it with voi_lut=False.")
    low = center - 0.5 - (width - 1) / 2
    return _to_8_bit(values, low, max(low + width - 1, np.nextafter(low, np.inf)))


def _voi_lut(dataset, values: np.ndarray) -> np.ndarray:
    from pydicom.pixels import apply_voi

    # A LUT's input is an integer index; a rescale that gives fractions rounds to the nearest entry.
    mapped = apply_voi(np.rint(values).astype(np.int64), dataset)
    bits = int(dataset.VOILUTSequence[0].LUTDescriptor[2])
    return _to_8_bit(mapped.astype(np.float32), 0, 2**bits - 1)


def _to_8_bit(values: np.ndarray, low: float, high: float) -> np.ndarray:
    """Map low..high to 0..255, clipping outside; a constant picture is black."""
    if high <= low:
        return np.zeros(values.shape, dtype=np.uint8)
    return np.rint(np.clip((values - low) / (high - low), 0, 1) * 255).astype(np.uint8)


def _padding(dataset, stored: np.ndarray) -> np.ndarray | None:
    """Mask of padding pixels (PS3.3 C.7.5.1.1.2), or None when the file declares none."""
    start = dataset.get("PixelPaddingValue")
    if start is None:
        return None
    end = dataset.get("PixelPaddingRangeLimit", start)
    mask = (stored >= min(start, end)) & (stored <= max(start, end))
    return mask if mask.any() else None


def _check_header(header, name: str, max_pixels: int) -> None:
    missing = [keyword for keyword in _NEEDED if header.get(keyword) in (None, "")]
    if missing:
        raise ValueError(
            f"{name}: not a DICOM picture (no {', '.join(missing)}). Reports, DICOMDIR and presentation states have no "
            "pixels: leave the row out."
        )
    frames = int(header.get("NumberOfFrames") or 1)
    if frames > 1:
        raise ValueError(f"{name}: has {frames} frames, expected a single radiograph. Export the frame you want.")
    if not header.Rows * header.Columns <= max_pixels:
        raise ValueError(
            f"{name}: {header.Columns} x {header.Rows} pixels is over the limit of {max_pixels:,}, too large to be a "
            "radiograph and a risk for memory."
        )
    photometric = header.PhotometricInterpretation
    single = ("MONOCHROME1", "MONOCHROME2", "PALETTE COLOR")
    colour = ("RGB", "YBR_FULL", "YBR_FULL_422", "YBR_ICT", "YBR_RCT")
    if photometric not in (single if header.get("SamplesPerPixel", 1) == 1 else colour):
        raise ValueError(
            f"{name}: PhotometricInterpretation {photometric!r} with {header.get('SamplesPerPixel', 1)} samples a "
            f"pixel is not read. Expected {', '.join(single + colour)}."
        )
    _check_decoder(header.file_meta.TransferSyntaxUID, int(header.get("BitsStored") or 0), name)


def has_decoder(syntax, bits: int = 8) -> bool:
    """Whether pixels of this transfer syntax (a pydicom UID), with `bits` stored of each, can be decoded here."""
    from pydicom.pixels import get_decoder
    from pydicom.uid import JPEGExtended12Bit

    if not syntax.is_encapsulated:
        return True
    try:
        decoder = get_decoder(syntax)
    except (NotImplementedError, ValueError):
        return False
    # Pillow decodes this syntax too, but 8 bits of it only.
    shallow = syntax == JPEGExtended12Bit and bits > 8 and set(decoder.available_plugins) <= {"pillow"}
    return decoder.is_available and not shallow


def _check_decoder(syntax, bits: int, name: str) -> None:
    from pydicom.pixels import get_decoder

    if not syntax.is_encapsulated:
        return
    try:
        get_decoder(syntax)
    except NotImplementedError:
        raise ValueError(f"{name}: transfer syntax {syntax.name} is not a still picture that can be read.") from None
    if not has_decoder(syntax, bits):
        wheel = next((wheel for word, wheel in _WHEELS.items() if word in syntax.name), "pylibjpeg[all]")
        raise ImportError(
            f"{name}: compressed as {syntax.name}, and no decoder for it is installed. Run `pip install {wheel}`."
        )


def _set_transfer_syntax(dataset) -> None:
    """Files without the meta header do not name their encoding; pydicom has worked it out while reading."""
    from pydicom import uid
    from pydicom.dataset import FileMetaDataset

    if not hasattr(dataset, "file_meta"):
        dataset.file_meta = FileMetaDataset()
    if "TransferSyntaxUID" not in dataset.file_meta:
        implicit, little = dataset.original_encoding
        explicit = uid.ExplicitVRLittleEndian if little else uid.ExplicitVRBigEndian
        dataset.file_meta.TransferSyntaxUID = uid.ImplicitVRLittleEndian if implicit else explicit


def _first(value) -> float:
    """First of a value that may be multi-valued."""
    return float(value[0] if hasattr(value, "__iter__") and not isinstance(value, str) else value)
