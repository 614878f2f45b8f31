"""Convert metadata that SLIP keeps in pickles (.npy of dicts, .pkl of tuples) to Parquet or JSON lines; a command."""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..files import open_regular, written_aside
from ..privacy.gate import guarded, refuses
from ..privacy.mode import error_text
from .restricted_pickle import load_npy, load_pickle

if TYPE_CHECKING:
    import pyarrow as pa

TUPLE_NAMES = {3: ("index", "title", "description")}
"""Names of the items of tuples, by their number: yfcc15m.pkl has three."""

OUTPUTS = (".parquet", ".jsonl")


def read_pickled(path: str | os.PathLike, columns: Sequence[str] | None = None) -> pa.Table:
    """
    A table from a .npy or .pkl file of SLIP, without running any code in it.

    Taken are lists or arrays of dicts (cc3m.npy, cc12m.npy: a column a key; keys that a row lacks are null), of tuples
    (yfcc15m.pkl: `index`, `title`, `description`) and of plain values (`sun397` file lists: `value`).

    Args:
        columns: Names of the items of tuples, or of the one column of plain values.

    Raises:
        FileNotFoundError: No such file.
        ValueError: The file names other classes than tensors, numpy and builtin types (the message names them), is
            damaged, or holds no table.
    """
    path = Path(path)
    if path.suffix not in (".npy", ".pkl", ".pickle"):
        raise ValueError(f"{path}: expected a .npy, .pkl or .pickle file.")
    try:
        if path.suffix == ".npy":
            content = load_npy(path)
        else:
            with open_regular(path) as file:
                content = load_pickle(file)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    try:
        return _table(content, columns)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def write_table(table: pa.Table, path: str | os.PathLike) -> None:
    """
    Write Parquet or JSON lines, by the suffix; nothing half-written is left.

    Raises:
        ValueError: Another suffix.
    """
    import pyarrow.parquet as pq

    path = Path(path)
    if path.suffix not in OUTPUTS:
        raise ValueError(f"{path}: the output's name ends in {' or '.join(OUTPUTS)}.")
    with written_aside(path) as aside:
        if path.suffix == ".parquet":
            pq.write_table(table, aside)
        else:
            with open(aside, "w", encoding="utf-8") as file:
                for batch in table.to_batches():
                    file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in batch.to_pylist())


def _table(content: Any, columns: Sequence[str] | None) -> pa.Table:
    import pyarrow as pa

    rows = _plain(content.tolist() if isinstance(content, np.ndarray) else content)
    if not isinstance(rows, list) or not rows:
        raise ValueError(f"it holds {type(content).__name__}, expected a list or an array with at least one row.")
    kinds = {dict if isinstance(row, dict) else tuple if isinstance(row, (list, tuple)) else None for row in rows}
    if len(kinds) > 1:
        raise ValueError("its rows are of different kinds, expected dicts, tuples, or plain values.")
    kind = kinds.pop()
    if kind is dict:
        names = list(dict.fromkeys(name for row in rows for name in row))
        values = {str(name): [row.get(name) for row in rows] for name in names}
    else:
        widths = {len(row) for row in rows} if kind is tuple else {1}
        width = widths.pop()
        names = columns or (TUPLE_NAMES.get(width) if kind is tuple else ("value",))
        if widths or names is None or len(names) != width:
            raise ValueError(
                f"its rows have {', '.join(map(str, sorted({width, *widths})))} items; name each with --columns."
            )
        cells = zip(*rows, strict=True) if kind is tuple else [rows]
        values = {name: list(column) for name, column in zip(names, cells, strict=True)}
    try:
        return pa.table({name: pa.array(column) for name, column in values.items()})
    except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
        raise ValueError(f"a column holds values of several types ({error}).") from None


def _plain(value: Any) -> Any:
    """Numpy values, tensors and bytes as Python's own; sets sorted."""
    if isinstance(value, (str, int, float, type(None))) and not isinstance(value, np.generic):
        return value
    if isinstance(value, dict):
        return {_plain(name): _plain(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(map(_plain, value))
    if isinstance(value, (set, frozenset)):
        return sorted(map(_plain, value))
    if isinstance(value, (bytes, bytearray)):
        return bytes(value).decode("utf-8")
    if hasattr(value, "tolist"):
        return _plain(value.tolist())
    raise ValueError(f"it holds a {type(value).__name__}, which has no place in a table.")


@guarded(refuses("It writes rows as they are: convert the table where only you read it, then use the scripts."))
def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m adaptor_hf.data.convert",
        description="Convert SLIP's cc3m.npy, cc12m.npy, yfcc15m.pkl or file lists to a table that the loaders read.",
    )
    parser.add_argument("source", type=Path, help="a .npy, .pkl or .pickle file")
    parser.add_argument("output", type=Path, help="a .parquet or .jsonl file")
    parser.add_argument("--columns", nargs="+", help="names of the items of a row, where rows are tuples or values")
    options = parser.parse_args(arguments)
    try:
        if options.output.suffix not in OUTPUTS:
            raise ValueError(f"{options.output}: the output's name ends in {' or '.join(OUTPUTS)}.")
        table = read_pickled(options.source, options.columns)
        write_table(table, options.output)
    except (ValueError, OSError) as error:
        raise SystemExit(f"error: {error_text(error)}") from error
    print(f"Wrote {options.output}: {len(table):,} rows with {', '.join(table.column_names)}.")


if __name__ == "__main__":
    main()
