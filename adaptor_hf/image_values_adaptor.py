"""What an image may be, and its values: Pillow images of 8 bits, arrays and tensors, checked and as Pillow planes.

This file is flat on purpose: it is copied beside a checkpoint as remote code.
"""

import base64
import os
import re
from importlib import import_module
from importlib.util import find_spec
from io import BytesIO

import numpy as np
import torch
from huggingface_hub import get_session
from PIL import Image, ImageOps, UnidentifiedImageError
from transformers.image_utils import ChannelDimension, infer_channel_dimension_format
from transformers.utils import logging

from .regular_files_adaptor import check_regular, open_regular

logger = logging.get_logger(__name__)

EIGHT_BIT_MODES = ("1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr", "HSV", "LAB")
READ_FIRST = "pass its path, or adaptor_hf.data.images.read_image(path), which gives the 8-bit image of the training"


def open_images(images, image_mode: str | None, voi_lut: bool | None = False, range_percentile: float | None = 0.0):
    """Paths, members of archives and URLs (http, https, data) as pictures, in lists too; everything else as it is.

    Args:
        image_mode: "L" or "RGB": read as the model was trained. None: 8-bit files as Pillow gives them, others by
            `read_image` in colour.
        voi_lut: DICOM files are read as displayed.
        range_percentile: deep files are scaled from this percentile, see `read_image`.

    Raises:
        ValueError: it cannot be read, or only by the package adaptor_hf, which is not installed.
        OSError: no such file, or a pipe, a device or a folder.
    """
    if isinstance(images, list | tuple):
        return [open_images(image, image_mode, voi_lut, range_percentile) for image in images]
    if not isinstance(images, str | os.PathLike):
        return images
    source = _content(os.fspath(images))
    read_image = import_module("adaptor_hf.data.images").read_image if find_spec("adaptor_hf") else None
    # An older package knows no percentile.
    options = {"voi_lut": bool(voi_lut)} | ({"range_percentile": range_percentile} if range_percentile else {})
    if read_image is not None and image_mode is not None:
        return read_image(source, mode=image_mode, **options)
    if read_image is None and not isinstance(source, bytes):
        check_regular(source)
    try:
        with BytesIO(source) if isinstance(source, bytes) else open_regular(source) as file, Image.open(file) as image:
            if not is_deep(image):
                image.load()
                return image
    except (OSError, ValueError) as error:
        # `read_image` knows more kinds of files, and says what is wrong with them.
        if read_image is None and isinstance(error, OSError) and error.errno is not None:
            raise
    if read_image is None:
        raise ValueError(
            "an image is DICOM, has more than 8 bits a channel, or cannot be read: install the package adaptor_hf, "
            "with which files are read as in the training of the model, or pass an 8-bit image."
        )
    return read_image(source, mode="RGB", **options)


def is_deep(image: Image.Image) -> bool:
    """Whether a Pillow image has more than 8 bits a channel, or is not loaded yet and would lose the lower ones."""
    rawmodes = [args if isinstance(args, str) else str(args[:1]) for *_, args in getattr(image, "tile", None) or []]
    return image.mode not in EIGHT_BIT_MODES or any(re.search("[A-Za-z];16[BLN]", mode) for mode in rawmodes)


def warn_of_clipping(images) -> None:
    """A warning, once, where a Pillow image is grey, in RGB, and white in a quarter or more of what is not black: so do
    grey 16-bit files look that Pillow has clipped.

    Pipelines of transformers open paths so before any of this code runs.
    """
    for image in images if isinstance(images, list | tuple) else [images]:
        # Of a deep one that is not loaded yet `is_deep` knows it until it is.
        if isinstance(image, Image.Image) and image.mode == "RGB" and not is_deep(image):
            sample = np.asarray(image.resize((64, 64), Image.Resampling.NEAREST))
            grey = (sample == sample[:, :, :1]).all()
            if grey and (sample == 255).sum() > 0.25 * max((sample > 0).sum(), 1):
                logger.warning_once(
                    "An image is white in over a quarter of what is not black, as a 16-bit file is that Pillow "
                    "converts to 8 bits, for it clips the values. A pipeline of transformers opens paths so: pass the "
                    "picture, adaptor_hf.data.images.read_image(path), or pipeline_class= of adaptor_hf.pipelines."
                )


def _refuse_dicom(file, filename):
    """What Pillow calls for a DICOM file: it reads none, and the library's pipelines open paths with Pillow.

    Raises:
        SyntaxError: it is none, and Pillow looks on.
        UnidentifiedImageError: it is one; without this, too, but with no word of what to do.
    """
    if file.read(132)[128:] != b"DICM":
        raise SyntaxError("no DICOM file")
    raise UnidentifiedImageError(
        "a DICOM file, which Pillow does not read. To a pipeline of transformers give pipeline_class= of "
        "adaptor_hf.pipelines, such as AdaptorImageClassificationPipeline, which reads paths as the model's training "
        "did; or give it the picture, adaptor_hf.data.images.read_image(path)."
    )


Image.register_open("DICOM_REFUSED", _refuse_dicom, lambda prefix: prefix == bytes(16))


def _content(source: str) -> str | bytes:
    """The bytes behind a URL; a path as it is."""
    if source.startswith("data:"):
        return base64.b64decode(source.partition(",")[2])
    if source.startswith(("http://", "https://")):
        response = get_session().get(source, follow_redirects=True)
        response.raise_for_status()
        return response.content
    return source


def planes_of(
    image, do_rescale: bool, do_normalize: bool, input_data_format, black_below: bool = False
) -> list[Image.Image]:
    """An image, checked, as one Pillow image "L" or "RGB", or as "F" planes.

    Alpha is laid on black and a Pillow image turned upright, as in training, or alpha is dropped and no image turned.

    Raises:
        ValueError: for 16-bit and other deep images, and for values that `check_values` refuses.
    """
    if isinstance(image, Image.Image):
        if black_below and not is_deep(image):
            turned = image.getexif().get(Image.ExifTags.Base.Orientation, 1) != 1
            image = lay_on_black(ImageOps.exif_transpose(image) if turned else image)
        return [eight_bit_image(image)]
    if isinstance(image, torch.Tensor):
        image = image.detach().to("cpu")
        image = (image.float() if image.is_floating_point() else image).numpy()
    pixels = channels_last(np.asarray(image), input_data_format)
    alpha, pixels = pixels[..., 3:], pixels[..., :3]
    check_values(pixels, do_rescale, do_normalize)
    if np.issubdtype(pixels.dtype, np.integer) and do_rescale:
        pixels = pixels.astype(np.uint8)
        if black_below and alpha.shape[-1]:
            return [lay_on_black(Image.fromarray(np.concatenate([pixels, alpha.astype(np.uint8)], axis=2)))]
        return [Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels)]
    if black_below and alpha.shape[-1]:
        pixels = pixels * (alpha / (255 if do_rescale else 1))
    return [Image.fromarray(np.ascontiguousarray(plane)) for plane in np.moveaxis(pixels, -1, 0).astype(np.float32)]


def eight_bit_image(image: Image.Image) -> Image.Image:
    """A Pillow image as "L" or "RGB", alpha dropped.

    Raises:
        ValueError: it has more than 8 bits a channel.
    """
    if is_deep(image):
        raise ValueError(f"an image of mode {image.mode!r} has more than 8 bits a channel; {READ_FIRST}.")
    if image.mode in ("L", "RGB"):
        return image
    return image.convert("L" if image.mode in ("1", "LA", "La") else "RGB")


def lay_on_black(image: Image.Image) -> Image.Image:
    """Alpha and transparent palette entries laid on black, as `adaptor_hf.data.images.read_image` does."""
    if not image.has_transparency_data:
        return image
    image = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", image.size, (0, 0, 0, 255)), image).convert("RGB")


def with_channel_axis(images):
    """2-D arrays and tensors as (1, H, W), in lists too; everything else as it is."""
    if isinstance(images, list | tuple):
        return [with_channel_axis(image) for image in images]
    return images[None] if isinstance(images, np.ndarray | torch.Tensor) and images.ndim == 2 else images


def channels_last(pixels: np.ndarray, input_data_format) -> np.ndarray:
    """Gives (H, W, C) with 1, 3 or 4 channels."""
    if input_data_format is None:
        input_data_format = infer_channel_dimension_format(pixels, num_channels=(1, 3, 4))
    if ChannelDimension(input_data_format) == ChannelDimension.FIRST:
        pixels = np.moveaxis(pixels, 0, -1)
    return pixels


def check_values(pixels: np.ndarray, do_rescale: bool, do_normalize: bool) -> None:
    """Refuses values that rescaling and normalising would turn into plausible nonsense."""
    is_integer = np.issubdtype(pixels.dtype, np.integer)
    if pixels.dtype == np.uint16 or not (is_integer or np.issubdtype(pixels.dtype, np.floating)):
        raise ValueError(f"an image of type {pixels.dtype} is not 8-bit; {READ_FIRST}.")
    if pixels.size == 0:
        raise ValueError(f"an image has no pixels: shape {pixels.shape}.")
    low, high = pixels.min(), pixels.max()
    if not (np.isfinite(low) and np.isfinite(high)):
        raise ValueError("an image has NaN or infinite values.")
    if do_rescale and (low < 0 or high > 255):
        raise ValueError(f"image values must be 0..255, got {low}..{high}; {READ_FIRST}.")
    if do_rescale and not is_integer and 0 < high <= 1:
        raise ValueError(
            f"a float image has values {low:.3g}..{high:.3g}: it seems to be rescaled already. "
            "Pass do_rescale=False, or values of 0..255."
        )
    if not do_rescale and do_normalize and (low < 0 or high > 1):
        raise ValueError(f"with do_rescale=False image values must be 0..1, got {low}..{high}.")


def to_gray(planes: list[Image.Image]) -> list[Image.Image]:
    """One plane of ITU-R 601 luma."""
    if len(planes) == 1:
        return [planes[0].convert("L")] if planes[0].mode == "RGB" else planes
    red, green, blue = (np.asarray(plane) for plane in planes)
    return [Image.fromarray((0.299 * red + 0.587 * green + 0.114 * blue).astype(np.float32))]


def per_channel(value: float | tuple[float, ...], channels: int) -> np.ndarray:
    """One number, or one a channel, as float32 (channels, 1, 1)."""
    return np.broadcast_to(np.asarray(value, dtype=np.float32).reshape(-1, 1, 1), (channels, 1, 1))
