"""Features of frozen parts: each image goes through its tower once, whatever trains on it afterwards."""

from __future__ import annotations

import logging
import os
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ..training.systems import BATCH_ROWS, adaptor_features
from .provenance import spec_of_cache

if TYPE_CHECKING:
    from datasets import Dataset

logger = logging.getLogger(__name__)


def tower_features(
    dataset: Dataset,
    tower: Any,
    cache_dir: str | os.PathLike,
    *,
    batch_size: int | None = None,
    device: Any = None,
    max_fault_fraction: float = 0.05,
    check: str = "touched",
    dtype: str = "float16",
) -> tuple[torch.Tensor, np.ndarray, dict]:
    """
    Embeddings of a data set's images, from the cache as far as they are there. Data sets that share a `cache_dir`
    share the embeddings of the images they have in common.

    Args:
        dataset (`Dataset`): With a column `image`.
        tower: As in `build_cache`.
        cache_dir, batch_size, device, max_fault_fraction, check, dtype: As in `build_cache`.

    Returns:
        `tuple[torch.Tensor, np.ndarray, dict]`: `(m, D)` float32 features of the rows whose image could be read, the
        numbers of these rows `(m,)` int64, and the tower's spec.

    Raises:
        ValueError: too many images cannot be read; the message lists the first ones.
    """
    from ..embeddings import build_cache

    rows = np.arange(len(dataset))
    # Ids of their own: an image may stand in two parts of a reference split.
    plain = dataset.select_columns(["image"]).add_column("source_row", rows).add_column("image_id", rows.astype(str))
    plain = plain.add_column("split", np.full(len(rows), "test"))
    cache = build_cache(
        plain, vision_tower=tower, cache_dir=cache_dir, batch_size=batch_size, device=device,
        max_fault_fraction=max_fault_fraction, check=check, dtype=dtype, latest=False,
    )  # fmt: skip
    kept = np.asarray(cache.pairs["source_row"][:], dtype=np.int64)
    if len(kept) < len(rows):
        logger.warning("%d of %d images cannot be read and are left out.", len(rows) - len(kept), len(rows))
    return cache.image_embeddings().float(), kept, spec_of_cache(cache.vision_spec, tower)


__all__ = ["BATCH_ROWS", "adaptor_features", "tower_features"]
