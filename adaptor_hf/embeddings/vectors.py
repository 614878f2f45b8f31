"""The numbers of one modality, in memory-mapped files that are checked before they are read."""

import os
import weakref
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch

from ..files import check_regular, open_regular
from .column_batches import fixed_batch
from .columns import Column, Ragged, column_of, view_of
from .digests import FileChecks, check_sizes
from .files import KEY_DTYPE, key_view, map_batch
from .keys import check_key, check_tower
from .manifest import lost_rows, modality_files, read_manifest, rebuild, repair

# Rows from this size on are read with a call each: a mapping waits for the disk once for each 128 KiB it reads ahead.
LARGE_ROW = 131_072
# What stands for a row that there is not. A scale that is NaN makes a vector of NaN.
_ABSENT = {"float16": np.nan, "float32": np.nan, "int8": 0, "int16": -1}


class ColumnFile:
    """One open file of a column: its record batch, and a view of each part of the column.

    Args:
        path: the file.
        column: what it holds.
        rows: how many it has.
        by_calls: read rows with a call each, and not through the mapping.
    """

    def __init__(self, path: Path, column: Column, rows: int, by_calls: bool) -> None:
        self.path = path
        self.by_calls = by_calls
        self.batch = map_batch(path)
        if by_calls:
            # A mapping of its own, to know where in the file its numbers are.
            mapped = np.memmap(check_regular(path), np.uint8, "r")
            self._start = mapped.ctypes.data
            self.batch = pa.ipc.open_stream(pa.py_buffer(mapped)).read_next_batch()
            self._file = open_regular(path)
            weakref.finalize(self, self._file.close)
        try:
            self.views = [view_of(part, self.batch.column(part.name)) for part in column.parts]
        except (KeyError, ValueError) as error:
            raise ValueError(f"{path}: {error}. {rebuild(path.parent)}") from error
        if len(self.batch) != rows:
            raise ValueError(f"{path} has {len(self.batch)} rows, the manifest says {rows}. {rebuild(path.parent)}")
        self.elements = [view.values if isinstance(view, Ragged) else view for view in self.views]
        if column.ragged and not self._offsets_fit():
            raise ValueError(f"{path} is damaged: where its rows begin and end does not fit. {rebuild(path.parent)}")

    def _offsets_fit(self) -> bool:
        offsets = self.views[0].offsets
        within = offsets[0] >= 0 and (np.diff(offsets) >= 0).all()
        return bool(within) and all(
            np.array_equal(view.offsets, offsets) and offsets[-1] <= len(view.values) for view in self.views
        )

    def copy_rows(self, rows: np.ndarray, found: list[np.ndarray], targets: np.ndarray) -> None:
        """Copy rows of fixed shape, each part of the column to these places of what is found."""
        for out, values in zip(found, self.elements, strict=True):
            if not self.by_calls:
                out[targets] = values.take(rows, axis=0)
            else:
                self._read_spans(values, rows, np.ones_like(rows), out, targets)

    def copy_spans(self, starts: np.ndarray, lengths: np.ndarray, found: list[np.ndarray], targets: np.ndarray) -> None:
        """Copy elements of ragged rows, as many as each length from each start on, to places from each target on."""
        for out, values in zip(found, self.elements, strict=True):
            if not self.by_calls:
                out[_spans(targets, lengths)] = values.take(_spans(starts, lengths), axis=0)
            else:
                self._read_spans(values, starts, lengths, out, targets)

    def _read_spans(
        self, values: np.ndarray, starts: np.ndarray, lengths: np.ndarray, out: np.ndarray, targets: np.ndarray
    ) -> None:
        first, size = values.ctypes.data - self._start, values[:1].nbytes
        for start, length, target in zip(starts.tolist(), lengths.tolist(), targets.tolist(), strict=True):
            self._read(out[target : target + length], first + start * size)

    def _read(self, out: np.ndarray, place: int) -> None:
        left = memoryview(out.reshape(-1).view(np.uint8))
        while len(left):
            size = os.preadv(self._file.fileno(), [left], place)
            if not size:
                raise ValueError(f"{self.path} has become shorter while it was read. {repair(self.path.parent)}")
            left, place = left[size:], place + size


class Shards:
    """Rows of one column in all its files, numbered through. A file is checked and mapped when it is first read.

    Args:
        folder: `images-<key>/` or `texts-<key>/`.
        column: what the files hold.
        entries: the files, as in the manifest.
        checks: what is compared with digests.
    """

    def __init__(self, folder: Path, column: Column, entries: list[dict], checks: FileChecks) -> None:
        self.folder = folder
        self.column = column
        self.entries = entries
        self.offsets = np.cumsum([0] + [entry["rows"] for entry in entries])
        self._checks = checks
        self._files: list[ColumnFile | None] = [None] * len(entries)

    def __len__(self) -> int:
        return int(self.offsets[-1])

    @cached_property
    def _parts(self) -> list[Column]:
        return self.column.parts

    @property
    def bytes_a_row(self) -> float:
        """Bytes that a row takes; the mean over all files where rows differ in length."""
        if not self.column.ragged:
            return self.column.row_bytes
        return sum(entry["bytes"] for entry in self.entries) / max(1, len(self))

    def of_rows(self, rows: np.ndarray) -> list[int]:
        """Numbers of the files that have a row of these."""
        return np.unique(np.searchsorted(self.offsets, rows[rows >= 0], side="right") - 1).tolist()

    def map_files(self, indices: Sequence[int]) -> None:
        """Check and map these files now."""
        entries = [self.entries[index] for index in indices]
        if lost := [entry["file"] for entry in entries if entry.get("lost")]:
            raise ValueError(lost_message(self.folder / lost[0]))
        try:
            self._checks.check(self.folder, entries, repair(self.folder))
        except FileNotFoundError as error:
            self._refuse_given_up(entries)
            raise error
        for index, entry in zip(indices, entries, strict=True):
            by_calls = self.bytes_a_row >= LARGE_ROW and hasattr(os, "preadv")
            self._files[index] = ColumnFile(self.folder / entry["file"], self.column, entry["rows"], by_calls)

    def _refuse_given_up(self, entries: list[dict]) -> None:
        """Say it when files went since the cache was opened."""
        there = {entry["file"] for entry in modality_files(read_manifest(self.folder, check=self._checks.metadata))}
        gone = [entry["file"] for entry in entries if entry["file"] not in there]
        if gone:
            raise FileNotFoundError(
                f"{self.folder / gone[0]} was removed since this cache was opened: its rows were embedded anew, or it "
                f"was damaged and given up. Open {self.folder.parent} again, and what is there now is read"
            ) from None

    def check_sizes(self, rows: np.ndarray) -> None:
        """Name a missing file, or one that has not its size, of those that have a row of these."""
        check_sizes(self.folder, [self.entries[index] for index in self.of_rows(rows)], repair(self.folder))

    def file(self, index: int) -> ColumnFile:
        """One file, open."""
        if self._files[index] is None:
            self.map_files([index])
        return self._files[index]

    def by_file(self, rows: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
        """Number of each file that has rows of these, with the places of those rows among them."""
        owner = np.searchsorted(self.offsets, rows, side="right")  # one more than the number; 0 where there is no row
        for index in np.nonzero(np.bincount(owner)[1:])[0].tolist():
            yield index, np.nonzero(owner == index + 1)[0]

    def read(self, rows: np.ndarray) -> list[np.ndarray | Ragged]:
        """Rows as they are stored, for each part of the column (`Column.parts`): (n, *shape), or ragged.

        Row -1 (there is none) is NaN, with int8 its scale is; it is -1 in int16, and empty where rows are ragged.
        """
        if self.column.ragged:
            return self._read_ragged(rows)
        absent = (rows < 0).any()
        if len(self.entries) == 1 and not absent and not self.file(0).by_calls:
            return [view.take(rows, axis=0) for view in self.file(0).views]
        found = [np.empty((len(rows), *part.shape), part.dtype) for part in self._parts]
        for index, place in self.by_file(rows):
            self.file(index).copy_rows(rows[place] - self.offsets[index], found, place)
        if absent:
            for out, part in zip(found, self._parts, strict=True):
                out[rows < 0] = _ABSENT[part.dtype]
        return found

    def _read_ragged(self, rows: np.ndarray) -> list[Ragged]:
        lengths = np.zeros(len(rows), np.int64)
        starts = np.zeros(len(rows), np.int64)
        for index, place in self.by_file(rows):
            offsets = self.file(index).views[0].offsets
            local = rows[place] - self.offsets[index]
            starts[place], lengths[place] = offsets[local], offsets[local + 1] - offsets[local]
        ends = np.concatenate([[0], np.cumsum(lengths)])
        found = [np.empty((ends[-1], *part.element), part.dtype) for part in self._parts]
        for index, place in self.by_file(rows):
            self.file(index).copy_spans(starts[place], lengths[place], found, ends[place])
        return [Ragged(values, ends) for values in found]


def _spans(starts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """Numbers from each start on, as many as its length, one after the other."""
    ends = np.cumsum(lengths)
    return np.arange(ends[-1] if len(ends) else 0) + np.repeat(starts - ends + lengths, lengths)


def lost_message(path: Path) -> str:
    return (
        f"rows of these pairs were in {path}, which was damaged and given up. Run the build of these pairs again: they "
        "are embedded anew"
    )


class Vectors:
    """Rows of all shards of one modality, numbered through: pooled vectors, keys, and further columns.

    Args:
        folder: `images-<key>/` or `texts-<key>/`.
        rows: (n,) rows that are going to be used, -1 for none: their shards are checked now, others when first used.
        checks: what is compared with digests.

    Attributes:
        shards: of the pooled vectors.
        columns: of what is stored beside them, by name; their files are compared when they are first read.
    """

    def __init__(self, folder: Path, rows: np.ndarray, checks: FileChecks) -> None:
        self.folder = folder
        self.manifest = read_manifest(folder, check=checks.metadata)
        self.width = self.manifest["width"]
        vectors = Column("embedding", (self.width,), self.manifest["dtype"])
        self.shards = Shards(folder, vectors, self.manifest["shards"], checks)
        # The process that opened the cache has not compared all of these, unless it was to compare everything.
        own = checks if checks.mode == "full" else FileChecks(checks.mode)
        self.columns = {
            name: Shards(folder, column_of(name, entry), entry["shards"], own)
            for name, entry in self.manifest.get("columns", {}).items()
        }
        if checks.metadata:
            check_key(folder, self.manifest, rebuild(folder))
            check_tower(folder, self.manifest["tower"], self.manifest["identity"], rebuild(folder))
        if len(rows) and rows.max() < len(self):
            for name, start, stop in lost_rows(self.manifest):
                if ((rows >= start) & (rows < stop)).any():
                    raise ValueError(lost_message(folder / name))
            self.shards.map_files(self.shards.of_rows(rows))
            if checks.mode == "full":
                checks.check(folder, modality_files(self.manifest), repair(folder))

    def __len__(self) -> int:
        return len(self.shards)

    def take(self, rows: np.ndarray) -> torch.Tensor:
        """(n, D) tensor of these rows in storage dtype, float16 for int8; row -1 (there is none) gives NaN."""
        return fixed_batch(self.shards.column, [torch.from_numpy(part) for part in self.shards.read(rows)])

    def keys(self, column: str, rows: np.ndarray) -> np.ndarray:
        """(n,) keys of these rows in a column; empty for row -1."""
        out = np.zeros(len(rows), KEY_DTYPE)
        for index, place in self.shards.by_file(rows):
            out[place] = key_view(self.shards.file(index).batch, column)[rows[place] - self.shards.offsets[index]]
        return out
