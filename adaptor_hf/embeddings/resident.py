"""Rows of a cache as tensors: read for one batch, or held on a device where batches are gathered."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from .column_batches import fixed_batch, ragged_batch
from .columns import Ragged
from .sequences import with_sequences
from .targets import TARGETS
from .vectors import Shards

if TYPE_CHECKING:
    from .reader import EmbeddingCache


def _tensors(found: list[np.ndarray | Ragged]) -> list[torch.Tensor]:
    return [torch.from_numpy(part.values if isinstance(part, Ragged) else part) for part in found]


def read_batch(name: str, shards: Shards, rows: np.ndarray) -> dict[str, torch.Tensor]:
    """Batch entries of a column's rows, -1 for none; `name` is what one of fixed shape is called."""
    found = shards.read(rows)
    if not shards.column.ragged:
        return {name: fixed_batch(shards.column, _tensors(found))}
    offsets = torch.from_numpy(found[0].offsets)
    return ragged_batch(shards.column, _tensors(found), offsets[:-1], offsets.diff())


class ResidentCache:
    """A view of a cache held on one device: each distinct row once, as it is stored; batches are gathered there.

    Args:
        cache: view to load; the vectors and columns that it uses must fit into the device's memory.
        device: torch device.
    """

    def __init__(self, cache: "EmbeddingCache", device: Any) -> None:
        self.device = torch.device(device)
        self.column_names = cache.column_names
        self._columns = {"text_row": torch.from_numpy(cache.text_rows)}
        self._columns["study"] = torch.from_numpy(cache._store.study[cache._rows])
        self._columns["row"] = torch.from_numpy(cache._rows)
        if TARGETS in cache.columns:
            self._columns[TARGETS] = torch.from_numpy(cache._store.targets[cache._rows])
        self._stored = cache.stored_columns if cache.sequences else None
        self.source_names, self.source_codes = cache.source_names, cache.source_codes
        if self.source_codes is not None:
            self._columns["source"] = torch.from_numpy(self.source_codes)
        self._columns = {name: values.to(self.device) for name, values in self._columns.items()}
        self._held = [_Held(name, shards, rows[cache._rows], self.device) for name, shards, rows in cache._shards]

    def __len__(self) -> int:
        return len(self._columns["row"])

    def __getitems__(self, indices: Sequence[int] | torch.Tensor) -> dict[str, torch.Tensor]:
        """Batch on the device; `indices` as an int64 tensor there costs no transfer."""
        indices = torch.as_tensor(indices, dtype=torch.int64).to(self.device, non_blocking=True)
        batch = {}
        for held in self._held:
            batch |= held.batch(indices)
        if self._stored is not None:
            batch = with_sequences(batch, self._stored)
        return batch | {name: values[indices] for name, values in self._columns.items()}

    __getitem__ = __getitems__


class _Held:
    """One stored column on a device, with the place of each row of a view in it."""

    def __init__(self, name: str, shards: Shards, rows: np.ndarray, device: torch.device) -> None:
        used, place = np.unique(rows, return_inverse=True)
        found = shards.read(used)
        self._name = name
        self._column = shards.column
        self._parts = [part.to(device) for part in _tensors(found)]
        self._place = torch.from_numpy(place).to(device)
        if self._column.ragged:
            offsets = torch.from_numpy(found[0].offsets).to(device)
            self._starts, self._lengths = offsets[:-1], offsets.diff()

    def batch(self, indices: torch.Tensor) -> dict[str, torch.Tensor]:
        place = self._place[indices]
        if not self._column.ragged:
            return {self._name: fixed_batch(self._column, [part[place] for part in self._parts])}
        return ragged_batch(self._column, self._parts, self._starts[place], self._lengths[place])
