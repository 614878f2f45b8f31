"""Augmented views of images as columns of a cache: what a tower gives of each view, and what the view shows."""

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import numpy as np

from ..data.views import view_size
from .columns import Column
from .extract import extract
from .image_store import ImageStore
from .stored import StoredImages


def view_columns_of(columns: Iterable[Column], stored: StoredImages) -> list[Column]:
    """The columns that views add, in the storage type of the tower's own; none without views.

    Args:
        columns: What `columns_of` says of the tower.
        stored: What is kept of an image.
    """
    if not stored.views:
        return []
    by_name = {column.name: column for column in columns}
    info = {"recipe": stored.view_recipe or "crop", "seed": stored.view_seed}
    found = []
    for name, source in (("view_embeds", "embedding"), ("view_tokens", "image_tokens")):
        if source in by_name:
            column = by_name[source]
            found.append(Column(name, (stored.views, *column.shape), column.dtype, info | column.info))
    found.append(Column("view_boxes", (stored.views, 5), "float32", info))
    if stored.recipe.turns:
        found.append(Column("view_maps", (stored.views, 2, 3), "float32", info))
    return found


def extract_views(tower: Any, batch: dict[str, Any], stored: StoredImages) -> dict[str, np.ndarray]:
    """The columns of `view_columns_of` by name, in float32 (n, K, ...).

    Args:
        tower: A `VisionTower`.
        batch: An item of `ImageBatches` with at least one image.
        stored: What is kept of an image; without views nothing comes back.
    """
    if not stored.views:
        return {}
    of_view = replace(StoredImages(), image_tokens=stored.image_tokens)
    # One pass for each number of a view: batches stay as large as those of the plain images.
    passes = [extract(tower, {"pixel_values": views}, of_view) for views in batch["view_pixel_values"].unbind(dim=1)]
    found = {"view_embeds": np.stack([columns["embedding"] for columns in passes], axis=1)}
    if stored.image_tokens is not None:
        found["view_tokens"] = np.stack([columns["image_tokens"] for columns in passes], axis=1)
    return found | {name: batch[name].numpy() for name in ("view_boxes", "view_maps") if name in batch}


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


__all__ = ["check_store", "extract_views", "view_columns_of"]
