"""All 16 bits of each channel of a picture in colour or with alpha: Pillow itself keeps the upper 8."""

from __future__ import annotations

import re
import sys
from typing import BinaryIO

import numpy as np
from PIL import Image, ImageOps, TiffImagePlugin

_WIDE = re.compile(r"(L|LA|RGB|RGBA|RGBa|RGBX|CMYK);16[BLN]")
_SPLIT = ("RGB", "RGBA", "RGBa", "RGBX")
_TIFF_TAGS = {
    "BitsPerSample": 258,
    "PhotometricInterpretation": 262,
    "SamplesPerPixel": 277,
    "PlanarConfiguration": 284,
    "ExtraSamples": 338,
    "SampleFormat": 339,
}


def even_bits(high: int) -> int:
    """Smallest of 8, 10, 12, 14, 16, ... bits that holds a value."""
    bits = int(high).bit_length()
    return max(8, bits + bits % 2)


def layout(image: Image.Image) -> str | None:
    """What Pillow calls the layout of a file's pixels, if they have 16 bits a channel and it keeps the upper 8."""
    if not getattr(image, "tile", None) or image.mode.startswith(("I", "F")):
        return None
    codec, args = image.tile[0].codec_name, image.tile[0].args
    wide = _WIDE.fullmatch(str(args if isinstance(args, str) else (args or ("",))[0]))
    return wide[0] if wide else ("SGI16" if codec == "SGI16" else None)


def read_channels(stream: BinaryIO, kind: str, name: str) -> tuple[np.ndarray, np.ndarray | None]:
    """
    Values and alpha of such a file, upright.

    Args:
        stream: Seekable.
        kind: What `layout` said.
        name: What messages call the file.

    Returns:
        Values, uint16 (H, W) or (H, W, 3), and alpha, float32 0..1 of shape (H, W), or None.

    Raises:
        ValueError: A layout of which the lower bits cannot be had, and the upper 8 would come out dark.
    """
    model, _, order = kind.partition(";")
    if model == "LA":
        # A pixel is two numbers of two bytes, upper byte first: read as four channels they are all there.
        pixels = np.asarray(_loaded(stream, "RGBA", "RGBA")).astype(np.uint16)
        values, alpha = pixels[:, :, 0] * 256 + pixels[:, :, 1], pixels[:, :, 2] * 256 + pixels[:, :, 3]
        return values, _share(alpha)
    if model not in _SPLIT:
        upper = np.asarray(_loaded(stream, None, None))
        if upper.max() < 64:
            raise ValueError(
                f"{name}: 16 bits a channel in a layout ({kind}) of which Pillow reads the upper 8, and the values use "
                "14 or fewer: the picture would come out dark. Save it as PNG or TIFF, grey or RGB."
            )
        return upper.astype(np.uint16) * 257, None
    # Read with the bytes of each number swapped, the "upper 8" are the lower ones.
    mode, source = ("RGBA", "RGBA") if model in ("RGBA", "RGBa") else ("RGB", model)
    native = "L" if sys.byteorder == "little" else "B"
    own = order[2:].replace("N", native)
    upper, lower = (
        np.asarray(_loaded(stream, mode, f"{source};16{byte}")).astype(np.uint16)
        for byte in (own, {"L": "B", "B": "L"}[own])
    )
    pixels = upper * 256 + lower
    # Premultiplied values are laid on black already.
    alpha = _share(pixels[:, :, 3]) if model == "RGBA" else None
    return pixels[:, :, :3], alpha


def tiff_kind(stream: BinaryIO) -> str | None:
    """A TIFF file's tags on its pixels, in words, or None where it is no TIFF whose directory can be read."""
    try:
        stream.seek(0)
        directory = TiffImagePlugin.ImageFileDirectory_v2(stream.read(8))
        stream.seek(directory.next)
        directory.load(stream)
        found = {word: str(directory[tag])[:40] for word, tag in _TIFF_TAGS.items() if tag in directory}
    except Exception:
        # Only the words of an error are made here: whatever a damaged directory raises, the error itself stays.
        return None
    return ", ".join(f"{word} {value}" for word, value in found.items()) or None


def _loaded(stream: BinaryIO, mode: str | None, rawmode: str | None) -> Image.Image:
    """The file, decoded as if its pixels were of another layout of the same number of bits."""
    stream.seek(0)
    image = Image.open(stream)
    if rawmode is not None:
        image._mode = mode
        image.tile = [
            tile._replace(args=rawmode if isinstance(tile.args, str) else (rawmode, *tile.args[1:]))
            for tile in image.tile
        ]
    image.load()
    return ImageOps.exif_transpose(image)


def _share(alpha: np.ndarray) -> np.ndarray:
    """Opacity 0..1; an alpha channel of 12 bits is full at 4095."""
    return alpha.astype(np.float32) / (2 ** even_bits(alpha.max()) - 1)


__all__ = ["even_bits", "layout", "read_channels", "tiff_kind"]
