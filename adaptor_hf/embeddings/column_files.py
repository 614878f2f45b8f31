"""Files of a cache's further columns: `<name>-00000.arrow`, of one record batch each, written in bounded memory."""

import math
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from .columns import Column, Ragged, arrow_array, entry_of, view_of
from .files import write_batch

MAX_BYTES = 1 << 30


def write_column_shards(
    folder: Path,
    column: Column,
    batches: Iterable[pa.RecordBatch],
    max_bytes: int = MAX_BYTES,
    known: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Join one column of record batches into files of one record batch each, behind those that are there.

    Values go through a temporary file in `folder`: with batches that are memory-mapped, memory holds none of them.
    Where files begin and end depends on the rows alone, not on how they lie in `batches`.

    Args:
        folder: of the modality.
        column: which one; with int8, the batches have its scales, too.
        batches: record batches in the order of the rows; other columns of theirs are left out.
        max_bytes: of the values of one file; a row that is larger has a file of its own.
        known: the column's entry in the manifest as it is, whose files stay; None for a new column.

    Returns:
        The column's entry for the manifest, all its files in it.

    Raises:
        ValueError: a batch has no such column, or one of another type, or `known` is of another column.
        OSError: the disk is full, or the folder cannot be written. No manifest names the files of a call that failed:
            the next one writes over them.
    """
    shards = list(known["shards"]) if known else []
    entry = entry_of(column, shards)
    if known and known != entry:
        names = sorted(name for name in known.keys() | entry if known.get(name) != entry.get(name))
        raise ValueError(f"column {column.name!r} differs from that which {folder} has, in {', '.join(names)}")
    for views in _files_of(column, batches, max_bytes):
        with joined(column, views, folder) as batch:
            shards.append(write_batch(folder / f"{column.name}-{len(shards):05d}.arrow", batch))
    return entry


def _files_of(column: Column, batches: Iterable[pa.RecordBatch], max_bytes: int) -> Iterator[list[list]]:
    """For each file the parts of batches that go into it: a view of each array of the column (`Column.parts`)."""
    held: list[list] = []
    left = max_bytes
    for batch in batches:
        if missing := [part.name for part in column.parts if part.name not in batch.schema.names]:
            raise ValueError(f"a record batch has no column {missing[0]!r}, only {', '.join(batch.schema.names)}")
        views = [view_of(part, batch.column(part.name)) for part in column.parts]
        sizes = np.full(len(batch), column.row_bytes)
        if column.ragged:
            sizes = np.diff(views[0].offsets) * column.row_bytes + 8 * len(column.parts)
        start, ends = 0, np.cumsum(sizes)
        while start < len(batch):
            before = ends[start - 1] if start else 0
            stop = int(np.searchsorted(ends, before + left, side="right"))
            if stop == start and not held:
                stop += 1  # one row that is larger than a file
            if stop > start:
                held.append([_rows(view, start, stop) for view in views])
                left -= ends[stop - 1] - before
            if stop < len(batch):
                yield held
                held, left = [], max_bytes
            start = stop
    if held:
        yield held


def _rows(view: np.ndarray | Ragged, start: int, stop: int) -> np.ndarray | Ragged:
    if isinstance(view, Ragged):
        offsets = view.offsets[start : stop + 1]
        return Ragged(view.values[offsets[0] : offsets[-1]], offsets - offsets[0])
    return view[start:stop]


@contextmanager
def joined(column: Column, views: list[list], folder: Path) -> Iterator[pa.RecordBatch]:
    """
    One record batch of the parts of a column, whose values lie in a temporary file in `folder`, not in memory.

    Args:
        column: which one.
        views: of each part of the rows a view of each array of the column (`Column.parts`).
        folder: on the disk that the batch is written to.
    """
    arrays = {}
    with tempfile.TemporaryFile(dir=folder, prefix=".merge-", suffix=".partial") as file:
        for place, part in enumerate(column.parts):
            pieces = [view[place] for view in views]
            offsets = None
            if column.ragged:
                lengths = np.concatenate([np.diff(piece.offsets) for piece in pieces])
                offsets = np.concatenate([[0], np.cumsum(lengths)])
                pieces = [piece.values for piece in pieces]
            file.seek(start := -(-file.tell() // 64) * 64)
            for piece in pieces:
                file.write(piece)
            file.flush()
            shape = (sum(len(piece) for piece in pieces), *part.element)
            # Nothing cannot be mapped.
            mapped = math.prod(shape) > 0
            values = np.memmap(file, part.dtype, "r", start, shape) if mapped else np.empty(shape, part.dtype)
            arrays[part.name] = arrow_array(part, values, offsets)
        yield pa.RecordBatch.from_arrays(list(arrays.values()), names=list(arrays))


__all__ = ["joined", "write_column_shards"]
