"""What DICOM files say of text in their pictures: burned-in annotation and overlays. Reads headers only."""

from __future__ import annotations

import io
import os
import warnings
from collections import Counter
from collections.abc import Iterable
from typing import TYPE_CHECKING, BinaryIO

from .dicom import HEADER_BYTES, looks_like_dicom

if TYPE_CHECKING:
    from datasets import Dataset

_BURNED_IN = 0x00280301
# Groups 6000, 6002 ... 601E hold up to 16 overlays (PS3.3 C.9.2); each has its number of rows.
_OVERLAY_ROWS = [(group << 16) + 0x0010 for group in range(0x6000, 0x6020, 2)]
_NO_DICOM = (".png", ".jpg", ".jpeg")


def count_flags(dataset: Dataset, rows: Iterable[int] | None = None) -> Counter[str]:
    """
    Count the DICOM files of a data set by what they say; no picture is decoded, and no value of a header is kept.

    Args:
        dataset (`datasets.Dataset`): With a column `image` of files or bytes. Members of archives are passed over.
        rows (`Iterable[int]`, *optional*): The rows to look at; all by default.

    Returns:
        `Counter`: `files` (DICOM files), `burned_in` (they say YES), `not_burned_in` (NO), `overlays`. A file that says
        neither YES nor NO, as most do, is in `files` alone.
    """
    counts: Counter[str] = Counter()
    if "image" not in dataset.column_names:
        return counts
    column = dataset.select_columns(["image"])
    column = column if rows is None else column.select(list(rows))
    for table in column.with_format("arrow").iter(1000):
        for cell in table["image"].to_pylist():
            try:
                _look_at(cell, counts)
            except (OSError, ValueError):
                continue  # reported where the picture is read
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
    if data is not None:
        _count(io.BytesIO(data), counts)
    elif path and not str(path).lower().endswith(_NO_DICOM) and os.path.isfile(path):
        with open(path, "rb") as stream:
            _count(stream, counts)


def _count(stream: BinaryIO, counts: Counter[str]) -> None:
    import pydicom

    if not looks_like_dicom(stream.read(HEADER_BYTES)):
        return
    stream.seek(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            found = pydicom.dcmread(
                stream, stop_before_pixels=True, force=True, specific_tags=[_BURNED_IN, *_OVERLAY_ROWS]
            )
            said = str(found.get("BurnedInAnnotation") or "").strip().upper()
            overlays = any(tag in found for tag in _OVERLAY_ROWS)
        except Exception as error:  # a damaged file raises whatever pydicom meets in it
            raise ValueError("not a readable DICOM header") from error
    counts["files"] += 1
    counts["burned_in"] += said == "YES"
    counts["not_burned_in"] += said == "NO"
    counts["overlays"] += overlays


__all__ = ["count_flags", "describe_flags"]
