"""The one reader of delimited tables: every cell as exact text, or an error that names the row.

Arrow parses; it lets a quote that never closes, and text after a closing quote, pass in silence. So the quotes are
checked first, all at once, in the file's bytes. What is not plain goes through Python's `csv`, which knows the row.
"""

from __future__ import annotations

import csv
import io
import mmap
import re
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv

from ..files import printable
from .text_files import decoded, read_utf8, say_once, suffix_of

SEPARATORS = {".csv": ",", ".tsv": "\t", ".tab": "\t", ".txt": "\t"}
NAMES = {",": "comma", ";": "semicolon", "\t": "tab", "|": "bar"}
"""Separators that are looked for, and the words by which an option names them."""

_BLOCK_BYTES = 1 << 24
_SAMPLE_BYTES = 1 << 18
_SAMPLE_ROWS = 100
_MAX_CELL = 1 << 24
_QUOTE, _LINE_ENDS = ord('"'), (ord("\n"), ord("\r"))
_STATEMENT = re.compile(rb"\s*\"?sep=(.)\"?[ \t]*(?:\r\n|\r|\n)", re.IGNORECASE)


@dataclass
class Delimited:
    """A table's cells as text, and how the file is written."""

    table: pa.Table
    separator: str
    encoding: str


def read_delimited(
    path: Path,
    sep: str | None = None,
    *,
    encoding: str | None = None,
    fallback: str | None = None,
    header: Sequence[str] | None = None,
    quoting: bool = True,
    detect: bool = False,
) -> Delimited:
    """
    Read a delimited table: no numbers, no dates, no missing-value words; lines without any character are no rows.

    Args:
        path: Also compressed, by its ending.
        sep: Separator, one character or a word of `NAMES`. None takes that of a first line "sep=;", else that of the
            header, which must be beyond doubt.
        encoding, fallback: See `read_utf8`.
        header: Names of the columns of a file without header line.
        quoting: Whether cells may stand in quotes; without, a quote is an ordinary character and a row is a line.
        detect: Any of `NAMES` may be the separator, whatever the file's ending.

    Returns:
        `Delimited`: a table of string columns without nulls.

    Raises:
        FileNotFoundError, OSError: No such file, or it cannot be unpacked.
        ValueError: The table is empty, is no text or not of the encoding; its separator is in doubt; a quote does not
            close, text follows a closing quote, or a row has more or fewer cells than the header. The message names
            file, data row and line, and no cell.
    """
    path = Path(path)
    data, start, encoding = read_utf8(path, encoding, fallback=fallback)
    sep = None if sep is None else separator(sep)
    sample = _sample(data, start, path)
    stated = _STATEMENT.match(sample)
    if stated is not None and stated[1].decode("utf-8", "replace") in NAMES:
        given = stated[1].decode("utf-8", "replace")
        if sep not in (None, given):
            raise ValueError(f"{path}: its first line says sep={given}, which is not --delimiter ({_named(sep)}).")
        sep, start = given, start + stated.end()
        sample = sample[stated.end() :]
    elif sep is None:
        default = "," if detect else SEPARATORS.get(suffix_of(path))
        sep = _found_separator(sample, default, path)
        if sep != default:
            say_once(str(path), f"The table is separated by {_named(sep)}, as its header shows.")
    names, width = (list(header), len(header)) if header is not None else _header(sample, sep, quoting, path)
    first = start if header is not None else None
    table = _parsed(data, start, first, sep, names, width, quoting)
    if table is None:
        table = _read_slowly(data, start, sep, names, width, header is not None, quoting, path)
    return Delimited(table, sep, encoding)


def separator(value: str) -> str:
    """
    A separator as the option gives it, such as ";", "semicolon" or "\\t", as one character.

    Raises:
        ValueError: It is none.
    """
    words = {name: mark for mark, name in NAMES.items()} | {"\\t": "\t"}
    value = words.get(value.lower(), value)
    if len(value) != 1 or value in '"\r\n' or not value.isascii():
        raise ValueError(
            f"--delimiter (sep= or delimiter= in Python) is one character or one of {', '.join(NAMES.values())}, got "
            f"{value!r}."
        )
    return value


def _named(sep: str) -> str:
    return f"a {NAMES[sep]}" if sep in NAMES else repr(sep)


def _sample(data: bytes | mmap.mmap, start: int, path: Path) -> bytes:
    """Whole lines from the beginning."""
    sample = bytes(data[start : start + _SAMPLE_BYTES])
    if start + len(sample) < len(data):
        ends = [place for mark in (b"\n", b"\r") if (place := sample.rfind(mark)) >= 0]
        if not ends:
            raise ValueError(
                f"{printable(path)}: no line ends in its first {_SAMPLE_BYTES:,} bytes, so it has no header. It is "
                "damaged or no table: export it again."
            )
        sample = sample[: ends[0] + 1]
    if not sample.strip():
        raise ValueError(f"{path}: the table is empty. Expected a header and at least one row.")
    return sample


def _sample_rows(sample: bytes, sep: str, quoting: bool = True) -> list[list[str]]:
    """The first rows, as far as they are well formed."""
    text = io.StringIO(sample.decode("utf-8", "replace"), newline="")
    rows = []
    with _long_cells():
        reader = csv.reader(text, delimiter=sep, strict=True, quoting=csv.QUOTE_MINIMAL if quoting else csv.QUOTE_NONE)
        try:
            for row in reader:
                if row:
                    rows.append(row)
                if len(rows) > _SAMPLE_ROWS:
                    break
        except csv.Error:
            pass
    return rows


def _found_separator(sample: bytes, default: str | None, path: Path) -> str:
    """The separator that the header has and that the first rows agree with."""
    rows = {sep: _sample_rows(sample, sep) for sep in NAMES}
    in_header = [sep for sep, found in rows.items() if found and len(found[0]) > 1]
    if len(in_header) > 1:
        fitting = [sep for sep in in_header if all(len(row) in _widths(rows[sep]) for row in rows[sep][1:])]
        if len(fitting) == 1 or "\t" in fitting:
            return "\t" if "\t" in fitting else fitting[0]
        if fitting or default not in in_header:
            choices = " and ".join(NAMES[sep] for sep in fitting or in_header)
            raise ValueError(
                f"{path}: its header and first rows could be separated by {choices}. Say which with --delimiter (sep= "
                "in Python), such as --delimiter semicolon."
            )
        return default
    if in_header:
        return in_header[0]
    if default is None:
        raise ValueError(
            f"{path}: no comma, semicolon, tab or bar separates its header. Say what does with --delimiter (sep= in "
            "Python)."
        )
    return default


def _widths(rows: list[list[str]]) -> tuple[int, int]:
    """Numbers of cells that rows below this header may have: NIH's header ends in commas that its rows do not have."""
    names = rows[0]
    return len(names), max((place for place, name in enumerate(names, 1) if name.strip()), default=1)


def _header(sample: bytes, sep: str, quoting: bool, path: Path) -> tuple[list[str], int]:
    """The header's names, and how many of them the rows have."""
    rows = _sample_rows(sample, sep, quoting)
    if not rows:
        raise ValueError(
            f"{path}: a quote in the header does not close, or text follows it. Check the quotes of the first line."
        )
    whole, trimmed = _widths(rows)
    return rows[0], trimmed if len(rows) > 1 and len(rows[1]) == trimmed else whole


def _parsed(
    data: bytes | mmap.mmap, start: int, first: int | None, sep: str, names: list[str], width: int, quoting: bool
) -> pa.Table | None:
    """The table by Arrow; None where the quotes are not plain, or rows or bytes are faulty."""
    quotes = np.zeros(0, np.int64)
    if quoting:
        quotes = _quote_places(data, start)
        if not _plain_quotes(data, start, quotes, sep):
            return None
    if first is None:
        # Blank lines before the header are passed over, as `csv` does.
        begin = start
        while begin < len(data) and data[begin] in _LINE_ENDS:
            begin += 1
        first = _row_end(data, begin, quotes) or len(data)
        if b"\r" in bytes(data[begin:first]).removesuffix(b"\r\n"):
            return None  # line ends of old Macs
    whole = pa.py_buffer(data)
    columns = [f"{place}" for place in range(width)]
    options = {
        "parse_options": pyarrow.csv.ParseOptions(
            delimiter=sep, newlines_in_values=quoting, quote_char='"' if quoting else False
        ),
        "convert_options": pyarrow.csv.ConvertOptions(column_types=dict.fromkeys(columns, pa.string())),
    }

    def parse(block: tuple[int, int]) -> pa.Table | None:
        # A block a call: between its own blocks Arrow loses the line feed of a CRLF inside quotes.
        begin, end = block
        piece = whole.slice(begin, end - begin)
        read = pyarrow.csv.ReadOptions(column_names=columns, block_size=end - begin + 1, use_threads=False)
        try:
            return pyarrow.csv.read_csv(pa.BufferReader(piece), read_options=read, **options)
        except pa.ArrowInvalid:
            return None

    empty = pa.table({name: pa.array([], pa.string()) for name in columns})
    with ThreadPoolExecutor() as pool:
        tables = list(pool.map(parse, _blocks(data, first, quotes)))
    if any(table is None for table in tables):
        return None
    return pa.concat_tables([empty, *tables]).rename_columns(names[:width])


def _quote_places(data: bytes | mmap.mmap, start: int) -> np.ndarray:
    """(n,) int64 places of all quotes."""
    values = np.frombuffer(data, np.uint8)
    found = [
        np.flatnonzero(values[begin : begin + _BLOCK_BYTES] == _QUOTE) + begin
        for begin in range(start, len(values), _BLOCK_BYTES)
    ]
    return np.concatenate(found) if found else np.zeros(0, np.int64)


def _plain_quotes(data: bytes | mmap.mmap, start: int, quotes: np.ndarray, sep: str) -> bool:
    """Whether every quote opens at the start of a cell, closes at its end, or is doubled inside."""
    if len(quotes) == 0:
        return True
    if len(quotes) % 2:
        return False
    values = np.frombuffer(data, np.uint8)
    begins = np.flatnonzero(np.diff(quotes, prepend=-2) != 1)
    ends = np.append(begins[1:], len(quotes))
    edges = np.array([ord(sep), *_LINE_ENDS], np.uint8)
    # An even number of quotes lies outside: a run of them from there opens a cell, one that leads there closes it.
    opening, closing = quotes[begins[begins % 2 == 0]], quotes[ends[ends % 2 == 0] - 1]
    before = opening[opening > start] - 1
    after = closing[closing < len(values) - 1] + 1
    return bool(np.isin(values[before], edges).all() and np.isin(values[after], edges).all())


def _blocks(data: bytes | mmap.mmap, start: int, quotes: np.ndarray) -> Iterator[tuple[int, int]]:
    """Begin and end of pieces of whole rows, each of about `_BLOCK_BYTES`."""
    while start < len(data):
        end = _row_end(data, start + _BLOCK_BYTES, quotes) if len(data) - start > _BLOCK_BYTES else None
        yield start, end or len(data)
        start = end or len(data)


def _row_end(data: bytes | mmap.mmap, place: int, quotes: np.ndarray) -> int | None:
    """Behind the first line end from `place` on that is not inside quotes; None if there is none."""
    while True:
        end = data.find(b"\n", place)
        if end < 0:
            return None
        inside = int(np.searchsorted(quotes, end))
        if inside % 2 == 0:
            return end + 1
        place = int(quotes[inside]) + 1


def _read_slowly(
    data: bytes | mmap.mmap,
    start: int,
    sep: str,
    names: list[str],
    width: int,
    headless: bool,
    quoting: bool,
    path: Path,
) -> pa.Table:
    """The table by Python's `csv`, or an error that names the first faulty row."""
    above = bytes(data[:start]).decode("utf-8-sig")
    decoded(data, path)
    lines = io.TextIOWrapper(pa.BufferReader(pa.py_buffer(data).slice(start)), encoding="utf-8", newline="")
    style = csv.QUOTE_MINIMAL if quoting else csv.QUOTE_NONE
    rows: list[list[str]] = []
    skipped = headless
    before = len(above.splitlines())
    line = before + 1
    with _long_cells():
        reader = csv.reader(lines, delimiter=sep, strict=True, quoting=style)
        while True:
            try:
                row = next(reader, None)
            except csv.Error as error:
                now = before + reader.line_num
                raise ValueError(_quote_fault(str(error), len(rows), line, now, skipped, path)) from None
            if row is None:
                break
            if row and not skipped:
                skipped = True
            elif row:
                if len(row) != width:
                    if len(row) > 1 or row[0].strip():
                        last = not lines.read(1) and data[len(data) - 1] not in _LINE_ENDS
                        raise ValueError(_width_fault(len(row), width, len(rows), line, sep, last, path))
                    row = [""] * width
                rows.append(row)
            line = before + reader.line_num + 1
    columns = zip(*rows, strict=True) if rows else [()] * width
    return pa.Table.from_arrays([pa.array(cells, pa.string()) for cells in columns], names=names[:width])


def _row_named(row: int, line: int, path: Path) -> str:
    return f"{path}, data row {row} (0-based, header not counted; line {line})"


def _quote_fault(error: str, row: int, line: int, now: int, past_header: bool, path: Path) -> str:
    where = _row_named(row, line, path) if past_header else f"{path}, header (line {line})"
    if "unexpected end" in error:
        return (
            f"{where}: a quote opens there and never closes, so that it holds all {now - line} lines after it. Close "
            'it, write a quote that is meant as such as two (""), or, if the file is cut off, export it again.'
        )
    if "expected after" in error:
        return (
            f'{where}: text follows a closing quote in line {now}. Write a quote inside a quoted cell as two (""). Or '
            f"the quote that opens in line {line} should have closed earlier and took in the rows after it: close it."
        )
    if "field limit" in error:
        return (
            f"{where}: a cell of over {_MAX_CELL:,} characters. A quote that opens there or before does not close: "
            "close it, or export the file again."
        )
    return f"{where}: not a well-formed table ({error}). Check its quotes and its separator."


def _width_fault(found: int, width: int, row: int, line: int, sep: str, last: bool, path: Path) -> str:
    cut = " It is the last row and has no line end: the file may be cut off; export it again." if last else ""
    cells = "1 cell" if found == 1 else f"{found} cells"
    return (
        f"{_row_named(row, line, path)}: {cells}, expected {width} as in the header.{cut} Check for an unquoted "
        f"{NAMES.get(sep, repr(sep))} or line break, a quote that does not close, or another separator (--delimiter)."
    )


@contextmanager
def _long_cells() -> Iterator[None]:
    limit = csv.field_size_limit(_MAX_CELL)
    try:
        yield
    finally:
        csv.field_size_limit(limit)


__all__ = ["NAMES", "SEPARATORS", "Delimited", "read_delimited", "separator"]
