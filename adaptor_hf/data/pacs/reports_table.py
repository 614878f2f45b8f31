"""The table of reports that a radiology information system exports, as one text a key."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ..missing import is_missing

ENCODINGS = ("utf-8-sig", "cp1252")
DELIMITERS = (",", ";", "\t", "|")
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
        path: Of the table, with a header line.
        on: Column of keys.
        text_column: Column of the text; of several columns the texts are joined, a blank line between.
        repeated: What becomes of several different texts of one key, a key of `REPEATED`; equal ones count once.
        encoding: None takes UTF-8, with or without a byte-order mark, or UTF-16 with one, else Windows-1252.
        delimiter: None takes the one of comma, semicolon, tab and bar that the header has most of.

    Returns:
        `ReportTable`. `counts`: `rows`, `keys`, `rows_without_key`, `rows_without_text`, `repeated_keys` (keys with
        several rows), `repeated_keys_that_differ` (where `repeated` decided), `ragged_rows` (too many or too few cells;
        left out).

    Raises:
        FileNotFoundError: No such file.
        ValueError: A column is missing (the message lists those that exist), the table is empty, cut short in a quote,
            or cannot be decoded. No message has a cell of a row.
    """
    path = Path(path)
    if repeated not in REPEATED:
        raise ValueError(f"repeated={repeated!r} is unknown. Choose one of: {', '.join(REPEATED)}.")
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise FileNotFoundError(f"{path}: no such table of reports.") from None
    text, encoding = _decode(data, encoding, path)
    header_line = next((line for line in text.splitlines() if line.strip()), "")
    if delimiter is None:
        delimiter = max(DELIMITERS, key=header_line.count)
    header, rows = _rows(text, delimiter, path)
    wanted = [text_column] if isinstance(text_column, str) else list(text_column)
    places = [_place(header, name, path) for name in (on, *wanted)]
    counts = dict.fromkeys(("rows", "keys", "rows_without_key", "rows_without_text", "repeated_keys",
                            "repeated_keys_that_differ", "ragged_rows"), 0)  # fmt: skip
    texts: dict[str, list[str]] = {}
    number: dict[str, int] = {}
    for row in rows:
        counts["rows"] += 1
        if len(row) != len(header):
            counts["ragged_rows"] += 1
            continue
        key, parts = row[places[0]].strip(), [row[place] for place in places[1:]]
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


def _decode(data: bytes, encoding: str | None, path: Path) -> tuple[str, str]:
    if encoding is None and data[:2] in (b"\xff\xfe", b"\xfe\xff"):
        encoding = "utf-16"
    for name in [encoding] if encoding else ENCODINGS:
        try:
            return data.decode(name), name.removesuffix("-sig")
        except UnicodeDecodeError:
            continue
        except LookupError:
            raise ValueError(f"encoding={encoding!r} is unknown to Python.") from None
    tried = encoding or "UTF-8 and Windows-1252"
    raise ValueError(f"{path}: cannot be decoded as {tried}. Name its encoding, such as --encoding latin-1.")


def _rows(text: str, delimiter: str, path: Path) -> tuple[list[str], list[list[str]]]:
    limit = csv.field_size_limit(1 << 27)
    try:
        rows = [row for row in csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True) if row]
    except csv.Error as error:
        raise ValueError(f"{path}: not a well-formed table ({error}). Check its quotes and its delimiter.") from None
    finally:
        csv.field_size_limit(limit)
    if not rows:
        raise ValueError(f"{path}: the table of reports is empty. Expected a header and at least one row.")
    return [name.strip() for name in rows[0]], rows[1:]


def _place(header: list[str], name: str, path: Path) -> int:
    found = [place for place, column in enumerate(header) if column == name.strip()]
    if not found:
        # Without quotes: private mode cuts out what is quoted.
        raise ValueError(f"{path}: no column {name}. Columns: {', '.join(header)}.")
    if len(found) > 1:
        raise ValueError(f"{path}: the column {name} is there {len(found)} times. Rename all but one.")
    return found[0]


__all__ = ["DELIMITERS", "ENCODINGS", "REPEATED", "ReportTable", "read_report_table"]
