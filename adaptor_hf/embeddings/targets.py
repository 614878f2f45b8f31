"""Labels of a cache's pairs as numbers of a batch."""

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

TARGETS = "targets"
"""What labels are called in a cache and in its batches: `labels` would be those of a language model to others."""


def target_values(column: pa.ChunkedArray) -> np.ndarray:
    """
    Labels of all rows.

    Args:
        column: Classes, numbers, or equally long lists of numbers; null where they are unknown.

    Returns:
        (n,) int64 classes, -1 where unknown; float32 numbers, (n,) or (n, C), NaN where unknown.

    Raises:
        ValueError: Labels that are neither, such as words.
    """
    array = column.combine_chunks()
    if isinstance(array, pa.ChunkedArray):
        array = pa.concat_arrays(array.chunks) if array.num_chunks else pa.array([], column.type)
    kind = array.type
    if pa.types.is_integer(kind) or pa.types.is_boolean(kind):
        return array.cast(pa.int64()).fill_null(-1).to_numpy(zero_copy_only=False)
    if pa.types.is_floating(kind):
        return _decimals(array)
    if pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        inner = kind.value_type
        lengths = pc.unique(pc.list_value_length(array).drop_null()).to_pylist()
        if (pa.types.is_integer(inner) or pa.types.is_floating(inner) or pa.types.is_boolean(inner)) and len(
            lengths
        ) == 1:
            found = np.full((len(array), lengths[0]), np.nan, np.float32)
            there = array.is_valid().to_numpy(zero_copy_only=False)
            found[there] = _decimals(array.drop_null().flatten()).reshape(-1, lengths[0])
            return found
    raise ValueError(
        f"this cache's labels are {kind}, and a batch holds classes (datasets.ClassLabel), numbers, or lists of "
        "equally many numbers. Build it of a table whose column labels is one of these"
    )


def _decimals(array: pa.Array) -> np.ndarray:
    return array.cast(pa.float32()).to_numpy(zero_copy_only=False).astype(np.float32)


__all__ = ["TARGETS", "target_values"]
