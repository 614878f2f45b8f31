"""Files of a cache: written aside with their digests and renamed when whole, memory-mapped without a copy."""

import json
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from ..data.content_keys import KEY_DTYPE
from ..files import check_regular, written_aside
from .digests import DigestedFile, data_entry, place_of

NUMPY_DTYPES = {"float16": np.float16, "float32": np.float32}


@contextmanager
def _written(path: Path, sync: bool = True) -> Iterator[Path]:
    try:
        with written_aside(path, sync=sync) as aside:
            yield aside
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno else error
        raise OSError(
            error.errno,
            f"cannot write {path}: {reason}. Nothing half-written was kept; finished parts of the "
            "cache stay. Free space on (or allow writing to) this folder and run the same command again",
        ) from error


def write_batch(path: Path, batch: pa.RecordBatch, *, seal: bool = False) -> dict:
    """Write one Arrow record batch as an Arrow stream file, the format that `datasets.Dataset.from_file` maps."""
    return write_batches(path, batch.schema, [batch], seal=seal)


def write_batches(path: Path, schema: pa.Schema, batches: Iterable[pa.RecordBatch], *, seal: bool = False) -> dict:
    """Write record batches, as they come, as one Arrow stream file.

    Args:
        path: the file.
        schema: of all batches.
        batches: record batches.
        seal: end the file with a digest for `check_seal`; for files that no manifest names. Readers of Arrow streams
            do not look behind the stream's end.

    Returns:
        Its manifest entry: name, rows, size and digests of what was written.
    """
    rows = 0
    with _written(path) as aside, open(aside, "wb") as file:
        digested = DigestedFile(file)
        with pa.ipc.new_stream(digested, schema) as writer:
            for batch in batches:
                writer.write_batch(batch)
                rows += len(batch)
        if seal:
            digested.seal(place_of(path))
    return {"file": path.name, "rows": rows} | digested.entry()


def json_bytes(value: Any) -> bytes:
    """An object as `write_json` writes it: UTF-8, sorted names, one line a value."""
    return (json.dumps(value, indent=1, sort_keys=True, ensure_ascii=False) + "\n").encode("utf-8")


def write_json(path: Path, value: Any) -> None:
    """Write JSON with sorted keys, aside and renamed."""
    with _written(path) as aside:
        aside.write_bytes(json_bytes(value))


def write_text(path: Path, text: str) -> dict:
    """Write UTF-8 text, aside and renamed; returns its manifest entry: name, size and digests."""
    data = text.encode("utf-8", "backslashreplace")
    with _written(path) as aside:
        aside.write_bytes(data)
    return {"file": path.name} | data_entry(data)


def write_bytes(path: Path, data: bytes) -> None:
    """Write a small file aside and rename it, without waiting for the disk: for files that carry their own digest."""
    with _written(path, sync=False) as aside:
        aside.write_bytes(data)


def map_table(path: Path) -> pa.Table:
    """Memory-map an Arrow file of any number of record batches; their buffers point into the file.

    Raises:
        FileNotFoundError: the file is missing.
        ValueError: the file is truncated or damaged.
    """
    return pa.Table.from_batches(*_mapped(path))


def map_batches(path: Path) -> list[pa.RecordBatch]:
    """The record batches of a file, memory-mapped, with errors as of `map_table`."""
    return _mapped(path)[0]


def _mapped(path: Path) -> tuple[list[pa.RecordBatch], pa.Schema]:
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing from the cache. Copy it back, or delete {path.parent} and rebuild")
    try:
        with pa.memory_map(str(check_regular(path))) as source, pa.ipc.open_stream(source) as stream:
            return list(stream), stream.schema
    except (pa.ArrowInvalid, OSError) as error:
        raise ValueError(f"{path} is truncated or damaged ({error}). Delete {path.parent} and rebuild") from error


def map_batch(path: Path) -> pa.RecordBatch:
    """Memory-map an Arrow file of one record batch.

    Raises:
        FileNotFoundError: the file is missing.
        ValueError: the file is truncated, damaged, or has more than one record batch.
    """
    batches = map_batches(path)
    if len(batches) != 1:
        raise ValueError(f"{path} has {len(batches)} record batches, expected 1. Delete {path.parent} and rebuild")
    return batches[0]


def embedding_batch(vectors: np.ndarray, columns: dict[str, np.ndarray | pa.Array]) -> pa.RecordBatch:
    """Record batch with a fixed-size list column `embedding` from (n, D) vectors, beside further columns."""
    flat = pa.array(np.ascontiguousarray(vectors).reshape(-1))
    arrays = {"embedding": pa.FixedSizeListArray.from_arrays(flat, vectors.shape[1])}
    for name, values in columns.items():
        arrays[name] = key_array(values) if getattr(values, "dtype", None) == KEY_DTYPE else pa.array(values)
    return pa.RecordBatch.from_arrays(list(arrays.values()), names=list(arrays))


def key_array(keys: np.ndarray) -> pa.Array:
    """(n,) 16-byte keys as an Arrow fixed-size binary array."""
    keys = np.ascontiguousarray(keys, dtype=KEY_DTYPE)
    return pa.FixedSizeBinaryArray.from_buffers(pa.binary(16), len(keys), [None, pa.py_buffer(keys.view(np.uint8))])


def key_view(batch: pa.RecordBatch, column: str) -> np.ndarray:
    """(n,) view of a column of 16-byte keys."""
    array = batch.column(column)
    return np.frombuffer(array.buffers()[1], dtype=KEY_DTYPE)[array.offset : array.offset + len(array)]
