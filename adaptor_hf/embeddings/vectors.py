"""The vectors of one modality, in memory-mapped shards that are checked before they are read."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch

from .digests import FileChecks
from .files import KEY_DTYPE, NUMPY_DTYPES, embedding_view, key_view, map_batch
from .keys import check_key, check_tower
from .manifest import read_manifest, rebuild, repair


class Vectors:
    """Rows of all shards of one modality, numbered through, in storage dtype.

    Args:
        folder: `images-<key>/` or `texts-<key>/`.
        rows: (n,) rows that are going to be used, -1 for none: their shards are checked now, others when first used.
        checks: what is compared with digests.
    """

    def __init__(self, folder: Path, rows: np.ndarray, checks: FileChecks) -> None:
        self.folder = folder
        self.manifest = read_manifest(folder, check=checks.metadata)
        self.width = self.manifest["width"]
        self.dtype = np.dtype(NUMPY_DTYPES[self.manifest["dtype"]])
        self.offsets = np.cumsum([0] + [entry["rows"] for entry in self.manifest["shards"]])
        self._checks = checks
        self._batches: list[pa.RecordBatch | None] = [None] * len(self.manifest["shards"])
        self._views: list[np.ndarray | None] = [None] * len(self._batches)
        if checks.metadata:
            check_key(folder, self.manifest, rebuild(folder))
            check_tower(folder, self.manifest["tower"], self.manifest["identity"], rebuild(folder))
        if len(rows) and rows.max() < len(self):
            used = np.unique(np.searchsorted(self.offsets, rows[rows >= 0], side="right") - 1).tolist()
            self._open(used)
            if checks.mode == "full":
                checks.check(folder, self.manifest["shards"], repair(folder))

    def __len__(self) -> int:
        return int(self.offsets[-1])

    def _open(self, indices: Sequence[int]) -> None:
        entries = [self.manifest["shards"][index] for index in indices]
        if lost := [entry["file"] for entry in entries if entry.get("lost")]:
            raise ValueError(
                f"rows of these pairs were in {self.folder / lost[0]}, which was damaged and given up. Run the build "
                "of these pairs again: they are embedded anew"
            )
        self._checks.check(self.folder, entries, repair(self.folder))
        for index, entry in zip(indices, entries, strict=True):
            batch = map_batch(self.folder / entry["file"])
            view = embedding_view(batch)
            if view.shape != (entry["rows"], self.width) or view.dtype != self.dtype:
                raise ValueError(
                    f"{self.folder / entry['file']} holds {view.shape} {view.dtype}, the manifest says "
                    f"{(entry['rows'], self.width)} {self.dtype}. {rebuild(self.folder)}"
                )
            self._batches[index], self._views[index] = batch, view

    def _view(self, index: int) -> np.ndarray:
        if self._views[index] is None:
            self._open([index])
        return self._views[index]

    def take(self, rows: np.ndarray) -> torch.Tensor:
        """(n, D) tensor of these rows; row -1 (there is none) gives NaN."""
        absent = rows < 0
        if absent.any():
            out = np.full((len(rows), self.width), np.nan, dtype=self.dtype)
            present = np.nonzero(~absent)[0]
            out[present] = self.take(rows[present]).numpy()
            return torch.from_numpy(out)
        if len(self._views) == 1:
            return torch.from_numpy(self._view(0).take(rows, axis=0))
        out = np.empty((len(rows), self.width), dtype=self.dtype)
        for index, place in self._by_shard(rows):
            out[place] = self._view(index).take(rows[place] - self.offsets[index], axis=0)
        return torch.from_numpy(out)

    def keys(self, column: str, rows: np.ndarray) -> np.ndarray:
        """(n,) keys of these rows in a column; empty for row -1."""
        out = np.zeros(len(rows), KEY_DTYPE)
        for index, place in self._by_shard(rows):
            self._view(index)
            out[place] = key_view(self._batches[index], column)[rows[place] - self.offsets[index]]
        return out

    def _by_shard(self, rows: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
        owner = np.searchsorted(self.offsets, rows, side="right") - 1
        for index in np.unique(owner[rows >= 0]):
            yield int(index), np.nonzero((owner == index) & (rows >= 0))[0]
