"""Image tokens of a cache in place of images: the tower runs once, and decoders train on what it gave."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ..data.boxes import same_shape
from ..data.images import image_size
from ..data.view_recipes import recipe_name
from ..embeddings.sequences import grid_of, image_sequence, stored_column
from ..privacy.mode import key_name
from ..token_sequences_adaptor import token_sequence

if TYPE_CHECKING:
    from datasets import Dataset

    from ..data.reading import Reading
    from ..embeddings import EmbeddingCache
    from ..towers_adaptor import VisionTower
    from .segmentation import MaskCollator

logger = logging.getLogger(__name__)


def options_of_tokens(
    tower: VisionTower, reading: Reading, cache_dir: str | os.PathLike, image_tokens: str | int
) -> dict[str, Any]:
    """
    Of the builds of these tokens that a cache folder holds, the options of the largest, whatever else it keeps: with
    them `build_cache` finds it. `{"image_tokens": ...}` alone where there is none of this tower and reading; where
    there are others, a warning says in what they differ.

    Raises:
        ValueError: a damaged file (named), or the tower's tokens are not as wide as its pooled embedding.
    """
    from ..embeddings.keys import tower_identity
    from ..embeddings.manifest import MANIFEST, read_manifest
    from ..embeddings.stored import asked_in

    # What could not be read later is refused before it is computed.
    token_sequence(torch.empty(0, tower.hidden_size), torch.empty(0, 0, tower.token_size))
    wanted = tower_identity(tower) | reading.key | ({"private": key_name()} if key_name() is not None else {})
    found, others = [], []
    for path in sorted(Path(cache_dir).glob(f"images-*/{MANIFEST}")):
        manifest = read_manifest(path.parent)
        identity = dict(manifest["identity"])
        stored = asked_in(identity.pop("stored", {}))
        if "image_tokens" not in stored:
            continue
        options = {"dtype": manifest["dtype"]} | stored
        differ = [name for name in wanted | identity if wanted.get(name, ...) != identity.get(name, ...)]
        kept = stored["image_tokens"]
        if kept != image_tokens and (differ or not _same_tokens(tower, {kept, image_tokens})):
            differ.append("image_tokens")
        if "view_recipe" in stored:
            options["view_recipe"] = recipe_name(stored["view_recipe"])
            differ += ["view_recipe"] if options["view_recipe"] is None else []
        if differ:
            others.append((len(differ), -manifest["rows"], sorted(differ)))
        else:
            found.append((manifest["rows"], path.parent.name, options))
    if found:
        return max(found, key=lambda one: one[:2])[2]
    if others:
        _, rows, differ = min(others)
        logger.warning(
            "The cache has image tokens of %d images, which this run cannot read: they differ in %s. All images are "
            "embedded anew.", -rows, ", ".join(differ),
        )  # fmt: skip
    return {"image_tokens": image_tokens}


def _same_tokens(tower: VisionTower, asked: set[str | int]) -> bool:
    """Whether "all" and G are the same: G is the side of the tower's own grid."""
    from ..embeddings.extract import columns_of
    from ..embeddings.stored import StoredImages

    if "all" not in asked:
        return False
    (column,) = columns_of(tower, StoredImages(image_tokens="all"), "float32")[1:]
    return asked == {"all", grid_of(column)[0]} and grid_of(column)[0] == grid_of(column)[1]


def cached_tokens(
    dataset: Dataset, tower: VisionTower, cache_dir: str | os.PathLike, **options: Any
) -> tuple[EmbeddingCache, np.ndarray]:
    """
    Tokens of a data set's images, from the cache as far as they are there, and else added to it. Their frame is that of
    the tower's own image processing, as in every cache.

    Args:
        dataset (`Dataset`): With a column `image`.
        tower, cache_dir, options: As in `build_cache`, with `image_tokens` among them; see `options_of_tokens`.

    Returns:
        `tuple[EmbeddingCache, np.ndarray]`: A view with the column `image_tokens` of the rows whose image can be read,
        and the numbers of these rows `(m,)` int64.

    Raises:
        ValueError: too many images cannot be read; the message lists the first ones.
    """
    from ..embeddings import build_cache

    rows = np.arange(len(dataset))
    # Ids of their own: an image may stand in two parts of a reference split.
    plain = dataset.select_columns(["image"]).add_column("source_row", rows).add_column("image_id", rows.astype(str))
    plain = plain.add_column("split", np.full(len(rows), "test"))
    cache = build_cache(plain, vision_tower=tower, cache_dir=cache_dir, latest=False, **options)
    kept = np.asarray(cache.pairs["source_row"][:], dtype=np.int64)
    if len(kept) < len(rows):
        logger.warning("%d of %d images cannot be read and are left out.", len(rows) - len(kept), len(rows))
    return cache.with_columns("image_tokens"), kept


class TokenRows(torch.utils.data.Dataset):
    """
    Rows of a data set as a decoder reads them; `rows[[0, 1]]` is a batch.

    Batches have `image_embeds` `(n, 1 + h * w, D)`, as of `image_sequence`, and `labels` `(n, H, W)` int64: the masks
    in the frame that the tower saw.

    Args:
        cache (`EmbeddingCache`): A view with the column `image_tokens`; its row i is row i of `dataset`.
        dataset (`Dataset`): With `image` and `mask`. Of images no more than the header is read.
        collator (`MaskCollator`): In the tower's frame, without augmentation.
    """

    def __init__(self, cache: EmbeddingCache, dataset: Dataset, collator: MaskCollator):
        from datasets import Image

        self.cache, self.collator = cache, collator
        self.column = stored_column(cache.stored_columns, "image_tokens")
        self.dataset = dataset.select_columns(["image", "mask"]).cast_column("image", Image(decode=False))

    def __len__(self) -> int:
        return len(self.dataset)

    def select(self, rows: Sequence[int] | np.ndarray) -> TokenRows:
        """These rows, in this order."""
        return TokenRows(self.cache.select(rows), self.dataset.select(rows), self.collator)

    def __getitems__(self, rows: Sequence[int]) -> dict[str, torch.Tensor]:
        sequence = image_sequence(self.cache.__getitems__(rows), self.column)
        return {"image_embeds": sequence, "labels": torch.cat([self._label(self.dataset[int(row)]) for row in rows])}

    __getitem__ = __getitems__

    def _label(self, row: dict[str, Any]) -> torch.Tensor:
        mask, image = row["mask"], row["image"]
        size = image_size(image["bytes"] or image["path"])
        if not same_shape(size, mask.size):
            raise ValueError(
                f"A mask has {mask.size[0]} x {mask.size[1]} pixels, its image {size[0]} x {size[1]}: another shape, "
                "so where the mask lies in the image is not known. Use masks of the images."
            )
        return self.collator([{"image": mask, "mask": mask}])["labels"]


__all__ = ["TokenRows", "cached_tokens", "options_of_tokens"]
