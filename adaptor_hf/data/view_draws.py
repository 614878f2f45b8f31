"""Random numbers of a view, drawn as torchvision's transforms draw them but from a generator of their own.

torchvision takes torch's global generator, which is also that of other threads and of training on the CPU; and another
version of it could draw otherwise, so that a cache would hold other views under the same key. The tests compare both.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from PIL import Image, ImageFilter

from .view_recipes import REFERENCE_SIDE, Recipe

if TYPE_CHECKING:
    import torch


def uniform(draws: torch.Generator, low: float = 0.0, high: float = 1.0) -> float:
    """A number from `low` up to `high`."""
    import torch

    return torch.empty(1).uniform_(low, high, generator=draws).item()


def crop_box(recipe: Recipe, width: int, height: int, draws: torch.Generator) -> tuple[int, int, int, int]:
    """Left, top, right and bottom of a crop, as `RandomResizedCrop`: ten attempts, then the largest one in the middle
    that has an allowed shape."""
    import torch

    low, high = torch.log(torch.tensor(recipe.ratio)).tolist()
    for _ in range(10):
        area = width * height * uniform(draws, *recipe.scale)
        ratio = torch.exp(torch.empty(1).uniform_(low, high, generator=draws)).item()
        across, down = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < across <= width and 0 < down <= height:
            top = int(torch.randint(0, height - down + 1, (1,), generator=draws))
            left = int(torch.randint(0, width - across + 1, (1,), generator=draws))
            return left, top, left + across, top + down
    across = min(width, round(height * recipe.ratio[1]))
    down = min(height, round(width / recipe.ratio[0]))
    left, top = (width - across) // 2, (height - down) // 2
    return left, top, left + across, top + down


def turn(recipe: Recipe, width: int, height: int, draws: torch.Generator) -> tuple[float, tuple[int, int], float]:
    """Angle in degrees, pixels to the right and down, and zoom, as `RandomAffine`."""
    angle = uniform(draws, -recipe.degrees, recipe.degrees)
    across, down = (uniform(draws, -recipe.translate * side, recipe.translate * side) for side in (width, height))
    return angle, (round(across), round(down)), uniform(draws, *recipe.zoom)


def recolour(view: Image.Image, recipe: Recipe, draws: torch.Generator) -> Image.Image:
    """A view with other colours, as `ColorJitter`, `RandomGrayscale` and `GaussianBlur`, each as often as it says."""
    import torch
    from torchvision.transforms.v2 import functional

    if uniform(draws) < recipe.jitter:
        order = torch.randperm(4, generator=draws).tolist()
        ranges = {
            functional.adjust_brightness: recipe.brightness,
            functional.adjust_contrast: recipe.contrast,
            functional.adjust_saturation: recipe.saturation,
            functional.adjust_hue: (-recipe.hue, recipe.hue),
        }
        nothing = [(1.0, 1.0)] * 3 + [(0.0, 0.0)]
        steps = [
            (adjust, uniform(draws, *limits)) if limits != nothing[place] else None
            for place, (adjust, limits) in enumerate(ranges.items())
        ]
        for step in (steps[place] for place in order):
            view = step[0](view, step[1]) if step else view
    if uniform(draws) < recipe.grey:
        view = functional.rgb_to_grayscale(view, num_output_channels=len(view.getbands()))
    if uniform(draws) < recipe.blur:
        low, high = (value * max(view.size) / REFERENCE_SIDE for value in recipe.blur_sigma)
        # Pillow's, as SLIP does it: torchvision's takes 80 ms a view, 40 times all the rest.
        view = view.filter(ImageFilter.GaussianBlur(uniform(draws, low, high)))
    return view


__all__ = ["crop_box", "recolour", "turn", "uniform"]
