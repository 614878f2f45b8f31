"""Folders with metadata files, which name the images: in the folder itself, or in its folders of splits."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from .folder_walk import walk_images
from .missing import is_missing
from .splits import SPLIT_ALIASES

METADATA = [f"metadata{suffix}" for suffix in (".csv", ".csv.gz", ".tsv", ".jsonl", ".parquet", ".xlsx")]
"""Names of metadata files; the first that is there counts."""


def metadata_files(folder: Path) -> list[tuple[str, Path]]:
    """Metadata files of a folder: its own with "", or those of its folders of splits with their names."""
    if (found := _metadata_file(folder)) is not None:
        return [("", found)]
    subfolders = sorted(sub for sub in folder.iterdir() if sub.is_dir() and sub.name.lower() in SPLIT_ALIASES)
    return [(sub.name, found) for sub in subfolders if (found := _metadata_file(sub)) is not None]


def _metadata_file(folder: Path) -> Path | None:
    return next((folder / name for name in METADATA if (folder / name).is_file()), None)


def join_metadata(parts: Sequence[tuple[str, pa.Table]], image_column: str) -> tuple[pa.Table, pa.Array]:
    """Table and splits of tables in folders of splits; its image paths are relative to the upper folder."""
    tables, splits = [], []
    for name, table in parts:
        for position, column in enumerate(table.column_names):
            if column.strip() in (image_column, "file_name"):
                cells = table.column(position).to_pylist()
                paths = [cell and os.path.join(name, cell.strip()) for cell in cells]
                table = table.set_column(position, column, pa.array(paths, pa.string()))
        tables.append(table)
        splits += [name] * len(table)
    return pa.concat_tables(tables, promote_options="default"), pa.array(splits, pa.string())


def count_listed(folder: Path, table: pa.Table, image_column: str) -> dict[str, int]:
    """
    How a folder and the table of its metadata files agree.

    Returns:
        `rows_without_file`, rows that name a file that is not there, and `images_not_listed`, image files that no row
        names (as a mask or otherwise); {} where a folder cannot be listed.
    """
    try:
        there = {"/".join(image.parts) for image in walk_images(folder).images}
    except OSError:
        return {}
    named: set[str] = set()
    missing = 0
    for name, column in zip(table.column_names, table.columns, strict=True):
        if pa.types.is_dictionary(column.type):
            column = column.cast(column.type.value_type)
        if not (pa.types.is_string(column.type) or pa.types.is_large_string(column.type)):
            continue
        if name.strip() == image_column:
            cells = [os.path.normpath(cell.strip()) for cell in column.to_pylist() if not is_missing(cell)]
            missing = sum(cell not in there and not os.path.isfile(folder / cell) for cell in cells)
            named |= {os.path.relpath(cell, folder) if os.path.isabs(cell) else cell for cell in cells}
        else:
            named |= set(pc.unique(column).to_pylist())
    return {"rows_without_file": missing, "images_not_listed": len(there - named)}


__all__ = ["METADATA", "count_listed", "join_metadata", "metadata_files"]
