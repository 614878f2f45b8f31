"""Feature maps of convolutional and hierarchical towers at several resolutions, in one pass with the tower's output.

This file is flat on purpose: it is copied beside a checkpoint as remote code.
"""

from typing import Any

import torch
from torch import nn

from .frozen_towers_adaptor import VisionFeatures, VisionTower

STRIDES = (2, 4, 8, 16)


def features_with_maps(tower: VisionTower, pixel_values: torch.Tensor) -> VisionFeatures:
    """
    As [`VisionTower.features`], with `maps` of the same pass: the last at each of strides 2, 4, 8 and 16 that is finer
    than the tokens' grid, `(B, C, h, w)`, or None.

    Raises:
        ValueError: if the input is no batch of images, or the network gives no maps.
    """
    features = tower.features(pixel_values, run=run_with_maps)
    return features._replace(maps=maps_by_stride(features.maps, tuple(pixel_values.shape[-2:]), features.grid))


@torch.no_grad()
def find_skip_channels(tower: VisionTower) -> list[int] | None:
    """
    Channels of a tower's feature maps at strides 2, 4, 8 and 16, 0 where there is none; one pass over an empty image.

    Returns:
        `list[int]` of four, or `None` if the tower has no maps finer than its tokens (a plain vision transformer).
    """
    try:
        maps = features_with_maps(tower, tower.empty_image()).maps
    except ValueError:
        return None
    return [0 if m is None else m.shape[1] for m in maps] if any(m is not None for m in maps) else None


def run_with_maps(model: nn.Module, library: str, pixel_values: torch.Tensor, **arguments) -> tuple[Any, list]:
    """
    Runs a vision network and gives its output with the maps on the way.

    Args:
        model (`nn.Module`): Network of a [`VisionTower`].
        library (`str`): `"transformers"`, `"timm"` or `"torchxrayvision"`.
        pixel_values (`torch.Tensor` of shape `(B, C, H, W)`).
        arguments: Passed on to the network.

    Returns:
        `tuple`: The network's own output, and tensors of shape `(B, C, h, w)` in the order of computation.

    Raises:
        ValueError: if the network has no such maps.
    """
    if library == "torchxrayvision":
        maps, hidden = [], pixel_values
        for layer in model:
            hidden = layer(hidden)
            maps.append(hidden)
        return hidden, maps
    try:
        output = model(pixel_values=pixel_values, output_hidden_states=True, **arguments)
    except (AssertionError, NotImplementedError, ValueError) as error:
        raise ValueError(f"{type(model).__name__} does not give feature maps: {error}") from error
    # Swin gives its stages as sequences, and beside them as maps.
    maps = output["reshaped_hidden_states"] if "reshaped_hidden_states" in output else output["hidden_states"]
    return output, [feature_map for feature_map in maps or () if feature_map.ndim == 4]


def maps_by_stride(maps: list[torch.Tensor], size: tuple[int, int], grid: list[int]) -> list[torch.Tensor | None]:
    """
    The last map at each of a half, a quarter, an eighth and a sixteenth of the input's size; None where there is none.

    Args:
        maps (`list[torch.Tensor]`): Maps `(B, C, h, w)` in the order of computation.
        size (`tuple[int, int]`): Height and width of the input.
        grid (`list[int]`): Rows and columns of the tower's output; only finer maps count.
    """
    found: dict[int, torch.Tensor] = {}
    for feature_map in maps:
        rows, columns = feature_map.shape[-2:]
        for stride in STRIDES:
            # Layers without padding lose a row or two.
            near = abs(rows - size[0] / stride) <= 2 and abs(columns - size[1] / stride) <= 2
            finer = rows > grid[0] and columns > grid[1]
            if near and finer and stride == min(STRIDES, key=lambda s: abs(size[0] / s - rows)):
                found[stride] = feature_map
    return [found.get(stride) for stride in STRIDES]


__all__ = ["STRIDES", "features_with_maps", "find_skip_channels", "maps_by_stride", "run_with_maps"]
