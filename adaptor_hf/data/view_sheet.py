"""A picture of images and their augmented views, so that one sees what a recipe does before a cache is built of it."""

import os
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw

from .content_keys import content_key
from .reading import Reading
from .view_recipes import Recipe
from .views import make_view, view_seed_of

_COLOURS = ("#e6194b", "#3cb44b", "#4363d8", "#f58231", "#911eb4", "#42d4f4", "#f032e6", "#bfef45")
_GAP = 4
# Share of a panel that the image takes: what a view shows may reach beyond it.
_INNER = 0.8


def view_sheet(
    paths: Sequence[str | os.PathLike],
    recipe: Recipe | str | None = None,
    views: int = 4,
    seed: int = 0,
    reading: Reading | None = None,
    side: int = 224,
) -> Image.Image:
    """
    An image a row: the image with the outlines of its views, and the views, framed in their outline's colour. They are
    those that a cache of the same recipe and seed keeps; a flipped view has a double frame.

    Args:
        paths: Image files, as `read_image` takes them.
        recipe: A recipe or its name; None is "crop".
        views: Views of each image.
        seed: Of `build_cache(view_seed=...)`.
        reading: How files become pixels; None reads grey.
        side: Pixels of a panel.

    Raises:
        ValueError: No recipe of this name, fewer than one view, or an image that cannot be read.
        OSError: A file that cannot be read.
    """
    if views < 1:
        raise ValueError(f"views must be at least 1, got {views}.")
    step = side + 2 * _GAP
    sheet = Image.new("RGB", (step * (1 + views), step * len(paths)), "white")
    for row, path in enumerate(paths):
        image = (reading or Reading()).read(path, 3 * side)
        scale = _INNER * side / max(image.size)
        size = [max(1, round(length * scale)) for length in image.size]
        corner = np.array([(side - length) / 2 + _GAP for length in size])
        sheet.paste(image.resize(size), tuple(np.add(corner, [0, row * step]).round().astype(int).tolist()))
        draw = ImageDraw.Draw(sheet)
        for number in range(views):
            view, geometry = make_view(image, recipe, view_seed_of(seed, number, content_key(path)), side)
            colour = _COLOURS[number % len(_COLOURS)]
            outline = (geometry.matrix @ [[0, 1, 1, 0, 0], [0, 0, 1, 1, 0], [1, 1, 1, 1, 1]]).T * size + corner
            draw.line([(x, y + row * step) for x, y in outline], fill=colour, width=2)
            left, top = (number + 1) * step, row * step
            draw.rectangle((left, top, left + step - 1, top + step - 1), fill=colour)
            sheet.paste(view, (left + _GAP, top + _GAP))
            if geometry.box[4]:
                inside = (left + 2 * _GAP, top + 2 * _GAP, left + step - 1 - 2 * _GAP, top + step - 1 - 2 * _GAP)
                draw.rectangle(inside, outline=colour, width=2)
    return sheet


__all__ = ["view_sheet"]
