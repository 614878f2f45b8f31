"""Augmented views of an image, and what of the image each of them shows."""

from __future__ import annotations

import math
from dataclasses import dataclass
from hashlib import blake2b
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from .view_draws import crop_box, recolour, turn, uniform
from .view_recipes import RECIPES, REFERENCE_SIDE, Recipe, view_recipe

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class ViewGeometry:
    """What of an image a view shows.

    Args:
        matrix: (2, 3) float64. It takes a point of the view to the point of the image that is seen there:
            `x, y = matrix @ (u, v, 1)`, all as shares of width and height, 0 at the left and the top. Where it leads
            beyond 0 and 1 the view is black, and where it was turned also beyond its crop, as in the papers.
    """

    matrix: np.ndarray

    @property
    def box(self) -> np.ndarray:
        """(5,) float32: top, left, height and width as shares of the image, and 1 where left and right changed places.

        Of a view that was not turned this is the crop itself; of one that was, the smallest upright box around what it
        shows. Where black was added to the image, or came in from outside, it reaches beyond 0 and 1.
        """
        corners = self.matrix @ np.array([[0, 1, 0, 1], [0, 0, 1, 1], [1, 1, 1, 1]])
        (left, top), (right, bottom) = corners.min(axis=1), corners.max(axis=1)
        flipped = np.linalg.det(self.matrix[:, :2]) < 0
        return np.array([top, left, bottom - top, right - left, flipped], dtype=np.float32)


def view_seed_of(seed: int, number: int, content: bytes) -> int:
    """What the random numbers of a view start from.

    Args:
        seed: The same for all images of a data set.
        number: Of the view, from 0.
        content: Digest of the image file's content.
    """
    return int.from_bytes(blake2b(f"{seed} {number} ".encode() + content, digest_size=8).digest(), "little") >> 1


def make_view(
    image: Image.Image,
    recipe: Recipe | str | None,
    seed: int,
    size: int | tuple[int, int] = REFERENCE_SIDE,
    resample: int = Image.Resampling.BICUBIC,
) -> tuple[Image.Image, ViewGeometry]:
    """
    One augmented view of an image. It depends on the arguments alone; the caller's random numbers do not move.

    Args:
        image: Of mode "L" or "RGB", as `read_image` gives it.
        recipe: A recipe or its name; None is "crop".
        seed: Of 63 bits, see `view_seed_of`.
        size: Height and width of the view in pixels, or both in one number.
        resample: Pillow's filter for resizing.

    Returns:
        The view, of the image's mode, and what of the image it shows.

    Raises:
        ValueError: Another mode, or no recipe of this name.
    """
    import torch

    if image.mode not in ("L", "RGB"):
        raise ValueError(f'A view is made of an image of mode "L" or "RGB", got {image.mode!r}: use read_image.')
    recipe = recipe if isinstance(recipe, Recipe) else view_recipe(recipe)
    height, width = (size, size) if isinstance(size, int) else size
    whole = _padded_to_square(image.size) if recipe.pad_to_square else (0, 0, *image.size)
    draws = torch.Generator().manual_seed(seed)
    box = _cropped(whole, recipe, draws)
    flipped = uniform(draws) < recipe.flip
    source, resized, corner = box, (width, height), (0, 0)
    if recipe.turn_first:
        source = whole
        resized, corner = _around_the_crop(whole, box, (width, height))
    view = image.crop(source).resize(resized, resample)
    if flipped:
        view = view.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    undone = np.eye(3)
    if recipe.turns:
        undone = _undo(*turn(recipe, *resized, draws), resized) @ _moved(*corner)
        view = view.transform((width, height), Image.Transform.AFFINE, undone[:2].ravel(), Image.Resampling.BILINEAR)
    view = recolour(view, recipe, draws)
    to_pixels, to_shares = np.diag([width, height, 1.0]), np.linalg.inv(np.diag([*resized, 1.0]))
    return view, ViewGeometry(_crop_matrix(source, flipped, image.size) @ to_shares @ undone @ to_pixels)


def view_pixels(
    image: Image.Image, processor: Any, recipe: Recipe | str | None, seeds: list[int]
) -> tuple[torch.Tensor, list[ViewGeometry]]:
    """
    Views of one image as a tower takes them. A recipe's resized crop takes the place of the processor's padding,
    resizing and cropping; channels, scale and normalisation are the processor's.

    Args:
        image: Of mode "L" or "RGB", as `read_image` gives it.
        processor: The tower's `AdaptorImageProcessor`.
        seeds: One a view, see `view_seed_of`.

    Returns:
        float32 (K, C, H, W), and what each view shows.
    """
    made = [make_view(image, recipe, seed, view_size(processor), _filter_of(processor)) for seed in seeds]
    as_they_are = {"do_pad_to_square": False, "do_resize": False, "do_center_crop": False}
    pixels = processor(images=[view for view, _ in made], return_tensors="pt", **as_they_are)["pixel_values"]
    return pixels, [geometry for _, geometry in made]


def view_size(processor: Any) -> tuple[int, int]:
    """Height and width of what an `AdaptorImageProcessor` makes of a square image.

    Raises:
        ValueError: It neither resizes nor crops, so that a view has no size.
    """
    if processor.do_center_crop:
        size = processor.crop_size
    elif processor.do_resize:
        size = processor.size
    else:
        raise ValueError(
            "Views need a tower whose image processor resizes or crops; this one takes images of any size. Leave views "
            "out, or set do_resize and size of the tower's image processor."
        )
    size = dict(size)
    edge = size.get("shortest_edge")
    return (int(edge), int(edge)) if edge else (int(size["height"]), int(size["width"]))


def target_pixels(processor: Any) -> int | None:
    """Longest side that an image processor asks for, or None when it does not say."""
    sides = []
    for name in ("size", "crop_size"):
        value = getattr(processor, name, None)
        if isinstance(value, int):
            sides.append(value)
        elif value is not None:
            items = dict(value).values()
            sides += [item for item in items if isinstance(item, int)]
    return max(sides, default=None)


def decoded_size(processor: Any) -> int | None:
    """`min_size` of `read_image` for what an image processor makes of images."""
    side = target_pixels(processor)
    return 3 * side if side else None


def _filter_of(processor: Any) -> int:
    from ..image_geometry_adaptor import pillow_filter

    return pillow_filter(processor.resample)


def _padded_to_square(size: tuple[int, int]) -> tuple[int, int, int, int]:
    """Left, top, right and bottom of the square around an image, in its pixels, as image processors place it."""
    side = max(size)
    left, top = (size[0] - side) // 2, (size[1] - side) // 2
    return left, top, left + side, top + side


def _cropped(whole: tuple[int, int, int, int], recipe: Recipe, draws: torch.Generator) -> tuple[int, int, int, int]:
    """Left, top, right and bottom of a random crop of a box."""
    left, top, right, bottom = whole
    width, height = right - left, bottom - top
    if not recipe.stretch_to_square:
        crop = crop_box(recipe, width, height, draws)
    else:
        side = max(width, height)
        drawn = crop_box(recipe, side, side, draws)
        crop = tuple(round(edge * (width, height)[place % 2] / side) for place, edge in enumerate(drawn))
    return crop[0] + left, crop[1] + top, max(crop[2], crop[0] + 1) + left, max(crop[3], crop[1] + 1) + top


def _around_the_crop(
    whole: tuple[int, int, int, int], box: tuple[int, int, int, int], size: tuple[int, int]
) -> tuple[tuple[int, int], tuple[int, int]]:
    """Width and height that a whole is resized to so that a crop of it has a size, and the crop's corner there."""
    resized, corner = [], []
    for axis in range(2):
        full = whole[axis + 2] - whole[axis]
        resized.append(max(size[axis], round(full * size[axis] / (box[axis + 2] - box[axis]))))
        place = round((box[axis] - whole[axis]) * resized[axis] / full)
        corner.append(min(place, resized[axis] - size[axis]))
    return tuple(resized), tuple(corner)


def _crop_matrix(box: tuple[int, int, int, int], flipped: bool, size: tuple[int, int]) -> np.ndarray:
    """(2, 3): shares of a box in pixels, flipped or not, to shares of the image that it is of."""
    left, top, right, bottom = (edge / size[number % 2] for number, edge in enumerate(box))
    across = [left - right, 0, right] if flipped else [right - left, 0, left]
    return np.array([across, [0, bottom - top, top]])


def _undo(angle: float, translate: tuple[float, float], scale: float, size: tuple[int, int]) -> np.ndarray:
    """(3, 3) in pixels: where a point was before the image was turned around its centre, zoomed, and moved."""
    sine, cosine = math.sin(math.radians(angle)), math.cos(math.radians(angle))
    turned = np.array([[cosine, sine, 0], [-sine, cosine, 0], [0, 0, scale]]) / scale
    return _moved(size[0] / 2, size[1] / 2) @ turned @ _moved(-size[0] / 2 - translate[0], -size[1] / 2 - translate[1])


def _moved(x: float, y: float) -> np.ndarray:
    return np.array([[1, 0, x], [0, 1, y], [0, 0, 1.0]])


__all__ = [
    "RECIPES",
    "Recipe",
    "ViewGeometry",
    "decoded_size",
    "make_view",
    "target_pixels",
    "view_pixels",
    "view_recipe",
    "view_seed_of",
    "view_size",
]
