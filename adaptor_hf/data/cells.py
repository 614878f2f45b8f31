"""Cells that are no id, path or report: far too long, or with a NUL character, which ends a name for the system."""

from __future__ import annotations

import pyarrow as pa
import pyarrow.compute as pc

from .image_paths import name_rows

MAX_NAME_CHARACTERS = 4096
"""Longest id, path, view or split; Linux opens no longer path."""
MAX_TEXT_CHARACTERS = 1_000_000
"""Longest report; a long one has some thousand."""


def check_cells(column: pa.ChunkedArray, column_name: str, limit: int, rows: pa.Array, source: str) -> pa.ChunkedArray:
    """
    A column of text, unless a cell has more than `limit` characters or a NUL.

    Args:
        rows (`pyarrow.Array`): Numbers of the rows, for messages.
        source (`str`): What messages call the table.

    Raises:
        ValueError: naming the column and the rows, not the cells.
    """
    faults = {
        f"over {limit:,} characters": pc.greater(pc.utf8_length(column), limit),
        "a NUL character": pc.match_substring(column, "\0"),
    }
    for fault, mask in faults.items():
        if pc.any(mask).as_py():
            raise ValueError(
                f"{source}: a cell with {fault} in column {column_name!r}, {name_rows(mask, rows)}. It is damaged, or "
                "a quote before it does not close: correct it, or leave the row out."
            )
    return column


__all__ = ["MAX_NAME_CHARACTERS", "MAX_TEXT_CHARACTERS", "check_cells"]
