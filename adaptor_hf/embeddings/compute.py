"""Runs a tower over a piece of a plan, batch by batch, and leaves out the rows that cannot be used."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from .columns import Column, Ragged, arrow_features, faulty_rows, to_arrow
from .extract import extract
from .files import key_array
from .stored import StoredImages, StoredTexts

if TYPE_CHECKING:
    from datasets import Features

# Of vectors that are compared by their direction.
_ALL_ZEROS = {"embedding": "embedding is all zeros", "view_embeds": "a vector of view_embeds is all zeros"}


@dataclass
class Batch:
    """What a loader gives for consecutive planned rows.

    Attributes:
        inputs: of the tower, for the rows that could be read; empty if there is none.
        kept: (m,) offsets of these rows in the batch.
        digests: (m,) keys of their content.
        faults: offset of each other row -> reason.
    """

    inputs: dict[str, Any]
    kept: np.ndarray
    digests: np.ndarray
    faults: dict[int, str]


def vector_faults(vectors: np.ndarray) -> dict[int, str]:
    """Row -> reason for vectors that cannot be used: NaN, inf, or zero (it has no direction to compare)."""
    faults = {}
    finite = np.isfinite(vectors).all(axis=1)
    for row in np.nonzero(~finite)[0]:
        faults[int(row)] = f"embedding is NaN or infinite in {vectors.dtype}"
    for row in np.nonzero(finite & ~vectors.any(axis=1))[0]:
        faults[int(row)] = _ALL_ZEROS["embedding"]
    return faults


def batch_faults(columns: list[Column], arrays: dict[str, np.ndarray | Ragged]) -> dict[int, str]:
    """Row -> reason for rows with numbers that a column cannot hold, or with a vector that has no direction. What int8
    holds is judged before it is quantised, as float16, which it is read as."""
    faults: dict[int, str] = {}
    for column in columns:
        values = arrays[column.name]
        dtype = "float16" if column.dtype == "int8" else column.dtype
        for row in faulty_rows(column, values):
            faults.setdefault(int(row), f"{column.name} is NaN or infinite in {dtype}")
        if column.name in _ALL_ZEROS:
            with np.errstate(over="ignore"):
                directed = values.astype(dtype).any(axis=-1).reshape(len(values), -1).all(axis=1)
            for row in np.nonzero(~directed)[0]:
                faults.setdefault(int(row), _ALL_ZEROS[column.name])
    return faults


def embed_rows(
    planned: pa.Table,
    *,
    tower: Any,
    stored: StoredImages | StoredTexts,
    columns: list[Column],
    batches: Iterator[Batch],
    batch_size: int,
    done: Callable[[int], Any],
) -> tuple[pa.Table, dict[int, str]]:
    """Embed consecutive planned rows.

    Args:
        planned: the rows: `source` keys, and `num_tokens` for texts.
        tower: frozen, in eval mode.
        stored: what is kept beside the pooled vector.
        columns: that the tower gives for it.
        batches: of these rows; what comes after them is left there.
        batch_size: rows of a batch; the last one of these rows may be smaller.
        done: is told the number of rows of each finished batch.

    Returns:
        The rows that can be used, and by its number the reason of each other row.
    """
    schema = piece_features(columns, "num_tokens" in planned.column_names).arrow_schema
    parts, faults = [], {}
    for first in range(0, len(planned), batch_size):
        batch = next(batches)
        faults |= {first + offset: reason for offset, reason in batch.faults.items()}
        if len(batch.kept):
            arrays = extract(tower, batch.inputs, stored)
            rows = first + batch.kept
            bad = batch_faults(columns, arrays)
            faults |= {int(rows[place]): reason for place, reason in bad.items()}
            good = np.setdiff1d(np.arange(len(rows)), np.fromiter(bad, dtype=np.int64))
            parts.append(_record_batch(columns, arrays, good, planned.take(rows[good]), batch.digests[good], schema))
        done(min(batch_size, len(planned) - first))
    return pa.Table.from_batches(parts, schema), faults


def piece_features(columns: list[Column], texts: bool) -> "Features":
    """How `datasets` calls the columns of a piece: those of the tower, the keys, and for texts the number of tokens."""
    import datasets

    features = arrow_features(columns) | {name: datasets.Value("binary") for name in ("source", "digest")}
    return datasets.Features(features | ({"num_tokens": datasets.Value("int32")} if texts else {}))


def _record_batch(columns, arrays, good, planned, digests, schema) -> pa.RecordBatch:
    found: dict[str, pa.Array] = {}
    for column in columns:
        values = arrays[column.name]
        found |= to_arrow(column, values if len(good) == len(values) else _taken(values, good))
    found["source"] = planned["source"].combine_chunks()
    found["digest"] = key_array(digests).cast(pa.binary())
    if "num_tokens" in planned.column_names:
        found["num_tokens"] = planned["num_tokens"].combine_chunks()
    return pa.RecordBatch.from_arrays([found[name] for name in schema.names], schema=schema)


def _taken(values: np.ndarray | Ragged, rows: np.ndarray) -> np.ndarray | Ragged:
    if not isinstance(values, Ragged):
        return values[rows]
    spans = [values.values[values.offsets[row] : values.offsets[row + 1]] for row in rows]
    offsets = np.concatenate([[0], np.cumsum([len(span) for span in spans], dtype=np.int64)]).astype(np.int64)
    return Ragged(np.concatenate([values.values[:0], *spans]), offsets)
