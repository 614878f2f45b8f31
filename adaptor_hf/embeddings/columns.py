"""Columns of a cache: fixed and ragged arrays, in float16, float32, or int8 with a scale for each vector, as Arrow."""

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

if TYPE_CHECKING:
    from datasets import Features

_ARROW = {"float16": pa.float16(), "float32": pa.float32(), "int8": pa.int8(), "int16": pa.int16()}
SCALE = "_scale"


@dataclass(frozen=True)
class Column:
    """One column of a modality.

    Args:
        name: as in files and in batches.
        shape: of one row; None in the first place for rows of different length.
        dtype: "float16", "float32", "int16", or "int8": numbers from -127 to 127, times a float32 scale for each vector
            along the last axis.
        info: what else the manifest says of it, such as the grid of tokens.
    """

    name: str
    shape: tuple[int | None, ...]
    dtype: str
    info: dict[str, Any] = field(default_factory=dict, hash=False, compare=False)

    @property
    def ragged(self) -> bool:
        return self.shape[0] is None

    @property
    def scale(self) -> "Column | None":
        """The column of scales that goes with int8; None for other dtypes."""
        shape = self.shape[:-1] if len(self.shape) > 1 else (1,)
        return Column(self.name + SCALE, shape, "float32") if self.dtype == "int8" else None

    @property
    def parts(self) -> list["Column"]:
        """This column and that of its scales, as they lie in files."""
        return [self] if self.scale is None else [self, self.scale]

    @property
    def row_bytes(self) -> int:
        """Bytes of a row, or of one element of a ragged row."""
        return sum(
            math.prod(size for size in part.shape if size is not None) * np.dtype(part.dtype).itemsize
            for part in self.parts
        )


@dataclass
class Ragged:
    """Rows of different length: row i is `values[offsets[i] : offsets[i + 1]]`.

    Args:
        values: (total, ...) elements of all rows.
        offsets: (n + 1,) int64.
    """

    values: np.ndarray
    offsets: np.ndarray

    def __len__(self) -> int:
        return len(self.offsets) - 1


def quantized(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """int8 (..., D) and float32 scales (...,), so that `int8 * scale` is within half a scale of (..., D) values."""
    values = values.astype(np.float32)
    scale = np.abs(values).max(axis=-1, initial=0) / np.float32(127)
    steps = np.divide(values, scale[..., None], out=np.zeros_like(values), where=scale[..., None] > 0)
    return np.rint(steps).astype(np.int8), scale


def arrow_features(columns: list[Column]) -> "Features":
    """How `datasets` calls these columns: flat lists of fixed length, and lists of those for ragged ones."""
    import datasets

    features = {}
    for column in (part for whole in columns for part in whole.parts):
        size = math.prod(column.shape[1:] if column.ragged else column.shape)
        values = datasets.List(datasets.Value(column.dtype), length=size)
        features[column.name] = datasets.LargeList(values) if column.ragged else values
    return datasets.Features(features)


def to_arrow(column: Column, values: np.ndarray | Ragged) -> dict[str, pa.Array]:
    """Arrow arrays of (n, *shape) or ragged floats by name, in the column's dtype."""
    ragged = isinstance(values, Ragged)
    inner = values.values if ragged else values
    parts = [(column, inner)]
    if column.scale is not None:
        steps, scales = quantized(inner)
        parts = [(column, steps), (column.scale, scales)]
    arrays = {}
    for part, array in parts:
        size = math.prod(part.shape[1:] if part.ragged else part.shape)
        with np.errstate(over="ignore"):
            flat = np.ascontiguousarray(array, dtype=part.dtype).reshape(-1)
        lists = pa.FixedSizeListArray.from_arrays(pa.array(flat, _ARROW[part.dtype]), size)
        arrays[part.name] = pa.LargeListArray.from_arrays(pa.array(values.offsets), lists) if ragged else lists
    return arrays


def arrow_array(part: Column, values: np.ndarray, offsets: np.ndarray | None = None) -> pa.Array:
    """Arrow array of (n, *shape) numbers, or of (total, ...) elements with (n + 1,) offsets, without scales; no copy
    where the dtype is that of the column."""
    flat = pa.array(np.ascontiguousarray(values, dtype=part.dtype).reshape(-1), _ARROW[part.dtype])
    lists = pa.FixedSizeListArray.from_arrays(flat, math.prod(part.shape[1:] if part.ragged else part.shape))
    return lists if offsets is None else pa.LargeListArray.from_arrays(pa.array(offsets, pa.int64()), lists)


def view_of(column: Column, array: pa.Array) -> np.ndarray | Ragged:
    """Read-only view of a column's Arrow array, without a copy: (n, *shape), or ragged. Scales are not applied.

    Raises:
        ValueError: the array is of another type or shape, or has nulls.
    """
    lists, offsets = array, None
    if column.ragged:
        if not pa.types.is_large_list(array.type) or array.null_count:
            raise ValueError(f"column {column.name!r} must be large lists without nulls, got {array.type}")
        offsets = np.frombuffer(array.buffers()[1], np.int64)[array.offset : array.offset + len(array) + 1]
        lists = array.values
    shape = column.shape[1:] if column.ragged else column.shape
    size = math.prod(shape)
    expected = pa.list_(_ARROW[column.dtype], size)
    fits = pa.types.is_fixed_size_list(lists.type) and lists.type.value_type == expected.value_type
    if not fits or lists.type.list_size != size or lists.null_count:
        raise ValueError(f"column {column.name!r} must be {expected} without nulls, got {lists.type}")
    values = np.frombuffer(lists.values.buffers()[1], dtype=column.dtype)
    flat = values[lists.offset * size : (lists.offset + len(lists)) * size].reshape(len(lists), *shape)
    return flat if offsets is None else Ragged(flat, offsets)
