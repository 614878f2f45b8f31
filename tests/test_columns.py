"""Columns of a cache in Arrow: what is written is what is read, for every dtype and shape."""

from itertools import chain, pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from adaptor_hf.embeddings.columns import (
    Column,
    Ragged,
    arrow_features,
    arrow_type,
    faulty_rows,
    quantized,
    to_arrow,
    view_of,
)
from adaptor_hf.embeddings.files import map_batch
from adaptor_hf.embeddings.joining import file_ranges, row_bytes, write_columns

SHAPES = [(3,), (2, 4), (2, 3, 2), (None,), (None, 3), (None, 2, 3)]
DTYPES = ["float16", "float32", "int8", "int16"]
KINDS = [(shape, dtype) for shape in SHAPES for dtype in DTYPES if (shape, dtype) != ((None,), "int8")]


def numbers(shape: tuple[int, ...], dtype: str, seed: int) -> np.ndarray:
    generator = np.random.default_rng(seed)
    if dtype == "int16":
        return generator.integers(-(2**15), 2**15, shape)
    return generator.normal(size=shape) * generator.choice([1e-3, 1, 50], size=(*shape[:1], *[1] * (len(shape) - 1)))


def some_rows(column: Column, lengths: list[int], seed: int = 0) -> np.ndarray | Ragged:
    if not column.ragged:
        return numbers((len(lengths), *column.shape), column.dtype, seed)
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    return Ragged(numbers((offsets[-1], *column.element), column.dtype, seed), offsets)


def as_lists(values: np.ndarray | Ragged) -> list[np.ndarray]:
    if isinstance(values, Ragged):
        return [values.values[start:stop] for start, stop in pairwise(values.offsets)]
    return list(values)


def restored(column: Column, views: list) -> list[np.ndarray]:
    """Rows as numbers, by the definition of the format."""
    rows = [as_lists(view) for view in views]
    if column.scale is None:
        return rows[0]
    return [steps.astype(np.float32) * scale.reshape(*steps.shape[:-1], 1) for steps, scale in zip(*rows, strict=True)]


def batch_of(column: Column, values: np.ndarray | Ragged) -> pa.RecordBatch:
    arrays = to_arrow(column, values)
    return pa.RecordBatch.from_arrays(list(arrays.values()), names=list(arrays))


def views_of(column: Column, batch: pa.RecordBatch) -> list:
    return [view_of(part, batch.column(part.name)) for part in column.parts]


def assert_are(column: Column, found: list[np.ndarray], expected: list[np.ndarray]) -> None:
    """Equal in the column's dtype; within half a step of the largest of its vector for int8."""
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        assert one.shape == other.shape
        if column.dtype == "int8":
            step = np.abs(other).max(axis=-1, keepdims=True, initial=0) / 127
            assert (np.abs(one - other) <= step / 2 * (1 + 1e-4)).all()
        else:
            np.testing.assert_array_equal(one, other.astype(column.dtype))


kinds = st.sampled_from(KINDS)
row_lengths = st.lists(st.integers(0, 4), max_size=12)


@settings(max_examples=100, deadline=None)
@given(kinds, row_lengths, st.integers(0, 99), st.data())
def test_what_is_written_is_read_also_from_slices(kind, lengths, seed, data):
    column = Column("column", *kind)
    values = some_rows(column, lengths, seed)
    batch = batch_of(column, values)
    assert_are(column, restored(column, views_of(column, batch)), as_lists(values))
    start = data.draw(st.integers(0, len(lengths)))
    stop = data.draw(st.integers(start, len(lengths)))
    part = batch.slice(start, stop - start)
    assert_are(column, restored(column, views_of(column, part)), as_lists(values)[start:stop])
    # As pyarrow itself understands the arrays.
    flat = part.column("column").to_pylist()
    mine = [np.asarray(row).ravel().tolist() for row in as_lists(views_of(column, part)[0])]
    assert [np.asarray(row, column.dtype).ravel().tolist() for row in flat] == mine


def write_files(folder: Path, column: Column, table: pa.Table, limit: int) -> list[dict]:
    ranges = file_ranges(row_bytes(column, table["column"]), limit)
    return [
        write_columns(folder / f"column-{start:05d}.arrow", table.slice(start, stop - start), [column])
        for start, stop in ranges
    ]


@settings(max_examples=25, deadline=None)
@given(kinds, st.lists(row_lengths, min_size=1, max_size=6), st.integers(1, 400), st.integers(0, 99))
def test_files_joined_from_pieces_depend_on_the_rows_alone(tmp_path_factory, kind, parts, limit, seed):
    column = Column("column", *kind)
    whole = batch_of(column, some_rows(column, list(chain(*parts)), seed))
    pieces = [whole.slice(start, stop - start) for start, stop in pairwise(np.cumsum([0, *map(len, parts)]))]
    folders = [tmp_path_factory.mktemp("columns") for _ in range(2)]
    once = write_files(folders[0], column, pa.Table.from_batches([whole]), limit)
    assert write_files(folders[1], column, pa.Table.from_batches(pieces), limit) == once
    assert sorted(path.name for path in folders[1].iterdir()) == [entry["file"] for entry in once]
    assert sum(entry["rows"] for entry in once) == len(whole)
    found = []
    for entry in once:
        batch = map_batch(folders[0] / entry["file"])
        assert len(batch) == entry["rows"] > 0
        sizes = row_bytes(column, pa.chunked_array([batch.column("column")]))
        assert sizes.sum() <= limit or entry["rows"] == 1
        assert sizes.sum() == sum(
            view.nbytes if not column.ragged else view.values.nbytes for view in views_of(column, batch)
        )
        found += restored(column, views_of(column, batch))
    for row, expected in zip(found, restored(column, views_of(column, whole)), strict=True):
        np.testing.assert_array_equal(row, expected)


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_datasets_writes_the_arrow_types_that_are_read(kind):
    column = Column("column", *kind)
    for part in column.parts:
        assert arrow_features([column]).arrow_schema.field(part.name).type.equals(arrow_type(part))


def test_a_zero_vector_and_an_outlier_keep_their_int8_neighbours():
    values = np.array([[0.0, 0, 0], [1e-30, 0, -1e-30], [60_000, 1, 0], [1, 2, 3]], np.float32)
    steps, scale = quantized(values)
    assert steps.tolist() == [[0, 0, 0], [127, 0, -127], [127, 0, 0], [42, 85, 127]]
    np.testing.assert_allclose(scale * 127, [0, 1e-30, 60_000, 3])


@pytest.mark.parametrize(
    ("dtype", "bad", "good"),
    [("float16", 65_520, 65_519), ("int8", 65_520, 65_519), ("float32", np.inf, 3e38), ("int16", 32_768, 32_767)],
)
def test_numbers_that_would_not_come_back_are_named_by_row_and_refused(dtype, bad, good):
    column, ragged = Column("column", (2,), dtype), Column("column", (None, 2), dtype)
    values = np.zeros((4, 2), np.int64 if dtype == "int16" else np.float64)
    values[2, 1] = good
    assert not len(faulty_rows(column, values))
    back = restored(column, views_of(column, batch_of(column, values)))[2]
    assert np.isfinite(back if dtype == "float32" else back.astype(np.float16)).all()
    values[2, 1] = bad
    values[3, 0] = -bad - 1
    assert faulty_rows(column, values).tolist() == [2, 3]
    with pytest.raises(ValueError, match=rf"'column': 2 of 4 rows, first row 2, have numbers .* {dtype}"):
        to_arrow(column, values)
    rows = Ragged(values, np.array([0, 0, 1, 4, 4]))
    assert faulty_rows(ragged, rows).tolist() == [2]
    with pytest.raises(ValueError, match="1 of 4 rows, first row 2"):
        to_arrow(ragged, rows)
    if dtype != "int16":
        values[:] = 0
        values[0, 0] = np.nan
        assert faulty_rows(column, values).tolist() == [0]


def test_what_does_not_fit_a_column_is_a_message():
    column = Column("column", (2, 3), "float16")
    with pytest.raises(ValueError, match=r"rows of \(2, 3\), got \(4, 3\)"):
        to_arrow(column, np.zeros((4, 3)))
    with pytest.raises(ValueError, match=r"rows of \(2, 3\), got ragged"):
        to_arrow(column, Ragged(np.zeros((4, 2, 3)), np.array([0, 4])))
    with pytest.raises(ValueError, match="is int16, got numbers of float64"):
        to_arrow(Column("column", (2,), "int16"), np.zeros((4, 2)))
    for shape, dtype in (((), "int8"), ((2, None), "int8"), ((0,), "int8"), ((True,), "int8"), ((2,), "float64")):
        with pytest.raises(ValueError, match=r"'column': (shape|dtype) must be"):
            Column("column", shape, dtype)
    with pytest.raises(ValueError, match="int8 needs vectors"):
        Column("column", (None,), "int8")
    lists = pa.array([[1.0] * 6, None], pa.list_(pa.float16(), 6))
    with pytest.raises(ValueError, match=r"without nulls, got .* with 1 nulls"):
        view_of(column, lists)
    for other in (pa.list_(pa.float16(), 5), pa.list_(pa.float32(), 6), pa.list_(pa.float16())):
        with pytest.raises(ValueError, match="'column' must be fixed_size_list"):
            view_of(column, pa.array([], other))
    with pytest.raises(ValueError, match="must have no nulls"):
        view_of(
            Column("column", (None, 1), "float16"), pa.array([[[1.0], None]], pa.large_list(pa.list_(pa.float16(), 1)))
        )
    with pytest.raises(ValueError, match="must have no nulls"):
        view_of(Column("column", (1,), "float16"), pa.array([[None]], pa.list_(pa.float16(), 1)))
