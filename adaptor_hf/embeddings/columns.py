"""Columns of a cache: fixed and ragged arrays, in float16, float32, or int8 with a scale for each vector, as Arrow."""

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

if TYPE_CHECKING:
    from datasets import Features

_ARROW = {"float16": pa.float16(), "float32": pa.float32(), "int8": pa.int8(), "int16": pa.int16()}
# What is rounded to a finite number; int8 a little less, for the rounding of its scales.
_LIMITS = {
    "float16": float(np.nextafter(np.float32(65520), np.float32(0))), "float32": float(np.finfo(np.float32).max),
    "int8": 65519.0, "int16": 32767,
}  # fmt: skip
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

    Raises:
        ValueError: no such shape or dtype, or int8 for rows of single numbers, which have no vectors to scale.
    """

    name: str
    shape: tuple[int | None, ...]
    dtype: str
    info: dict[str, Any] = field(default_factory=dict, hash=False, compare=False)

    def __post_init__(self) -> None:
        sizes = self.shape[1:] if self.shape[:1] == (None,) else self.shape
        if not self.shape or not all(type(size) is int and size > 0 for size in sizes):
            raise ValueError(
                f"column {self.name!r}: shape must be positive numbers, the first of which may be None, "
                f"got {self.shape}"
            )
        if self.dtype not in _ARROW:
            raise ValueError(f"column {self.name!r}: dtype must be one of {', '.join(_ARROW)}, got {self.dtype!r}")
        if self.dtype == "int8" and self.shape == (None,):
            raise ValueError(f"column {self.name!r}: int8 needs vectors, and its rows are single numbers: take float16")

    @property
    def ragged(self) -> bool:
        return self.shape[0] is None

    @property
    def element(self) -> tuple[int, ...]:
        """Shape of a row, or of one element of a ragged row."""
        return self.shape[1:] if self.ragged else self.shape

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
        return sum(math.prod(part.element) * np.dtype(part.dtype).itemsize for part in self.parts)


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


def faulty_rows(column: Column, values: np.ndarray | Ragged) -> np.ndarray:
    """
    (m,) row numbers, ascending, with a number that the column cannot give back: NaN, infinite, or beyond its range.
    float16, and int8 which is read as float16, reach to 65504.
    """
    inner = values.values if isinstance(values, Ragged) else values
    flat = inner.reshape(len(inner), math.prod(column.element))
    limit = _LIMITS[column.dtype]
    # NaN goes through maximum and minimum, and is not within the limits.
    within = (flat.max(axis=1, initial=0) <= limit) & (flat.min(axis=1, initial=0) >= -limit)
    rows = np.nonzero(~within)[0]
    if isinstance(values, Ragged):
        rows = np.unique(np.searchsorted(values.offsets, rows, side="right") - 1)
    return rows


def arrow_features(columns: list[Column]) -> "Features":
    """How `datasets` calls these columns: flat lists of fixed length, and lists of those for ragged ones."""
    import datasets

    features = {}
    for column in (part for whole in columns for part in whole.parts):
        values = datasets.List(datasets.Value(column.dtype), length=math.prod(column.element))
        features[column.name] = datasets.LargeList(values) if column.ragged else values
    return datasets.Features(features)


def arrow_type(column: Column) -> pa.DataType:
    """Arrow type of a column as it lies in files."""
    values = pa.list_(_ARROW[column.dtype], math.prod(column.element))
    return pa.large_list(values) if column.ragged else values


def to_arrow(column: Column, values: np.ndarray | Ragged) -> dict[str, pa.Array]:
    """Arrow arrays of (n, *shape) or ragged numbers by name, in the column's dtype.

    Raises:
        ValueError: numbers of another shape, or some that the column cannot give back (`faulty_rows`).
    """
    ragged = isinstance(values, Ragged)
    inner = values.values if ragged else values
    if ragged != column.ragged or inner.shape[1:] != column.element:
        raise ValueError(
            f"column {column.name!r} has rows of {column.shape}, got {'ragged ' if ragged else ''}{inner.shape}"
        )
    if (column.dtype == "int16") != (inner.dtype.kind in "iu"):
        raise ValueError(f"column {column.name!r} is {column.dtype}, got numbers of {inner.dtype}")
    if len(faulty := faulty_rows(column, values)):
        raise ValueError(
            f"column {column.name!r}: {len(faulty)} of {len(values)} rows, first row {faulty[0]}, have numbers that "
            f"are not finite in {column.dtype}. Leave these rows out before, or store float32"
        )
    parts = zip(column.parts, quantized(inner) if column.scale else [inner], strict=True)
    return {part.name: arrow_array(part, array, values.offsets if ragged else None) for part, array in parts}


def arrow_array(part: Column, values: np.ndarray, offsets: np.ndarray | None = None) -> pa.Array:
    """Arrow array of (n, *shape) numbers, or of (total, ...) elements with (n + 1,) offsets, without scales; no copy
    where the dtype is that of the column."""
    flat = pa.array(np.ascontiguousarray(values, dtype=part.dtype).reshape(-1), _ARROW[part.dtype])
    lists = pa.FixedSizeListArray.from_arrays(flat, math.prod(part.element))
    return lists if offsets is None else pa.LargeListArray.from_arrays(pa.array(offsets, pa.int64()), lists)


def view_of(column: Column, array: pa.Array) -> np.ndarray | Ragged:
    """Read-only view of a column's Arrow array, without a copy: (n, *shape), or ragged. Scales are not applied.

    Raises:
        ValueError: the array is of another type or shape, or has nulls.
    """
    if array.null_count or not array.type.equals(arrow_type(column)):
        raise ValueError(
            f"column {column.name!r} must be {arrow_type(column)} without nulls, got {array.type} with "
            f"{array.null_count} nulls"
        )
    if not column.ragged:
        return _fixed_view(column, array)
    buffer = array.buffers()[1]
    offsets = np.zeros(1, np.int64)  # an empty array may come without
    if buffer is not None and buffer.size:
        offsets = np.frombuffer(buffer, np.int64)[array.offset : array.offset + len(array) + 1]
    return Ragged(_fixed_view(column, array.values), offsets)


def _fixed_view(column: Column, lists: pa.FixedSizeListArray) -> np.ndarray:
    if lists.null_count or lists.values.null_count:
        raise ValueError(f"column {column.name!r} must have no nulls, and {lists.null_count} of its vectors are null")
    size = math.prod(column.element)
    # `values` is the whole child, whatever part of it the lists are; it may itself start within its buffer.
    start = (lists.values.offset + lists.offset * size) * np.dtype(column.dtype).itemsize
    buffer = lists.values.buffers()[1]
    if not len(lists):
        return np.empty((0, *column.element), column.dtype)
    return np.frombuffer(buffer, column.dtype, len(lists) * size, start).reshape(len(lists), *column.element)


def column_of(name: str, entry: dict[str, Any]) -> Column:
    """The column that a manifest's entry describes."""
    info = {key: value for key, value in entry.items() if key not in ("shape", "dtype", "shards")}
    return Column(name, tuple(entry["shape"]), entry["dtype"], info)


def entry_of(column: Column, shards: list[dict[str, Any]]) -> dict[str, Any]:
    """A column and its files as an entry of a manifest."""
    return {"shape": list(column.shape), "dtype": column.dtype, "shards": shards} | column.info
