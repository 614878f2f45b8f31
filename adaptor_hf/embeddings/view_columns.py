"""Augmented views of images as columns of a cache: what a tower gives of each view, and what the view shows."""

from typing import Any

import numpy as np

from ..data.views import view_size
from .columns import Column, Ragged
from .extract import columns_of, extract
from .image_store import ImageStore
from .stored import StoredImages, StoredTexts

_OF_VIEWS = {"view_embeds": "embedding", "view_tokens": "image_tokens"}


def columns_with_views(tower: Any, stored: StoredImages | StoredTexts, dtype: str) -> list[Column]:
    """As `columns_of`, and behind them the columns of the views: shape (K, ...), K of `stored.views`."""
    columns = columns_of(tower, stored, dtype)
    if isinstance(stored, StoredTexts) or not stored.views:
        return columns
    by_name = {column.name: column for column in columns}
    info = {"recipe": stored.view_recipe or "crop", "seed": stored.view_seed}
    for name, plain in _OF_VIEWS.items():
        if plain in by_name:
            column = by_name[plain]
            columns.append(Column(name, (stored.views, *column.shape), column.dtype, column.info | info))
    columns.append(Column("view_boxes", (stored.views, 5), "float32", info))
    if stored.recipe.turns:
        columns.append(Column("view_maps", (stored.views, 2, 3), "float32", info))
    return columns


def extract_with_views(
    tower: Any, inputs: dict[str, Any], stored: StoredImages | StoredTexts
) -> dict[str, np.ndarray | Ragged]:
    """As `extract`, and the columns of the views, float32 (n, K, ...), from what `ImageBatches` gives of them."""
    if isinstance(stored, StoredTexts) or not stored.views:
        return extract(tower, inputs, stored)
    found = extract(tower, {"pixel_values": inputs["pixel_values"]}, stored)
    of_view = StoredImages(image_tokens=stored.image_tokens)
    # A pass for each number of a view: batches stay as large as those of the plain images.
    passes = [extract(tower, {"pixel_values": views}, of_view) for views in inputs["view_pixel_values"].unbind(dim=1)]
    for name, plain in _OF_VIEWS.items():
        if plain in passes[0]:
            found[name] = np.stack([columns[plain] for columns in passes], axis=1)
    return found | {name: inputs[name].numpy() for name in ("view_boxes", "view_maps") if name in inputs}


def check_store(store: ImageStore, processor: Any, stored: StoredImages) -> None:
    """Refuse a store whose images are too small for the smallest crop of a view.

    Raises:
        ValueError: A crop would have fewer pixels than the tower takes; the message says which size is enough.
    """
    if not stored.views:
        return
    side = max(view_size(processor))
    needed = int(np.ceil(side / stored.recipe.smallest_side))
    if store.size < needed:
        raise ValueError(
            f"the smallest views of view_recipe={stored.view_recipe or 'crop'!r} show "
            f"{stored.recipe.smallest_side:.0%} of an image's side in the {side} pixels that the vision tower takes, "
            f"and image_store_size is {store.size}: set image_store_size={needed} or more, or leave image_store out"
        )


__all__ = ["check_store", "columns_with_views", "extract_with_views"]
