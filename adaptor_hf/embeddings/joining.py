"""Joins pieces into files of one record batch each, column by column; their numbers pass through a temporary file."""

import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import BinaryIO

import numpy as np
import pyarrow as pa

from .columns import Column, Ragged, arrow_array, view_of
from .files import write_batch

FILE_BYTES = 1 << 30
"""About the size of a file of a column beside the pooled vector."""


def write_columns(path: Path, table: pa.Table, columns: list[Column], others: tuple[str, ...] = ()) -> dict:
    """Write columns of a table, and the `others` behind them, as one record batch, holding none of the columns in
    memory.

    Args:
        path: the file.
        table: pieces side by side, memory-mapped.
        columns: large ones.
        others: names of small ones; binary ones are keys.

    Returns:
        Its manifest entry.
    """
    with ExitStack() as opened:
        arrays = {}
        for part in (part for column in columns for part in column.parts):
            file = opened.enter_context(tempfile.TemporaryFile(dir=path.parent, prefix=".merge-", suffix=".partial"))
            arrays[part.name] = _joined(part, table[part.name], file)
        for name in others:
            column = table[name].cast(pa.binary(16)) if pa.types.is_binary(table[name].type) else table[name]
            arrays[name] = pa.concat_arrays(column.chunks)
        return write_batch(path, pa.RecordBatch.from_arrays(list(arrays.values()), names=list(arrays)))


def _joined(part: Column, chunks: pa.ChunkedArray, file: BinaryIO) -> pa.Array:
    """All chunks as one array, whose numbers lie in a file."""
    offsets, elements = [np.zeros(1, np.int64)], 0
    for chunk in chunks.chunks:
        view = view_of(part, chunk)
        if isinstance(view, Ragged):
            offsets.append(view.offsets[1:] - view.offsets[0] + elements)
            view = view.values[view.offsets[0] : view.offsets[-1]]
        file.write(np.ascontiguousarray(view))
        elements += len(view)
    file.flush()
    shape = part.shape[1:] if part.ragged else part.shape
    values = (
        np.memmap(file, part.dtype, "r", shape=(elements, *shape)) if elements else np.empty((0, *shape), part.dtype)
    )
    return arrow_array(part, values, np.concatenate(offsets) if part.ragged else None)


def row_bytes(column: Column, chunks: pa.ChunkedArray) -> np.ndarray:
    """(n,) bytes of each row."""
    if not column.ragged:
        return np.full(len(chunks), column.row_bytes, np.int64)
    return (
        np.concatenate([np.diff(view_of(column.parts[0], chunk).offsets) for chunk in chunks.chunks]) * column.row_bytes
    )


def file_ranges(sizes: np.ndarray, limit: int) -> Iterator[tuple[int, int]]:
    """Consecutive (start, stop) of rows of these sizes, as many as make at most `limit`, and at least one."""
    start, total = 0, np.concatenate([[0], np.cumsum(sizes)])
    while start < len(sizes):
        stop = max(start + 1, int(np.searchsorted(total, total[start] + limit, side="right")) - 1)
        yield start, stop
        start = stop
