"""Read one radiograph from whatever it is stored in, by one defined path to 8-bit grey or RGB."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import BinaryIO, Literal

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from ..files import open_regular, printable
from .archives import MAX_FILE_BYTES, parse_member, read_member
from .dicom import DICOM_SUFFIXES, HEADER_BYTES, dicom_size, looks_like_dicom, read_dicom
from .image_formats import FORMAT_BYTES, READ, foreign_format
from .sixteen_bit import even_bits, layout, read_channels, tiff_kind
from .value_range import check_percentile, value_range

MAX_PIXELS = 80_000_000
"""Largest image that is decoded, in pixels; the header is checked before any pixel is. A mammogram has 30 million."""

_DEEP_MODES = ("I;16", "I;16L", "I;16B", "I;16N", "I", "F")
_LUMA = np.array([0.299, 0.587, 0.114], dtype=np.float32)


def read_image(
    source: str | os.PathLike | bytes | BinaryIO | Image.Image | np.ndarray,
    *,
    mode: Literal["L", "RGB"] = "L",
    min_size: int | None = None,
    voi_lut: bool = False,
    range_percentile: float = 0.0,
    return_raw: bool = False,
) -> Image.Image | np.ndarray:
    """Read a radiograph (or any picture) into 8-bit grey or RGB.

    How values become 8 bit:

    * 8-bit files keep their values. Alpha and transparent palette entries are composited on black. EXIF orientation is
      applied.
    * Deeper non-negative integers (16-bit PNG, TIFF, arrays; grey, colour or with alpha) are scaled, never clipped,
      from the smallest of 8, 10, 12, 14 or 16 bits that holds the image's maximum: 12-bit values in a 16-bit PNG do not
      come out black. White-is-zero TIFFs are inverted within these bits.
    * Other numbers (signed, 32-bit, float) are scaled from their own minimum and maximum to 0-255.
    * DICOM: stored values, then rescale slope and intercept (or the modality LUT). Unsigned 8-bit data without a
      rescale keep their values, as their PNG export does; everything else is scaled from the image's minimum and
      maximum, padding pixels aside. The window in the file is ignored unless `voi_lut=True`: it varies by vendor and by
      the operator, and no published system of this family applies it. MONOCHROME1 is inverted, so bright is dense.

    Args:
        source: Path of a file or of a member of an archive (`adaptor_hf.data.archives`), encoded bytes, binary file
            object, PIL image, or array of shape (H, W), (H, W, 1), (H, W, 3) or (H, W, 4).
        mode: "L" (grey) or "RGB".
        min_size: For a JPEG, decode at 1/2, 1/4 or 1/8 scale as long as the shorter side keeps at least this many
            pixels. Pass three times the size you will resize to. Other formats ignore it.
        voi_lut: Apply a DICOM file's VOI LUT or first window, if it has one. Other formats ignore it.
        range_percentile: What is scaled from its minimum and maximum is scaled from this percentile of its pixels to
            100 minus it, and clipped; 0.1 to 1 is usual, 0 is off. In DICOM files whose padding lossy compression has
            smeared over its neighbours these are left out first, which no percentile of all pixels does.
        return_raw: Return numbers instead of a picture, before any window and before scaling to 8 bit.

    Returns:
        An 8-bit PIL image of `mode`; or with `return_raw` a float32 array, (H, W) for "L" and (H, W, 3) for "RGB", in
        the file's own units (DICOM: after rescale, MONOCHROME1 mirrored within its own range so that bright is dense).

    Raises:
        FileNotFoundError: No such file.
        OSError: The file cannot be read (rights), or is none: a folder, a pipe, a device.
        ValueError: Empty, truncated or damaged file, not an image, more than `MAX_PIXELS` pixels, several frames or
            pages, a DICOM without a usable picture, NaN in an array. The message names the file.
        ImportError: A compressed DICOM whose decoder is not installed; the message names the wheel.
        TypeError: `source` is none of the above.
    """
    if mode not in ("L", "RGB"):
        raise ValueError(f'mode must be "L" or "RGB", got {mode!r}.')
    if min_size is not None and min_size < 1:
        raise ValueError(f"min_size must be at least 1 pixel, got {min_size}.")
    check_percentile(range_percentile)
    if isinstance(source, np.ndarray):
        picture = _check_array(source)
    elif isinstance(source, Image.Image):
        name = printable(getattr(source, "filename", "") or "PIL image")
        _check_pixels(source.size, name)
        with _damage_named(name):
            picture = _of_pil(source, name, mode, return_raw)
    else:
        shown = {"voi_lut": voi_lut, "range_percentile": range_percentile}
        with opened(source) as (stream, name), _damage_named(name):
            picture = _decode(stream, name, mode, min_size, shown, return_raw)
    if return_raw:
        return _with_channels(np.asarray(picture, dtype=np.float32), mode)
    if isinstance(picture, np.ndarray):
        picture = Image.fromarray(to_uint8(picture, range_percentile))
    return picture if picture.mode == mode else picture.convert(mode)


def image_size(source: str | os.PathLike | bytes | BinaryIO) -> tuple[int, int]:
    """Width and height in pixels of what `read_image` returns, from the file's header: no pixel is decoded.

    Raises:
        FileNotFoundError, OSError, ValueError: As `read_image`, as far as the header shows it.
    """
    with opened(source) as (stream, name), _damage_named(name):
        head = stream.read(HEADER_BYTES)
        stream.seek(0)
        if looks_like_dicom(head) or Path(name).suffix.lower() in DICOM_SUFFIXES:
            return dicom_size(stream, name, max_pixels=MAX_PIXELS)
        image = Image.open(stream)
        _check_pixels(image.size, name)
        # Orientations 5 to 8 are on their side.
        turned = image.getexif().get(Image.ExifTags.Base.Orientation, 1) in (5, 6, 7, 8)
        return image.size[::-1] if turned else image.size


def to_uint8(array: np.ndarray, range_percentile: float = 0.0) -> np.ndarray:
    """Scale an array of any number type to uint8 by the rules of `read_image`.

    Raises:
        ValueError: The array has NaN or infinite values.
    """
    if array.dtype == np.uint8:
        return array
    if array.dtype == bool:
        return array.astype(np.uint8) * 255
    low, high = array.min(), array.max()
    if np.issubdtype(array.dtype, np.integer) and low >= 0 and high <= 65535:
        top = 2 ** even_bits(high) - 1
        return np.rint(np.arange(int(high) + 1) * (255 / top)).astype(np.uint8)[array]
    if not (np.isfinite(low) and np.isfinite(high)):
        raise ValueError("The image array has NaN or infinite values: replace them before reading it as an image.")
    low, high = value_range(array, range_percentile)
    if high == low:
        return np.zeros(array.shape, dtype=np.uint8)
    scaled = (array.astype(np.float64) - low) * (255.0 / (high - low))
    return np.rint(np.clip(scaled, 0, 255)).astype(np.uint8)


def _decode(stream: BinaryIO, name: str, mode: str, min_size: int | None, shown: dict, raw: bool):
    """8-bit PIL image, or an array still to be scaled."""
    head = stream.read(HEADER_BYTES)
    stream.seek(0)
    if not head:
        raise ValueError(f"{name}: the file is empty (0 bytes). Copy or download it again, or leave the row out.")
    if looks_like_dicom(head):
        return read_dicom(stream, name, **shown, return_raw=raw, max_pixels=MAX_PIXELS)
    try:
        image = Image.open(stream)
    except UnidentifiedImageError:
        if Path(name).suffix.lower() in DICOM_SUFFIXES:
            stream.seek(0)
            return read_dicom(stream, name, **shown, return_raw=raw, max_pixels=MAX_PIXELS)
        if kind := tiff_kind(stream):
            raise ValueError(
                f"{name}: a TIFF of a kind that Pillow does not read ({kind}). Save it as 16-bit or 8-bit grey or RGB, "
                "all channels in one plane."
            ) from None
        stream.seek(0)
        if known := foreign_format(name, stream.read(FORMAT_BYTES)):
            raise ValueError(f"{name}: this is {known}. {READ} is read.") from None
        raise ValueError(
            f"{name}: not an image that can be read. Expected JPEG, PNG, TIFF or another format of Pillow, or DICOM. "
            "If it should be one, it is damaged: copy or download it again, or leave the row out."
        ) from None
    _check_pixels(image.size, name)
    frames = 1 if image.format == "MPO" else getattr(image, "n_frames", 1)
    if frames > 1:
        raise ValueError(f"{name}: has {frames} frames or pages, expected one picture. Export the one you want.")
    if min_size is not None and image.format == "JPEG":
        image.draft(mode, (min_size, min_size))
    if kind := layout(image):
        return _sixteen_bit(image, stream, kind, name, raw)
    image.load()
    return _flatten(image, mode)


def _of_pil(image: Image.Image, name: str, mode: str, raw: bool) -> Image.Image | np.ndarray:
    kind, stream = layout(image), getattr(image, "fp", None)
    # Once it is loaded, Pillow's upper 8 bits are all there is.
    if kind is None or stream is None:
        return _flatten(image, mode)
    position = stream.tell()
    try:
        return _sixteen_bit(image, stream, kind, name, raw)
    finally:
        stream.seek(position)


def _sixteen_bit(image: Image.Image, stream: BinaryIO, kind: str, name: str, raw: bool) -> np.ndarray:
    """Colour or alpha of 16 bits a channel: numbers still to be scaled, or with alpha the picture laid on black."""
    values, alpha = read_channels(stream, kind, name)
    clear = image.info.get("transparency")
    if isinstance(clear, tuple) and values.ndim == 3:
        values[(values == np.array(clear, dtype=values.dtype)).all(axis=2)] = 0
    if alpha is None:
        return values
    alpha = alpha if values.ndim == 2 else alpha[:, :, None]
    return values * alpha if raw else np.rint(to_uint8(values) * alpha).astype(np.uint8)


def _flatten(image: Image.Image, mode: str) -> Image.Image | np.ndarray:
    """Upright and without alpha: an 8-bit image of `mode`, or the array of a deeper one."""
    # Pillow inverts white-is-zero TIFFs (photometric 0) of 1 to 8 bits, but no deeper ones.
    white_is_zero = getattr(image, "tag_v2", {}).get(262) == 0
    clear = image.info.get("transparency")
    image = ImageOps.exif_transpose(image)
    if image.mode in _DEEP_MODES:
        values = np.asarray(image)
        if image.mode.startswith("I;16") and isinstance(clear, int):
            values = np.where(values == clear, 0, values)
        return _black_is_zero(values) if white_is_zero else values
    if image.has_transparency_data:
        picture = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", picture.size, (0, 0, 0, 255)), picture).convert("RGB")
    return image.convert(mode)


def _black_is_zero(values: np.ndarray) -> np.ndarray:
    """Inverted: unsigned integers within the bits that they use, other numbers within their own range."""
    if values.dtype.kind == "u":
        return (2 ** even_bits(values.max()) - 1 - values).astype(values.dtype)
    return values.min() + values.max() - values


def _check_array(array: np.ndarray) -> np.ndarray:
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[:, :, 0]
    if array.size == 0 or not (array.ndim == 2 or (array.ndim == 3 and array.shape[2] in (3, 4))):
        raise ValueError(f"An image array has shape (H, W), (H, W, 1), (H, W, 3) or (H, W, 4), got {array.shape}.")
    if not (array.dtype == bool or np.issubdtype(array.dtype, np.integer) or np.issubdtype(array.dtype, np.floating)):
        raise ValueError(f"An image array holds bool, integer or float values, got {array.dtype}.")
    _check_pixels(array.shape[1::-1], "image array")
    if array.ndim == 3 and array.shape[2] == 4:
        if array.dtype != np.uint8:
            raise ValueError(f"An image array with alpha must be uint8, got {array.dtype}: drop the alpha channel.")
        return np.asarray(_flatten(Image.fromarray(array), "RGB"))
    return array


def _with_channels(array: np.ndarray, mode: str) -> np.ndarray:
    if mode == "RGB" and array.ndim == 2:
        return np.repeat(array[:, :, None], 3, axis=2)
    if mode == "L" and array.ndim == 3:
        return array @ _LUMA
    return array


def _check_pixels(size: tuple[int, int], name: str) -> None:
    if size[0] * size[1] > MAX_PIXELS:
        raise ValueError(
            f"{name}: {size[0]} x {size[1]} pixels is over the limit of {MAX_PIXELS:,}, too large for a radiograph and "
            "a risk for memory. Make it smaller, or raise adaptor_hf.data.images.MAX_PIXELS if you trust the file."
        )


@contextmanager
def opened(source) -> Iterator[tuple[BinaryIO, str]]:
    """A seekable stream and a name for messages."""
    if isinstance(source, (bytes, bytearray, memoryview)):
        yield BytesIO(source), "image bytes"
    elif isinstance(source, (str, os.PathLike)):
        name = os.fspath(source)
        member = parse_member(name) if isinstance(name, str) else None
        if member is not None:
            yield BytesIO(read_member(member)), printable(f"{member.archive}::{member.name}")
            return
        try:
            stream = open_regular(name, MAX_FILE_BYTES)
        except FileNotFoundError:
            raise FileNotFoundError(
                f"{printable(name)}: no such image file. Check the image column and the image root, or leave the row "
                "out."
            ) from None
        with stream:
            yield stream, printable(name)
    elif hasattr(source, "read"):
        name = printable(str(getattr(source, "name", "image stream")))
        if hasattr(source, "seekable") and source.seekable():
            source.seek(0)
            yield source, name
        else:
            yield BytesIO(source.read()), name
    else:
        raise TypeError(
            f"Cannot read an image from {type(source).__name__}: pass a path, bytes, a binary file, a PIL image or an "
            "array."
        )


@contextmanager
def _damage_named(name: str) -> Iterator[None]:
    """Decoders meet damaged files with every kind of exception: make each one a ValueError that names the file."""
    try:
        yield
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise ValueError(
            f"{name}: over the limit of {MAX_PIXELS:,} pixels, too large to be a radiograph and a risk for memory."
        ) from None
    except Exception as error:
        if str(error).startswith(f"{name}: "):
            raise
        if isinstance(error, OSError) and error.errno is not None:
            raise OSError(error.errno, f"{name}: {error.strerror}") from error
        reason = (str(error).strip().splitlines() or ["no reason given"])[0][:200]
        raise ValueError(
            f"{name}: cannot be decoded ({type(error).__name__}: {reason}). The file is truncated or damaged: copy or "
            "download it again, or leave the row out."
        ) from error
