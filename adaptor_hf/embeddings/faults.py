"""Rows that are left out of a cache: listed, counted, and too many of them refused."""

import csv
import io
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from ..files import plain_cell, printable, read_regular, write_csv_to
from .files import write_text
from .table import PairTable, image_name

EXCLUDED = "excluded.csv"
_COLUMNS = ("split", "source_row", "image_id", "file", "reason")


def excluded_rows(table: PairTable) -> list[dict]:
    """Split, source row, image id, file name and reason of each excluded row, in order."""
    rows = sorted(table.faults)
    ids = table.ids.take(rows).to_pylist() if rows else []
    has_images = table.dataset is not None and "image" in table.dataset.column_names
    images = table.dataset.select_columns(["image"]) if has_images else None
    listed = []
    for row, values in zip(rows, ids, strict=True):
        file = image_name(images[[row]].column("image")[0].as_py()) if has_images else ""
        entry = {name: values[name] for name in ("split", "source_row", "image_id")}
        listed.append(entry | {"file": file, "reason": table.faults[row]})
    return listed


def excluded_csv(excluded: list[dict]) -> str:
    """The list of excluded rows as CSV text. It stays beside the cache; it holds file names and no report text."""
    text = io.StringIO()
    write_csv_to(text, _COLUMNS, ([row[name] for name in _COLUMNS] for row in excluded))
    return text.getvalue()


def read_excluded(path: Path) -> list[dict]:
    """The rows of which `excluded_csv` made the text of a file."""
    text = io.StringIO(read_regular(path).decode("utf-8"), newline="")
    rows = [{name: plain_cell(cell) for name, cell in row.items()} for row in csv.DictReader(text)]
    return [row | {"source_row": int(row["source_row"])} for row in rows]


def fault_summary(table: PairTable, cache_dir: Path) -> str:
    """One line: how many rows are excluded, why, and where the list is."""
    counts = fault_counts(table.faults.values())
    return f"{len(table.faults)} of {len(table)} rows are excluded, listed in {cache_dir / EXCLUDED}: {counts}"


def fault_counts(reasons: Iterable[str]) -> str:
    """How often there is each kind of reason, the most frequent first."""
    kinds = Counter(reason.split(":")[0].split(",")[0] for reason in reasons)
    return "; ".join(f"{count} x {kind}" for kind, count in kinds.most_common())


def check_faults(table: PairTable, cache_dir: Path, max_fault_fraction: float) -> None:
    """Write the list and raise ValueError when more than this share of the rows is faulty."""
    if len(table.faults) <= max_fault_fraction * len(table):
        return
    excluded = excluded_rows(table)
    cache_dir.mkdir(parents=True, exist_ok=True)
    write_text(cache_dir / EXCLUDED, excluded_csv(excluded))
    first = "\n".join(
        f"  {row['split']} row {row['source_row']} {printable(row['file'])}: {row['reason']}" for row in excluded[:5]
    )
    raise ValueError(
        f"{fault_summary(table, cache_dir)}. That is more than max_fault_fraction={max_fault_fraction}. The first "
        f"ones:\n{first}\nMend the files or the table, or raise max_fault_fraction. What was computed is kept."
    )
