"""The table of reports that a radiology information system exports, as one text a key."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from ...privacy.vocabulary import column_list
from ..missing import is_missing

if TYPE_CHECKING:
    import pyarrow as pa

REPEATED: dict[str, Callable[[list[str]], str]] = {
    "join": "\n\n".join,
    "longest": lambda texts: max(texts, key=len),
    "first": lambda texts: texts[0],
    "last": lambda texts: texts[-1],
}
"""What becomes of several different texts of one key, in the order of the table."""


@dataclass
class ReportTable:
    """Texts by key, and what was met on the way."""

    texts: dict[str, str]
    counts: dict[str, int] = field(default_factory=dict)
    encoding: str = "utf-8"
    delimiter: str = ","


def read_report_table(
    path: str | os.PathLike,
    on: str,
    text_column: str | Sequence[str] = "text",
    repeated: str = "join",
    encoding: str | None = None,
    delimiter: str | None = None,
) -> ReportTable:
    """
    Read a delimited table of reports. Keys are text, stripped of white space at their ends and otherwise exact: leading
    zeros stay. A key or text that is only a word for "no value" (`MISSING_WORDS`) is none.

    Args:
        path: Of the table, with a header line; an Excel workbook too.
        on: Column of keys.
        text_column: Column of the text; of several columns the texts are joined, a blank line between.
        repeated: What becomes of several different texts of one key, a key of `REPEATED`; equal ones count once.
        encoding: None takes UTF-8, with or without a byte-order mark, or UTF-16 with one, else Windows-1252.
        delimiter: None takes the one of comma, semicolon, tab and bar that the header and the first rows show.

    Returns:
        `ReportTable`. `counts`: `rows`, `keys`, `rows_without_key`, `rows_without_text`, `repeated_keys` (keys with
        several rows), `repeated_keys_that_differ` (where `repeated` decided), `blank_rows` (all cells empty or blank;
        left out).

    Raises:
        FileNotFoundError: No such file.
        ValueError: A column is missing (the message lists those that exist), or as `read_delimited`: the table is
            empty, its quotes do not close, rows have too many or too few cells, it cannot be decoded, its separator is
            in doubt. No message has a cell of a row.
    """
    path = Path(path)
    if repeated not in REPEATED:
        raise ValueError(f"repeated={repeated!r} is unknown. Choose one of: {', '.join(REPEATED)}.")
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such table of reports.")
    table, encoding, delimiter = _read(path, encoding, delimiter)
    header = [name.strip() for name in table.column_names]
    wanted = [text_column] if isinstance(text_column, str) else list(text_column)
    places = [_place(header, name, path) for name in (on, *wanted)]
    counts = dict.fromkeys(("rows", "keys", "rows_without_key", "rows_without_text", "repeated_keys",
                            "repeated_keys_that_differ", "blank_rows"), 0)  # fmt: skip
    from ..table_files import Source, blank_rows

    texts: dict[str, list[str]] = {}
    number: dict[str, int] = {}
    blank = blank_rows(Source(table))
    counts["blank_rows"] = int(blank.sum())
    used = [table.column(place).to_pylist() for place in places]
    for is_blank, key, *parts in zip(blank, *used, strict=True):
        if is_blank:
            continue
        counts["rows"] += 1
        key = key.strip()
        if is_missing(key):
            counts["rows_without_key"] += 1
            continue
        number[key] = number.get(key, 0) + 1
        known = texts.setdefault(key, [])
        whole = "\n\n".join(part for part in parts if not is_missing(part))
        if not whole:
            counts["rows_without_text"] += 1
        elif whole not in known:
            known.append(whole)
    if not counts["rows"]:
        raise ValueError(f"{path}: the table of reports has no rows.")
    counts["keys"] = len(texts)
    counts["repeated_keys"] = sum(count > 1 for count in number.values())
    counts["repeated_keys_that_differ"] = sum(len(known) > 1 for known in texts.values())
    chosen = {key: REPEATED[repeated](known) if known else "" for key, known in texts.items()}
    return ReportTable(chosen, counts, encoding, delimiter)


def _read(path: Path, encoding: str | None, delimiter: str | None) -> tuple[pa.Table, str, str]:
    from ..delimited import read_delimited
    from ..spreadsheets import FOREIGN, WORKBOOKS, read_workbook
    from ..text_files import suffix_of

    suffix = suffix_of(path)
    if suffix in WORKBOOKS:
        return read_workbook(path), "utf-8", ","
    if suffix in FOREIGN:
        raise ValueError(f"{path}: {FOREIGN[suffix]}")
    found = read_delimited(path, delimiter, encoding=encoding, fallback="cp1252", detect=True)
    return found.table, found.encoding, found.separator


def _place(header: list[str], name: str, path: Path) -> int:
    found = [place for place, column in enumerate(header) if column == name.strip()]
    if not found:
        raise ValueError(f"{path}: no column {name!r}. {column_list(header)}")
    if len(found) > 1:
        raise ValueError(f"{path}: the column {name!r} is there {len(found)} times. Rename all but one.")
    return found[0]


__all__ = ["REPEATED", "ReportTable", "read_report_table"]
