"""The mask column of a table or data set as the column `mask`: files under a root, or masks in the data set itself."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa

from .image_paths import resolve_paths
from .masks import RadiographMask, file_mask
from .missing import is_missing

if TYPE_CHECKING:
    from datasets import Dataset


def holds_masks(dataset: Dataset, name: str) -> bool:
    """Whether a column of a data set holds pictures: `datasets.Image` or `RadiographMask`."""
    from datasets import Image

    return isinstance(dataset.features.get(name), (Image, RadiographMask))


def with_stored_masks(pairs: Dataset, dataset: Dataset, name: str, rows: Sequence[int]) -> Dataset:
    """Pairs with a column `mask` of the pictures in rows of a data set's column; None is an unknown mask."""
    from datasets import Image

    feature = dataset.features[name]
    closed = Image(decode=False) if isinstance(feature, Image) else RadiographMask(decode=False)
    stored = dataset.select_columns([name]).cast_column(name, closed).select(rows)[:][name]
    open_values = [
        value if value and (value.get("kind") or value.get("bytes") or value.get("path")) else None for value in stored
    ]
    encode = RadiographMask().encode_example
    return pairs.add_column("mask", [value and encode(value) for value in open_values], feature=RadiographMask())


def with_mask_files(
    pairs: Dataset,
    cells: Sequence[object],
    image_root: str | os.PathLike | None,
    table_folder: Path | None,
    *,
    source: str = "data set",
    missing_words: Sequence[str] = (),
    mask_values: str = "binary",
    mask_size: str = "scaled",
) -> Dataset:
    """
    Pairs with a column `mask` of files under a root; a cell without a path is an unknown mask.

    Args:
        image_root, table_folder, source: As of `resolve_paths`: mask paths are read as image paths are.
        missing_words: Beside `MISSING_WORDS`.
        mask_values, mask_size: See `adaptor_hf.data.masks.file_mask`.

    Raises:
        ValueError: As of `resolve_paths`, such as a path with "..".
    """
    images = pairs.select_columns(["image"]).with_format("arrow")[:]["image"].to_pylist()
    texts = [None if is_missing(cell, missing_words) else str(cell).strip() for cell in cells]
    paths = pa.chunked_array([pa.array(texts, pa.string())])
    rows = pairs.select_columns(["source_row"]).with_format("arrow")[:]["source_row"].combine_chunks()
    paths, _ = resolve_paths(paths, image_root, table_folder, rows, source, "a mask path")
    values = [
        file_mask([path], image["path"], values=mask_values, size=mask_size) if path else None
        for path, image in zip(paths.to_pylist(), images, strict=True)
    ]
    return pairs.add_column("mask", values, feature=RadiographMask())


__all__ = ["holds_masks", "with_mask_files", "with_stored_masks"]
