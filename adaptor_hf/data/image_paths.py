"""Paths of images as a table has them: one spelling, under a root, of a file that this system and this package read."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from .image_formats import READ, endings, foreign_format


def resolve_paths(
    cells: pa.ChunkedArray,
    image_root: str | os.PathLike | None,
    table_folder: Path | None,
    rows: pa.Array,
    source: str,
    what: str = "an image path",
) -> tuple[pa.ChunkedArray, pa.ChunkedArray]:
    """
    Absolute image paths, and the same relative to the root where they lie under it, in one spelling.

    Args:
        cells: Paths of the table, stripped; null where there is none.
        image_root: Folder that relative paths are relative to, and under which absolute ones lie; None is
            `table_folder` (or the working folder), and absolute paths lie anywhere.
        rows: Numbers of the rows, for messages.
        source: What messages call the table.
        what: What they call a path.

    Raises:
        ValueError: A path leads out of the root, is a URL or one of another system, or names a file of a format that is
            not read. The message names the rows.
    """
    root = os.path.abspath(image_root if image_root is not None else table_folder or os.curdir)
    prefix = os.path.join(root, "")
    refused = {
        'has ".."': pc.match_substring_regex(cells, r"(^|[\\/])\.\.([\\/]|$)"),
        "is a URL": pc.match_substring_regex(cells, r"^[A-Za-z][A-Za-z0-9+.-]+:(//|/[^/])"),
    }
    if os.sep == "/":
        _refuse_drives(cells, rows, source)
    absolute = pc.match_substring_regex(cells, r"^([\\/]|[A-Za-z]:[\\/])")
    cells = plain_path(cells)
    under = pc.starts_with(cells, prefix)
    if image_root is not None:
        refused["is absolute and not under the image root"] = pc.and_(absolute, pc.invert(under))
    for reason, mask in refused.items():
        if pc.any(mask).as_py():
            raise ValueError(
                f"{source}: {what} {reason} in {name_rows(mask, rows)}. Paths are relative to {root} and stay "
                "under it; set image_root to the folder that holds all images."
            )
    _refuse_formats(cells, rows, source, what)
    if os.sep == "/":
        cells = _with_slashes(cells, absolute, prefix, rows, source)
    # The path keeps its Unicode form: a file's name on disk may have either.
    relative = pc.utf8_normalize(pc.if_else(under, pc.utf8_slice_codeunits(cells, len(prefix)), cells), "NFC")
    return pc.if_else(absolute, cells, pc.binary_join_element_wise(prefix, cells, "")), relative


def plain_path(paths: pa.ChunkedArray) -> pa.ChunkedArray:
    """Without `./` and doubled slashes; the `//` after a colon is a URL's, and a member of an archive has its name."""
    plain = pc.replace_substring_regex(paths, r"(^|[^:])/+(\./+)*", r"\1/")
    plain = pc.replace_substring_regex(plain, r"^(\./)+", "")
    return pc.if_else(pc.match_substring(paths, "::"), paths, plain)


def name_rows(mask: pa.ChunkedArray, rows: pa.Array, limit: int = 5) -> str:
    """Such as "data rows 3, 7 and 12 more" (0-based, header not counted)."""
    mask = pc.fill_null(mask, False)
    found = rows.filter(mask.combine_chunks() if isinstance(mask, pa.ChunkedArray) else mask).to_pylist()
    more = f" and {len(found) - limit} more" if len(found) > limit else ""
    return f"data row{'s' * (len(found) > 1)} {', '.join(map(str, found[:limit]))}{more} (0-based, header not counted)"


def _refuse_drives(cells: pa.ChunkedArray, rows: pa.Array, source: str) -> None:
    drives = pc.match_substring_regex(cells, r"^([A-Za-z]:|\\\\)")
    if pc.any(drives).as_py():
        raise ValueError(
            f"{source}: absolute Windows paths, with a drive or a network share, in {name_rows(drives, rows)}. There "
            "are no such places on this system. Cut each path down to the part below the folder of all images, and "
            "pass that folder with --image_root (image_root= in Python)."
        )


def _refuse_formats(cells: pa.ChunkedArray, rows: pa.Array, source: str, what: str) -> None:
    pattern = "(" + "|".join(ending.replace(".", r"\.") for ending in endings()) + ")$"
    foreign = pc.match_substring_regex(cells, pattern, ignore_case=True)
    if pc.any(foreign).as_py():
        first = cells.filter(pc.fill_null(foreign, False))[0].as_py()
        raise ValueError(
            f"{source}: {what} names a file that is not read, in {name_rows(foreign, rows)}. The first is "
            f"{foreign_format(first)}. {READ} is read."
        )


def _with_slashes(
    cells: pa.ChunkedArray, absolute: pa.ChunkedArray, prefix: str, rows: pa.Array, source: str
) -> pa.ChunkedArray:
    r"""Relative paths with "\", as Windows writes them, with "/"; a file whose name has a "\" keeps it."""
    windows = pc.fill_null(pc.and_(pc.match_substring(cells, "\\"), pc.invert(absolute)), False)
    places = np.flatnonzero(windows.to_numpy())
    if len(places) == 0:
        return cells
    written = cells.take(pa.array(places)).to_pylist()
    slashed = plain_path(pa.chunked_array([[path.replace("\\", "/") for path in written]])).to_pylist()
    as_written = np.array([os.path.exists(prefix + path) for path in written])
    with_slashes = np.array([os.path.exists(prefix + path) for path in slashed])
    both = as_written & with_slashes
    if both.any():
        raise ValueError(
            f"{source}: image paths with backslashes name two files each, one in a folder and one with a backslash in "
            f"its name, in {name_rows(_mask(places[both], len(cells)), rows)}. Write the paths with /, or rename the "
            "files."
        )
    if not (as_written | with_slashes).any():
        raise ValueError(
            f"{source}: image paths are written with backslashes, as on Windows, in {name_rows(windows, rows)}, and no "
            f"such file is there with / either. Set --image_root (image_root= in Python) to the folder that they are "
            "relative to; write the paths with /."
        )
    values = cells.to_pylist()
    for place, path, kept in zip(places, slashed, as_written, strict=True):
        if not kept:
            values[place] = path
    return pa.chunked_array([pa.array(values, pa.string())])


def _mask(places: np.ndarray, count: int) -> pa.Array:
    mask = np.zeros(count, bool)
    mask[places] = True
    return pa.array(mask)


__all__ = ["name_rows", "plain_path", "resolve_paths"]
