"""One modality's folder: committed shards of one record batch each, and files of the columns beside the pooled vector.

When all pieces of a build are there they are joined into shards, and the manifest, renamed into place, commits them.
Shards are only ever added: row numbers stay valid.
"""

import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from ..files import read_regular
from .columns import Column
from .digests import FileChecks, check_seal
from .files import KEY_DTYPE, key_array, key_view, map_batch, write_batch
from .joining import FILE_BYTES, file_ranges, row_bytes, write_columns
from .keys import json_key
from .lookup import find_keys
from .manifest import CACHE_VERSION, MANIFEST, read_manifest, repair, write_record
from .pieces import Build

logger = logging.getLogger(__name__)

SHARD_ROWS = 65_536
POOLED = "embedding"
KEY_COLUMNS = ("source", "digest", "num_tokens")  # as they follow the pooled vector in its files
Shards = dict[str, list[dict]]
_ALIASES = "aliases.arrow"
_LOST_KEY = b"\xff" * 16  # of no row
_END_OF_STREAM = b"\xff\xff\xff\xff\0\0\0\0"  # of Arrow, with nothing behind it


def key_hex(keys: np.ndarray) -> list[str]:
    """Hexadecimal form of 16-byte keys."""
    raw = np.ascontiguousarray(keys, dtype=KEY_DTYPE).tobytes().hex()
    return [raw[start : start + 32] for start in range(0, len(raw), 32)]


class ModalityFolder:
    """`images-<key>/` or `texts-<key>/`: a row per distinct image or text.

    Attributes:
        path: the folder.
        name: "images" or "texts".
        manifest: rows, width, shards and faults that are committed.
        changes: counts what may have added a row or a name of one.
    """

    def __init__(self, cache_dir: Path, name: str, key: str, header: dict, checks: FileChecks | None = None) -> None:
        self.name = name
        self.path = cache_dir / f"{name}-{key}"
        self.checks = checks or FileChecks()
        self.changes = 0
        self._header = {"version": CACHE_VERSION, "content": name, "key": key} | header
        self.reload()

    def reload(self) -> None:
        """Read the manifest as it is now on disk."""
        self.changes += 1
        if (self.path / MANIFEST).exists():
            self.manifest = read_manifest(self.path, check=self.checks.metadata)
        else:
            self.manifest = self._header | {"rows": 0, "shards": [], "faults": {}}

    @property
    def rows(self) -> int:
        return self.manifest["rows"]

    def keys(self, column: str) -> np.ndarray:
        """(rows,) keys of the committed rows: `digest` (content) or `source` (where it came from)."""
        parts = self._columns(lambda batch: key_view(batch, column), _LOST_KEY, KEY_DTYPE)
        return np.concatenate(parts) if parts else np.empty(0, dtype=KEY_DTYPE)

    def token_counts(self) -> np.ndarray:
        """(rows,) tokens of the committed texts before they were cut; 0 for a lost one."""
        parts = self._columns(lambda batch: batch.column("num_tokens").to_numpy(), 0, np.int32)
        return np.concatenate(parts) if parts else np.empty(0, dtype=np.int32)

    def _columns(self, view: Callable[[pa.RecordBatch], np.ndarray], lost: Any, dtype: Any) -> list[np.ndarray]:
        """A column of each shard, compared with its digest and memory-mapped; rows that `repair_cache` gave up stay."""
        shards = self.manifest["shards"]
        self.checks.check(self.path, shards, repair(self.path))
        return [
            np.full(shard["rows"], lost, dtype) if shard.get("lost") else view(map_batch(self.path / shard["file"]))
            for shard in shards
        ]

    def lookup(self, keys: np.ndarray) -> np.ndarray:
        """(n,) row numbers of these source keys, -1 where there is no embedding yet."""
        rows = find_keys(self.keys("source"), keys)
        batch = self._aliases() if (rows < 0).any() else None
        if batch is not None:
            place = find_keys(key_view(batch, "source"), keys)
            target = find_keys(self.keys("digest"), key_view(batch, "digest"))
            rows = np.where((rows < 0) & (place >= 0), target[place], rows)
        return rows

    def add_aliases(self, sources: np.ndarray, digests: np.ndarray) -> None:
        """Remember further names (a moved or touched file) of rows that are there by content."""
        self.changes += 1
        batch = self._aliases()
        if batch is not None:
            sources = np.concatenate([key_view(batch, "source"), sources])
            digests = np.concatenate([key_view(batch, "digest"), digests])
        arrays = [key_array(sources), key_array(digests)]
        names = pa.RecordBatch.from_arrays(arrays, names=["source", "digest"])
        write_batch(self.path / _ALIASES, names, seal=True)

    def _aliases(self) -> pa.RecordBatch | None:
        """Further names of rows; None without any. Damaged ones are named and left out: images are read again."""
        path = self.path / _ALIASES
        if not path.exists():
            return None
        try:
            if self.checks.metadata:
                check_aliases(self.path, self.manifest["version"])
            return map_batch(path)
        except ValueError as error:
            logger.warning("%s", error)
            return None

    def fault_reasons(self) -> dict[str, str]:
        """Source key (hexadecimal) -> reason, of inputs that gave no embedding."""
        return self.manifest["faults"]

    def commit(self, columns: list[Column], shards: Shards, faults: dict[str, str]) -> None:
        """Add finished files and faults to the manifest.

        Args:
            columns: the pooled vector and what is kept beside it.
            shards: manifest entries of new files by column.
            faults: source key (hexadecimal) -> reason.
        """
        self.changes += 1
        if not self.checks.metadata and (self.path / MANIFEST).exists():
            read_manifest(self.path)  # a new digest must not cover what was edited
        pooled, *further = columns
        entries = self.entries(pooled.name) + shards[pooled.name]
        self.manifest = self.manifest | {
            "width": pooled.shape[0],
            "rows": sum(entry["rows"] for entry in entries),
            "shards": entries,
            "faults": self.manifest["faults"] | faults,
        }
        if further:
            self.manifest["columns"] = {
                column.name: {"shape": column.shape, "dtype": column.dtype, **column.info}
                | {"shards": self.entries(column.name) + shards[column.name]}
                for column in further
            }
        self.manifest = write_record(self.path / MANIFEST, self.manifest)

    def entries(self, column: str) -> list[dict]:
        """Manifest entries of the files of a column."""
        if column == POOLED:
            return list(self.manifest["shards"])
        return list(self.manifest.get("columns", {}).get(column, {}).get("shards", []))

    def remove_leftovers(self) -> None:
        """Delete what a killed build left half-written; call with the lock held."""
        for path in self.path.glob(".*.partial"):
            path.unlink()
        for piece in self.path.glob("building-*/*"):
            if not list(piece.glob("*.json")):
                shutil.rmtree(piece)

    def builds(self) -> list["Build"]:
        """Builds that were begun and not committed."""
        return [Build(self, path.name.removeprefix("building-")) for path in sorted(self.path.glob("building-*"))]

    def write_shards(self, columns: list[Column], pieces: list[pa.Table], shard_rows: int) -> Shards:
        """Join pieces into new files of one record batch each: pooled vector and keys in one, each further column in
        files of its own, none of which has rows of two shards.

        Returns:
            Manifest entries by column, the pooled vector's first.
        """
        entries: Shards = {column.name: [] for column in columns}
        table = pa.concat_tables(pieces) if pieces else None
        for start in range(0, len(table) if table else 0, shard_rows):
            part = table.slice(start, shard_rows)
            for column in columns:
                pooled = column is columns[0]
                others = tuple(name for name in KEY_COLUMNS if name in table.column_names) if pooled else ()
                stem = "data" if pooled else column.name
                known = self.entries(column.name) + entries[column.name]
                ranges = [(0, len(part))] if pooled else file_ranges(row_bytes(column, part[column.name]), FILE_BYTES)
                for first, last in ranges:
                    path = self.path / f"{stem}-{len(known):05d}.arrow"
                    known.append(write_columns(path, part.slice(first, last - first), [column], others))
                    entries[column.name].append(known[-1])
        return entries


def check_aliases(folder: Path, version: int) -> None:
    """Compare the further names of rows, if there are any, with their digest; in version 1 they may have none.

    Raises:
        ValueError: the file is damaged.
    """
    path = folder / _ALIASES
    if path.exists() and (version > 1 or read_regular(path)[-8:] != _END_OF_STREAM):
        check_seal(path, "It is not used: images that were moved are read again, and the file is written anew")


def row_ranges(rows: int, size: int, first: int = 0) -> list[tuple[int, int]]:
    """Consecutive (start, stop) of at most `size` rows, from row `first` to row `rows`."""
    return [(start, min(start + size, rows)) for start in range(first, rows, size)]


def plan_name(keys: np.ndarray, batch_size: int, piece_rows: int) -> str:
    """Name of a build: what is computed, in which order, in which batches."""
    import hashlib

    order = hashlib.blake2b(np.ascontiguousarray(keys).view(np.uint8), digest_size=16).hexdigest()
    return json_key([order, batch_size, piece_rows])
