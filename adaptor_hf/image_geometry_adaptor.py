"""Where the pixels of an image go: padding, resizing and cropping, those of its segmentation map, and the way back.

This file is flat on purpose: it is copied beside a checkpoint as remote code.
"""

from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn

GEOMETRY = ("do_pad_to_square", "do_resize", "size", "do_center_crop", "crop_size")
"""Options of an image processor that move pixels, in the order of the steps."""


def place(plane: Image.Image, geometry: dict[str, Any], resample: int) -> Image.Image:
    """Pads to the square, resizes and crops, as `geometry` says."""
    if geometry["do_pad_to_square"]:
        plane = _crop_around_centre(plane, max(plane.size), max(plane.size))
    if geometry["do_resize"]:
        plane = plane.resize(_target_size(plane.size, geometry["size"]), resample=resample)
    if geometry["do_center_crop"]:
        plane = _crop_around_centre(plane, geometry["crop_size"].width, geometry["crop_size"].height)
    return plane


def _crop_around_centre(image: Image.Image, width: int, height: int) -> Image.Image:
    """Centre crop; where the image is smaller, Pillow fills with zeros."""
    # Rounding down is what the library's Pillow backend does, also where it pads.
    left, top = (image.width - width) // 2, (image.height - height) // 2
    return image.crop((left, top, left + width, top + height))


def _target_size(size: tuple[int, int], target) -> tuple[int, int]:
    """(width, height) after resizing; the long side is truncated as in torchvision and transformers."""
    if not target.shortest_edge:
        return target.width, target.height
    width, height = size
    edge = target.shortest_edge
    return (edge, int(edge * height / width)) if width <= height else (int(edge * width / height), edge)


def pillow_filter(resample) -> int:
    """Pillow's number of a filter that transformers names in any of its ways."""
    # torchvision names its filters by strings; the values of Pillow's are integers.
    names = {"nearest": 0, "lanczos": 1, "bilinear": 2, "bicubic": 3, "box": 4, "hamming": 5}
    value = getattr(resample, "value", resample)
    return names[value] if isinstance(value, str) else int(value)


def label_map(item, number: int) -> np.ndarray:
    """A mask or a map of class numbers as an int32 array (H, W)."""
    is_mask = isinstance(item, Image.Image) and item.mode in ("1", "L")
    values = np.asarray(item.cpu() if isinstance(item, torch.Tensor) else item)
    if values.ndim != 2 or not (np.issubdtype(values.dtype, np.integer) or values.dtype == bool):
        raise ValueError(
            f"segmentation map {number} is of shape {values.shape} and type {values.dtype}; expected (height, width) "
            "of integers, or a grey image of 0 and 255."
        )
    if is_mask and values.dtype != bool:
        found = np.unique(values)
        if not (np.isin(found, (0, 255)).all() or found.max() <= 1):
            raise ValueError(
                f"segmentation map {number} is a grey image with values {found[:5].tolist()}; a mask has 0 and 255. "
                "Pass class numbers as an integer array."
            )
        values = values > 0
    return values.astype(np.int32)


def check_sizes(sizes: list[tuple[int, int]], labels: list[np.ndarray]) -> None:
    """Raises ValueError unless there is one map an image and of its size; `sizes` are (width, height)."""
    if len(sizes) != len(labels):
        raise ValueError(f"got {len(labels)} segmentation maps for {len(sizes)} images; give one each.")
    for number, ((width, height), label) in enumerate(zip(sizes, labels, strict=True)):
        if label.shape != (height, width):
            raise ValueError(
                f"segmentation map {number} is {label.shape[1]}x{label.shape[0]} pixels, its image {width}x{height}. "
                "Resize the map to its image first, without interpolation."
            )


def class_map(logits: torch.Tensor, threshold: float) -> torch.Tensor:
    """(C, H, W) to class numbers (H, W)."""
    return (logits[0].float().sigmoid() > threshold).long() if len(logits) == 1 else logits.argmax(dim=0)


def original_map(
    logits: torch.Tensor, size: tuple[int, int], geometry: dict[str, Any], threshold: float
) -> torch.Tensor:
    """Class numbers (height, width) of an original image from the logits (C, h, w) of what the model saw of it."""
    logits, seen = original_logits(logits, size, geometry)
    return class_map(logits, threshold) * seen


def original_logits(
    logits: torch.Tensor, size: tuple[int, int], geometry: dict[str, Any]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits (C, height, width), float32, of an original image from those (C, h, w) of what the model saw of it, and
    which of its pixels (height, width) that were: cropping leaves others out."""
    side = max(size)
    full = (side, side) if geometry["do_pad_to_square"] else size
    resized = _target_size(full[::-1], geometry["size"])[::-1] if geometry["do_resize"] else full
    crop = geometry["crop_size"]
    seen = (crop.height, crop.width) if geometry["do_center_crop"] else resized
    logits = _bilinear(logits[None].float(), seen)
    # As in _crop_around_centre; negative where the crop is larger than the image.
    top, left = ((a - b) // 2 for a, b in zip(resized, seen, strict=True))
    margins = (left, resized[1] - seen[1] - left, top, resized[0] - seen[0] - top)
    covered = nn.functional.pad(torch.ones_like(logits[:, :1]), margins)
    # Cutting first, and copying the border outwards, so that no resizing mixes in what was never seen.
    logits = nn.functional.pad(logits, [min(margin, 0) for margin in margins])
    logits = nn.functional.pad(logits, [max(margin, 0) for margin in margins], mode="replicate")
    covered = nn.functional.interpolate(covered, size=full, mode="nearest")[0, 0] > 0
    top, left = (-((a - b) // 2) for a, b in zip(size, full, strict=True))
    inside = slice(top, top + size[0]), slice(left, left + size[1])
    return _bilinear(logits, full)[0][:, *inside], covered[inside]


def _bilinear(maps: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    return maps if maps.shape[-2:] == size else nn.functional.interpolate(maps, size=size, mode="bilinear")
