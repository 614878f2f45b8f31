"""Decode one DICOM picture: rescale, window, polarity, and the refusals that keep wrong numbers out."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from typing import BinaryIO

import numpy as np

from .deflated import DeflatedError, unpacked
from .dicom_values import (
    PIXELS,
    check_length,
    element,
    find_smear,
    look_up,
    lut_item,
    modality,
    number,
    padding,
    say_count,
    whole,
)
from .sixteen_bit import even_bits
from .value_range import value_range

DICOM_SUFFIXES = (".dcm", ".dicom", ".dic", ".ima")
HEADER_BYTES = 132
MAX_READS = 300_000
"""Most pieces that pydicom reads of a file, three an element: a radiograph has some hundred elements."""

# Files written without the 128-byte preamble start with one of these elements (PS3.5, PS3.10).
_FIRST_ELEMENTS = {0x0002: {0x0000, 0x0001, 0x0002, 0x0010}, 0x0008: {0x0000, 0x0001, 0x0005, 0x0008, 0x0016, 0x0018}}
_NEEDED = ("Rows", "Columns", "BitsAllocated", "PhotometricInterpretation")
_WHEELS = {
    "JPEG 2000": "pylibjpeg pylibjpeg-openjpeg",
    "JPEG": "pylibjpeg pylibjpeg-libjpeg",
    "RLE": "pylibjpeg pylibjpeg-rle",
}
_UNPACKERS = {"JPEG-LS": "dcmdjpls", "JPEG 2000": "", "JPEG": "dcmdjpeg", "RLE": "dcmdrle"}


def looks_like_dicom(head: bytes) -> bool:
    """Whether a file's first bytes are those of a DICOM file, with or without the preamble."""
    if head[128:132] == b"DICM":
        return True
    tags = [(int.from_bytes(head[0:2], order), int.from_bytes(head[2:4], order)) for order in ("little", "big")]
    return len(head) >= 8 and any(element in _FIRST_ELEMENTS.get(group, ()) for group, element in tags)


def is_deflated(head: bytes) -> bool:
    """Whether a file is of the deflated transfer syntax, by its first bytes: pydicom unpacks it without a bound."""
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
        # A damaged header that names it: the safe side is not to unpack it.
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


class WithinFile:
    """
    A stream that is asked for no more bytes than it has left, for Python allocates all that is asked for; and only
    `MAX_READS` times, for a megabyte of zeros is a hundred thousand elements.
    """

    def __init__(self, stream: BinaryIO):
        self._stream = stream
        self._reads = 0
        self._end = stream.seek(0, 2)
        stream.seek(0)
        self.seek, self.tell = stream.seek, stream.tell

    def read(self, size: int = -1) -> bytes:
        self._reads += 1
        if self._reads > MAX_READS:
            raise ValueError(f"over {MAX_READS // 3:,} elements, more than the header of a single picture has")
        left = max(self._end - self._stream.tell(), 0)
        return self._stream.read(left if size is None or size < 0 else min(size, left))


def read_dicom(
    stream: BinaryIO, name: str, *, voi_lut: bool, range_percentile: float, return_raw: bool, max_pixels: int
) -> np.ndarray:
    """Decode a DICOM stream by the rules that `read_image` documents.

    Args:
        stream: Seekable, at its start.
        name: What messages call the file.
        voi_lut, range_percentile, return_raw: As in `read_image`.
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
        keyword = next((keyword for keyword in PIXELS if keyword in dataset), None)
        if keyword is None:
            raise ValueError(f"{name}: a DICOM object without pixel data. Leave the row out.")
        if keyword == "PixelData" and not whole(dataset, "BitsStored", name, 0):
            raise ValueError(f"{name}: no {element('BitsStored')}, which pixels need. Export the file again.")
        check_length(dataset, keyword, name)
        stored = _decoded(dataset, name)
        if dataset.PhotometricInterpretation == "PALETTE COLOR":
            from pydicom.pixels import apply_color_lut

            if "RedPaletteColorLookupTableDescriptor" not in dataset:
                raise ValueError(
                    f"{name}: a picture of PALETTE COLOR without the tables of its palette. Export it again."
                )
            stored = apply_color_lut(stored, dataset)
            bits = 8 * stored.dtype.itemsize
        else:
            bits = int(dataset.get("BitsStored") or 0)
        if stored.ndim == 3:
            # Files say 16 bits and use 12.
            bits = min(bits, even_bits(stored.max()))
            return stored if return_raw else _to_8_bit(stored.astype(np.float32), 0, 2**bits - 1)
        if return_raw:
            return _grey_values(dataset, stored, keyword, name)
        return _grey(dataset, stored, keyword, name, voi_lut, range_percentile)


def _decoded(dataset, name: str) -> np.ndarray:
    try:
        return dataset.pixel_array
    except RuntimeError as error:
        # What each decoder says stands in the lines after the first.
        reasons = "; ".join(line.strip() for line in str(error).splitlines()[1:] if line.strip()) or str(error)
        syntax = dataset.file_meta.TransferSyntaxUID
        raise ValueError(
            f"{name}: compressed as {syntax.name}, and no installed decoder reads it ({reasons[:300]}). If a viewer "
            f"shows it, {_way_out(syntax)}; if not, it is damaged: copy or download it again, or leave the row out."
        ) from error


def _way_out(syntax) -> str:
    tool = next((tool for word, tool in _UNPACKERS.items() if word in syntax.name), "")
    dcmtk = f"`{tool} IN OUT` of dcmtk or " if tool else ""
    return f"make an uncompressed file of it with {dcmtk}`gdcmconv --raw IN OUT` of gdcm"


def dicom_size(stream: BinaryIO, name: str, *, max_pixels: int) -> tuple[int, int]:
    """Width and height in pixels from a DICOM stream's header. Raises as `read_dicom`."""
    import pydicom

    stream = _checked(stream, name)
    with quiet_pydicom():
        header = pydicom.dcmread(stream, stop_before_pixels=True, force=True)
        _set_transfer_syntax(header)
        _check_header(header, name, max_pixels)
        return int(header.Columns), int(header.Rows)


def is_grey_dicom(stream: BinaryIO) -> bool:
    """Whether a DICOM stream's header says that it is grey; False too where it cannot be read."""
    import pydicom

    try:
        with quiet_pydicom():
            header = pydicom.dcmread(_checked(stream, ""), stop_before_pixels=True, force=True)
            return str(header.get("PhotometricInterpretation", "")).startswith("MONOCHROME")
    except Exception:
        # Whatever a damaged file raises, `read_image` names it.
        return False
    finally:
        stream.seek(0)


def _checked(stream: BinaryIO, name: str) -> WithinFile:
    # The syntax stands in the first kilobyte; more is looked at, for files that were made to harm.
    if not is_deflated(stream.read(1 << 20)):
        return WithinFile(stream)
    try:
        with quiet_pydicom():
            return WithinFile(BytesIO(unpacked(stream)[0]))
    except DeflatedError as error:
        advice = (
            "If it is a radiograph all the same, make an uncompressed file of it with `dcmconv +te IN OUT` of dcmtk."
            if error.large
            else "Copy or download it again, or leave the row out."
        )
        raise ValueError(f"{name}: of the deflated transfer syntax, with {error}. {advice}") from None


def _grey_values(dataset, stored: np.ndarray, keyword: str, name: str) -> np.ndarray:
    """Bright is dense: values of MONOCHROME1 mirrored within their own range, padding aside."""
    values = _modality(dataset, stored, name)
    if dataset.PhotometricInterpretation != "MONOCHROME1":
        return values
    outside = padding(dataset, stored, keyword, name)
    low, high = value_range(values if outside is None else values[~outside])
    return low + high - values


def _grey(dataset, stored: np.ndarray, keyword: str, name: str, voi_lut: bool, range_percentile: float) -> np.ndarray:
    values = _modality(dataset, stored, name)
    outside = padding(dataset, stored, keyword, name)
    picture = _displayed(dataset, values, name) if voi_lut else None
    if picture is None:
        inside = values if outside is None else values[~outside]
        low, high = value_range(inside)
        if dataset.get("BitsStored") == 8 and np.array_equal(values, stored) and low >= 0 and high <= 255:
            picture = stored.astype(np.uint8)
        else:
            smear = find_smear(dataset, stored, keyword, name)
            if smear is not None and range_percentile:
                inside, outside = values[smear.apart], smear.padding
            if range_percentile:
                low, high = value_range(inside, range_percentile)
            elif smear is not None:
                say_count(
                    f"{{}} DICOM files so far have padding ({element('PixelPaddingValue')}) that lossy compression has "
                    "smeared: it sets their minimum or maximum, and they have less contrast than they should. Take "
                    "files without loss where you can, range_percentile=0.1, or voi_lut=True where they have a window."
                )
            picture = _to_8_bit(values, low, high)
    if dataset.PhotometricInterpretation == "MONOCHROME1":
        picture = 255 - picture
    if outside is not None:
        picture[outside] = 0
    return picture


def _modality(dataset, stored: np.ndarray, name: str) -> np.ndarray:
    values = modality(dataset, stored, name).astype(np.float32)
    if not np.isfinite(values).all():
        raise ValueError(f"{name}: the pixel values have NaN or infinite numbers after the rescale. Export it again.")
    return values


def _displayed(dataset, values: np.ndarray, name: str) -> np.ndarray | None:
    """By the VOI LUT, else by the first window; None where the file has neither. PS3.3 C.11.2."""
    item = lut_item(dataset, "VOILUTSequence")
    if item is not None:
        mapped, bits = look_up(item, values, dataset, name)
        return _to_8_bit(mapped.astype(np.float32), 0, 2**bits - 1)
    center, width = (number(dataset, keyword, name) for keyword in ("WindowCenter", "WindowWidth"))
    if center is None or width is None:
        return None
    function = str(dataset.get("VOILUTFunction") or "LINEAR").upper()
    if function not in ("LINEAR", "LINEAR_EXACT", "SIGMOID"):
        raise ValueError(
            f"{name}: {element('VOILUTFunction')} is none of LINEAR, LINEAR_EXACT, SIGMOID. Read it with voi_lut=False."
        )
    if width < 1 if function == "LINEAR" else width <= 0:
        say_count(
            f"{{}} DICOM files so far have a {element('WindowWidth')} that is too small to be a window (0, as a rule): "
            "they are read as files without a window, from minimum to maximum."
        )
        return None
    if function == "SIGMOID":
        return _to_8_bit(1 / (1 + np.exp(-4 * (values - center) / width)), 0, 1)
    if function == "LINEAR_EXACT":
        return _to_8_bit(values, center - width / 2, center + width / 2)
    low = center - 0.5 - (width - 1) / 2
    return _to_8_bit(values, low, max(low + width - 1, np.nextafter(low, np.inf)))


def _to_8_bit(values: np.ndarray, low: float, high: float) -> np.ndarray:
    """Map low..high to 0..255, clipping outside; a constant picture is black."""
    if high <= low:
        return np.zeros(values.shape, dtype=np.uint8)
    return np.rint(np.clip((values - low) / (high - low), 0, 1) * 255).astype(np.uint8)


def _check_header(header, name: str, max_pixels: int) -> None:
    sizes = {keyword: whole(header, keyword, name, 0) for keyword in ("Rows", "Columns", "BitsAllocated")}
    missing = [keyword for keyword in _NEEDED if not (sizes.get(keyword) or header.get(keyword))]
    if missing:
        raise ValueError(
            f"{name}: not a DICOM picture (no {', '.join(missing)}). Reports, DICOMDIR and presentation states have no "
            "pixels: leave the row out."
        )
    frames = whole(header, "NumberOfFrames", name, 1)
    if frames > 1:
        raise ValueError(f"{name}: has {frames} frames, expected a single radiograph. Export the frame you want.")
    if not sizes["Rows"] * sizes["Columns"] <= max_pixels:
        raise ValueError(
            f"{name}: {sizes['Columns']} x {sizes['Rows']} pixels is over the limit of {max_pixels:,}, too large to be "
            "a radiograph and a risk for memory."
        )
    photometric, samples = header.PhotometricInterpretation, whole(header, "SamplesPerPixel", name, 1)
    single = ("MONOCHROME1", "MONOCHROME2", "PALETTE COLOR")
    colour = ("RGB", "YBR_FULL", "YBR_FULL_422", "YBR_ICT", "YBR_RCT")
    if photometric not in (single if samples == 1 else colour):
        raise ValueError(
            f"{name}: PhotometricInterpretation {photometric!r} with {samples} samples a pixel "
            f"is not read. Expected {', '.join(single + colour)}."
        )
    _check_decoder(header.file_meta.TransferSyntaxUID, whole(header, "BitsStored", name, 0), name)


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
            f"{name}: compressed as {syntax.name}, and no decoder for it is installed. Run `pip install {wheel}`; "
            f"or {_way_out(syntax)}."
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
