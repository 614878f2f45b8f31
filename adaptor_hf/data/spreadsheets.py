"""An Excel workbook as text, as its export to CSV would write it; other programs' tables refused by name."""

from __future__ import annotations

import datetime
import re
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa

from ..files import check_regular

WORKBOOKS = (".xlsx", ".xlsm")
_EXPORT = 'In Excel: File, Save as, "CSV UTF-8 (comma delimited)". Then pass the .csv file.'
_R = "In R: write.csv(x, 'table.csv', row.names = FALSE, fileEncoding = 'UTF-8')."
FOREIGN = {
    ".xls": f"an Excel workbook of the old format is not read. {_EXPORT}",
    ".xlsb": f"a binary Excel workbook is not read. {_EXPORT}",
    ".ods": "an OpenDocument table is not read. In LibreOffice: Save as, Text CSV, character set UTF-8.",
    ".numbers": "a Numbers table is not read. In Numbers: Export to, CSV, encoding UTF-8.",
    ".sav": "an SPSS file is not read. In SPSS: Save as, CSV, with encoding UTF-8.",
    ".dta": "a Stata file is not read. In Stata: export delimited using table.csv, quote.",
    ".sas7bdat": "a SAS file is not read. In SAS: PROC EXPORT with DBMS=CSV, in a session with UTF-8.",
    ".rds": f"a file of R is not read. {_R}",
    ".rda": f"a file of R is not read. {_R}",
    ".rdata": f"a file of R is not read. {_R}",
    ".mdb": "an Access database is not read. In Access: export the table as a text file, delimited, UTF-8.",
    ".accdb": "an Access database is not read. In Access: export the table as a text file, delimited, UTF-8.",
    ".feather": "a Feather file is not read. In Python: pandas.read_feather(...).to_parquet('table.parquet').",
    ".pkl": "a pickle can run code, and is not read. python -m adaptor_hf.data.convert makes a Parquet file of it.",
    ".pickle": "a pickle can run code, and is not read. python -m adaptor_hf.data.convert makes a Parquet file of it.",
    ".docx": "a Word document is no table. Copy the table into a spreadsheet and export it as CSV UTF-8.",
    ".pdf": "a PDF file is no table. Export the table from its source as CSV UTF-8.",
    ".html": "a web page is no table. Export the table from its source as CSV UTF-8.",
    ".xml": "an XML file is no table. Export the table from its source as CSV UTF-8.",
}
"""Endings of tables that are not read, and what to do with each."""

# Excel keeps 15 digits of a number.
_EXACT = 10**15
_ERRORS_WITHOUT_VALUE = ("#N/A",)
_ROWS_NAMED = 5
_MAX_ROWS = 1 << 20
_MAX_CELLS = 50_000_000
# A few bytes of a zip unpack to any number; a sheet's XML shrinks to a tenth or so.
_UNPACKED_BYTES, _UNPACKED_TIMES, _MOST_BYTES = 1 << 27, 200, 1 << 32


def read_workbook(path: Path) -> pa.Table:
    """
    The one sheet of a workbook that has data, values and not formulas.

    Whole numbers have no point, dates are 2020-01-31 (with a time only where there is one), text stays as it is, so
    that ids kept as text have their zeros; a number format of zeros alone (00000) adds them. Numbers beyond Excel's 15
    digits are in scientific notation, by which the check of ids knows that they are rounded.

    Returns:
        A table of string columns; an empty cell is "". The header is the first row that is not blank.

    Raises:
        ValueError: openpyxl is not installed; no workbook, or a damaged or locked one; several visible sheets with
            data; cells with an error such as #REF!, or formulas whose values were never computed.
    """
    try:
        import openpyxl
    except ModuleNotFoundError:
        raise ValueError(
            f"{path}: reading an Excel workbook needs openpyxl (pip install 'adaptor-hf[excel]'). Without it: {_EXPORT}"
        ) from None
    check_regular(path)
    with _damage_named(path):
        _refuse_bomb(path)
        book = openpyxl.load_workbook(path, read_only=True, data_only=True)
        try:
            shown = [sheet for sheet in book.worksheets if sheet.sheet_state == "visible"]
            sheets = [(sheet.title, rows) for sheet in shown if (rows := _rows(sheet, path))]
        finally:
            book.close()
    if not sheets:
        raise ValueError(f"{path}: the table is empty: no visible sheet of the workbook has data.")
    if len(sheets) > 1:
        raise ValueError(
            f"{path}: {len(sheets)} sheets of the workbook have data, expected one. Save the one that you mean as a "
            f"workbook of its own or as CSV. {_EXPORT}"
        )
    title, rows = sheets[0]
    with _damage_named(path):
        if _has_formulas(path):
            _refuse_uncomputed(path, title)
    width = max(map(len, rows))
    # A row of one cell costs nothing in the file, and is as wide as the widest.
    if width * len(rows) > _MAX_CELLS:
        raise ValueError(
            f"{path}: {len(rows):,} rows of {width:,} cells are more than the {_MAX_CELLS:,} cells that are read of a "
            f"workbook. Take out what stands far outside of the table, or export it. {_EXPORT}"
        )
    rows = [row + [""] * (width - len(row)) for row in rows]
    columns = [
        (name, cells) for name, *cells in zip(*rows, strict=True) if name.strip() or any(cell.strip() for cell in cells)
    ]
    return pa.Table.from_arrays(
        [pa.array(cells, pa.string()) for _, cells in columns], names=[name for name, _ in columns]
    )


@contextmanager
def _damage_named(path: Path) -> Iterator[None]:
    """openpyxl meets damaged workbooks with every kind of exception."""
    try:
        yield
    except MemoryError:
        raise
    except Exception as error:
        if isinstance(error, ValueError) and str(error).startswith(f"{path}"):
            raise
        raise ValueError(
            f"{path}: not an Excel workbook that can be read ({type(error).__name__}): damaged, cut off, locked with a "
            f"password, or another format under this ending. {_EXPORT}"
        ) from None


def _refuse_bomb(path: Path) -> None:
    with zipfile.ZipFile(path) as archive:
        unpacked = sum(entry.file_size for entry in archive.infolist())
    if unpacked > max(_UNPACKED_BYTES, min(_UNPACKED_TIMES * path.stat().st_size, _MOST_BYTES)):
        raise ValueError(
            f"{path}: the workbook unpacks to {unpacked:,} bytes, {_UNPACKED_TIMES} times its size or more, or over "
            f"{_MOST_BYTES:,} in all. If you trust it, export it. {_EXPORT}"
        )


def _rows(sheet: Any, path: Path) -> list[list[str]]:
    """All rows from the header on, blank ones too but for those at the end; cells as text."""
    # Some programs write a wrong size of the sheet, or none.
    sheet.reset_dimensions()
    rows: list[list[str]] = []
    faults, filled = [], 0
    for number, cells in enumerate(sheet.iter_rows(), start=1):
        if number > _MAX_ROWS:
            raise ValueError(f"{path}: a row number beyond Excel's {_MAX_ROWS:,}. The workbook is damaged. {_EXPORT}")
        if all(cell.value is None for cell in cells):
            rows += [[]] if rows else []
            continue
        texts = [_text(cell) for cell in cells]
        if any(cell.data_type == "e" and cell.value not in _ERRORS_WITHOUT_VALUE for cell in cells):
            faults.append(number)
        if not rows and not any(text.strip() for text in texts):
            continue
        rows.append(texts)
        if any(text.strip() for text in texts):
            filled = len(rows)
    if faults:
        more = f" and {len(faults) - _ROWS_NAMED} more" if len(faults) > _ROWS_NAMED else ""
        raise ValueError(
            f"{path}: cells with an error, such as #REF! or #NAME? (which Excel makes of a text that begins with - or "
            f"=), in rows {', '.join(map(str, faults[:_ROWS_NAMED]))}{more} (as Excel numbers them). Correct "
            "them in Excel."
        )
    return rows[:filled]


def _text(cell: Any) -> str:
    value = cell.value
    if value is None:
        return ""
    if isinstance(value, str):
        # Excel's way to write a carriage return.
        return value.replace("_x000D_", "\r")
    if isinstance(value, bool):
        return str(value).upper()
    if isinstance(value, (int, float)):
        if value == int(value) and abs(value) < _EXACT:
            return str(int(value)).zfill(_zeros(cell.number_format))
        return f"{value:.15G}"
    if isinstance(value, datetime.datetime):
        return value.date().isoformat() if value.time() == datetime.time() else value.isoformat(sep=" ")
    return value.isoformat() if isinstance(value, (datetime.date, datetime.time)) else str(value)


def _zeros(number_format: str | None) -> int:
    """Digits of a number format such as 00000, which shows 42 as 00042."""
    return len(number_format) if number_format and re.fullmatch("0+", number_format) else 0


def _has_formulas(path: Path) -> bool:
    with zipfile.ZipFile(path) as archive:
        for name in archive.namelist():
            if name.startswith("xl/worksheets/") and name.endswith(".xml"):
                with archive.open(name) as file:
                    rest = b""
                    while piece := file.read(1 << 20):
                        if re.search(rb"<f[ >/]", rest + piece):
                            return True
                        rest = piece[-2:]
    return False


def _refuse_uncomputed(path: Path, title: str) -> None:
    """Other programs write formulas without values: a cell would be read as empty."""
    import openpyxl

    values = openpyxl.load_workbook(path, read_only=True, data_only=True)
    formulas = openpyxl.load_workbook(path, read_only=True)
    try:
        pair = values[title], formulas[title]
        for sheet in pair:
            sheet.reset_dimensions()
        for number, (row, written) in enumerate(zip(*(sheet.iter_rows() for sheet in pair), strict=True), start=1):
            for cell, formula in zip(row, written, strict=True):
                # A computed text that is empty has the type "str".
                if formula.data_type == "f" and cell.value is None and cell.data_type == "n":
                    raise ValueError(
                        f"{path}, row {number} (as Excel numbers it): a formula whose value was never computed. Open "
                        "the workbook in Excel and save it, or replace the formulas by their values."
                    )
    finally:
        values.close()
        formulas.close()


__all__ = ["FOREIGN", "WORKBOOKS", "read_workbook"]
