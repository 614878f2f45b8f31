"""JSON files of annotations: read whole, with errors that name the file and the entry."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..files import parse_json, read_regular

if TYPE_CHECKING:
    import pandas as pd

MAX_JSON_BYTES = 1 << 30
"""Largest file of annotations that is read."""


def load_json(path: Path, name: str, *kinds: type) -> Any:
    """
    A JSON file whose top is an object or a list.

    Raises:
        ValueError: Not JSON, cut short, or of another kind. The message names the file.
    """
    try:
        content = parse_json(read_regular(path, MAX_JSON_BYTES))
    except ValueError as error:
        raise ValueError(f"{name}: not readable JSON ({error}). Is it fully downloaded?") from None
    if not isinstance(content, kinds):
        expected = " or ".join(kind.__name__ for kind in kinds)
        raise ValueError(f"{name}: a JSON {type(content).__name__}, expected {expected}.")
    return content


def json_table(entries: Any, columns: tuple[str, ...], name: str) -> pd.DataFrame:
    """
    The named values of a list of objects.

    Raises:
        ValueError: No list, or an entry lacks a name. The message says which entry, and what it has.
    """
    import pandas as pd

    if not isinstance(entries, list):
        raise ValueError(f"{name}: a list is missing. Expected entries with {', '.join(columns)}.")
    values = {column: [] for column in columns}
    for position, entry in enumerate(entries, start=1):
        try:
            for column in columns:
                values[column].append(entry[column])
        except (KeyError, TypeError):
            found = ", ".join(entry) if isinstance(entry, dict) else type(entry).__name__
            raise ValueError(f"{name}, entry {position}: expected {', '.join(columns)}, found {found}.") from None
    return pd.DataFrame({column: pd.Series(cells, dtype=object) for column, cells in values.items()})


__all__ = ["json_table", "load_json"]
