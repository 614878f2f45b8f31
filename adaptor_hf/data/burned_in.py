"""What DICOM files say of text in their pictures: burned-in annotation and overlays. Reads headers only."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable
from typing import TYPE_CHECKING

from .dicom_headers import HeaderError, header_facts

if TYPE_CHECKING:
    from datasets import Dataset

_NO_DICOM = (".png", ".jpg", ".jpeg")


def count_flags(dataset: Dataset, rows: Iterable[int] | None = None) -> Counter[str]:
    """
    Count the DICOM files of a data set by what they say; no picture is decoded, and no value of a header is kept.

    Args:
        dataset (`datasets.Dataset`): With a column `image` of files or bytes. Members of archives are passed over.
        rows (`Iterable[int]`, *optional*): The rows to look at; all by default.

    Returns:
        `Counter`: `files` (DICOM files with a picture), `burned_in` (they say YES), `not_burned_in` (NO), `overlays`. A
        file that says neither YES nor NO, as most do, is in `files` alone; one whose header is damaged or that is cut
        short in none.
    """
    counts: Counter[str] = Counter()
    if "image" not in dataset.column_names:
        return counts
    column = dataset.select_columns(["image"])
    column = column if rows is None else column.select(list(rows))
    for table in column.with_format("arrow").iter(1000):
        for cell in table["image"].to_pylist():
            _look_at(cell, counts)
    return counts


def describe_flags(counts: Counter[str]) -> str | None:
    """One sentence for a log; None where there is no DICOM file."""
    if not counts["files"]:
        return None
    silent = counts["files"] - counts["burned_in"] - counts["not_burned_in"]
    return (
        f"DICOM files: of {counts['files']:,}, {counts['burned_in']:,} say that text is burned into the picture, "
        f"{counts['not_burned_in']:,} that none is, {silent:,} do not say; {counts['overlays']:,} have overlays, which "
        "are not drawn. Nothing looks for text in the pictures"
    )


def _look_at(cell: object, counts: Counter[str]) -> None:
    data, path = (cell.get("bytes"), cell.get("path")) if isinstance(cell, dict) else (None, cell)
    if data is None and (not path or str(path).lower().endswith(_NO_DICOM) or not os.path.isfile(path)):
        return
    try:
        size = os.path.getsize(path) if data is None else len(data)
        found = header_facts(str(path) if data is None else data, size, "AccessionNumber")
    except (OSError, HeaderError):
        return  # reported where the picture is read
    if not found["pixels"]:
        return
    counts["files"] += 1
    counts["burned_in"] += found["burned_in"] == "YES"
    counts["not_burned_in"] += found["burned_in"] == "NO"
    counts["overlays"] += found["overlays"] > 0


__all__ = ["count_flags", "describe_flags"]
