"""One modality's folder: committed shards of one record batch each, and files of the columns beside the pooled vector.

When all pieces of a build are there they are joined into shards, and the manifest, renamed into place, commits them.
Shards are only ever added: row numbers stay valid.
"""

import logging
import os
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from ..files import read_regular
from .columns import Column, entry_of
from .digests import FileChecks, check_seal
from .files import KEY_DTYPE, key_array, key_view, map_batch, write_batch
from .joining import FILE_BYTES, file_ranges, row_bytes, write_columns
from .keys import json_key
from .lookup import find_keys
from .manifest import CACHE_VERSION, MANIFEST, lost_rows, read_manifest, repair, write_record
from .pieces import Build

logger = logging.getLogger(__name__)

SHARD_ROWS = 65_536
POOLED = "embedding"
KEY_BYTES = 36
"""Bytes a row beside its vectors: keys of source and content, number of tokens."""
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

    @property
    def rebuilt(self) -> int:
        """How often rows were embedded anew."""
        return self.manifest.get("rebuilt", 0)

    def keys(self, column: str) -> np.ndarray:
        """(rows,) keys of the committed rows: `digest` (content) or `source` (where it came from)."""
        return self._columns(lambda batch: key_view(batch, column), _LOST_KEY, KEY_DTYPE)

    def token_counts(self) -> np.ndarray:
        """(rows,) tokens of the committed texts before they were cut; 0 for a lost one."""
        return self._columns(lambda batch: batch.column("num_tokens").to_numpy(), 0, np.int32)

    def _columns(self, view: Callable[[pa.RecordBatch], np.ndarray], lost: Any, dtype: Any) -> np.ndarray:
        """A column of all shards, compared with their digests; rows that `repair_cache` gave up stay."""
        shards = self.manifest["shards"]
        self.checks.check(self.path, shards, repair(self.path))
        parts = [
            np.full(shard["rows"], lost, dtype) if shard.get("lost") else view(map_batch(self.path / shard["file"]))
            for shard in shards
        ]
        values = np.concatenate(parts) if parts else np.empty(0, dtype)
        for _, start, stop in lost_rows(self.manifest):
            values[start:stop] = lost
        return values

    def lookup(self, keys: np.ndarray) -> np.ndarray:
        """(n,) row numbers of these source keys, -1 where there is no embedding yet."""
        rows = self._newest("source", keys)
        batch = self._aliases() if (rows < 0).any() else None
        if batch is not None:
            place = find_keys(key_view(batch, "source"), keys)
            target = self._newest("digest", key_view(batch, "digest"))
            rows = np.where((rows < 0) & (place >= 0), target[place], rows)
        return rows

    def superseded(self) -> np.ndarray:
        """(rows,) bool: rows whose image or text was embedded again since, and those that are lost."""
        known = self.keys("source")
        return (known == _LOST_KEY) | (self._newest("source", known) != np.arange(len(known)))

    def _newest(self, column: str, keys: np.ndarray) -> np.ndarray:
        """(n,) row numbers of keys, -1 where there is none; the last one of a key that a rebuild embedded again."""
        known = self.keys(column)
        if not self.rebuilt:
            return find_keys(known, keys)
        rows = find_keys(np.ascontiguousarray(known[::-1]), keys)
        return np.where(rows >= 0, len(known) - 1 - rows, -1)

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

    def commit(
        self,
        width: int,
        shards: list[dict],
        faults: dict[str, str],
        columns: dict[str, dict] | None = None,
        *,
        again: bool = False,
    ) -> None:
        """Add finished shard files and faults to the manifest.

        Args:
            width: of the pooled vectors.
            shards: entries of new files.
            faults: source key (hexadecimal) -> reason.
            columns: entries of what is kept beside the pooled vectors, all files in them; None leaves them.
            again: their rows replace those of the same images or texts.
        """
        self.changes += 1
        if not self.checks.metadata and (self.path / MANIFEST).exists():
            read_manifest(self.path)  # a new digest must not cover what was edited
        entries = self.manifest["shards"] + shards
        self.manifest = self.manifest | {
            "width": width,
            "rows": sum(entry["rows"] for entry in entries),
            "shards": entries,
            "faults": self.manifest["faults"] | faults,
        }
        if columns:
            self.manifest["columns"] = columns
        if again:
            self.manifest["rebuilt"] = self.rebuilt + 1
        self.manifest = write_record(self.path / MANIFEST, self.manifest)

    def has_leftovers(self) -> bool:
        """Whether there are pieces that a kill has left, or that another build writes, and they could be removed."""
        left = any(self.path.glob(".building-*.partial")) or any(self.path.glob("building-*"))
        return left and os.access(self.path, os.W_OK)

    def remove_leftovers(self) -> None:
        """Delete what a killed build left half-written; call with the lock held."""
        for path in self.path.glob(".*.partial"):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        for piece in self.path.glob("building-*/*"):
            if piece.is_file():  # of a version before 0.2, whose pieces had no record
                piece.unlink()
            elif not list(piece.glob("*.json")):
                shutil.rmtree(piece)

    def siblings(self) -> list[tuple[Path, dict]]:
        """Other folders of this modality in the cache folder, with their manifests; damaged ones are left out."""
        found = []
        for place in sorted(self.path.parent.glob(f"{self.name}-*/{MANIFEST}")):
            with suppress(ValueError):
                found.append((place.parent, read_manifest(place.parent)))
        return [one for one in found if one[0].name != self.path.name]

    def builds(self) -> list["Build"]:
        """Builds that were begun and not committed."""
        return [Build(self, path.name.removeprefix("building-")) for path in sorted(self.path.glob("building-*"))]

    def write_shards(
        self, columns: list[Column], tables: list[pa.Table], shard_rows: int
    ) -> tuple[list[dict], dict[str, dict]]:
        """Join pieces into new files of one record batch each: pooled vectors and keys in one, each further column in
        files of its own. None of it is held in memory.

        Returns:
            Entries of the new shards, and the entry of each further column.
        """
        pooled, *further = columns
        table = pa.concat_tables(tables)
        keys = tuple(name for name in ("source", "digest", "num_tokens") if name in table.column_names)
        entries = list(self.manifest["shards"])
        for start, stop in row_ranges(len(table), shard_rows):
            path = self.path / f"data-{len(entries):05d}.arrow"
            entries.append(write_columns(path, table.slice(start, stop - start), [pooled], keys))
        known = {}
        for column in further:
            files = list(self.manifest.get("columns", {}).get(column.name, {}).get("shards", []))
            for start, stop in file_ranges(row_bytes(column, table[column.name]), FILE_BYTES):
                path = self.path / f"{column.name}-{len(files):05d}.arrow"
                files.append(write_columns(path, table.slice(start, stop - start), [column]))
            known[column.name] = entry_of(column, files)
        return entries[len(self.manifest["shards"]) :], known


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


def plan_name(keys: np.ndarray, batch_size: int, piece_rows: int, again: bool = False) -> str:
    """Name of a build: what is computed, in which order, in which batches."""
    import hashlib

    order = hashlib.blake2b(np.ascontiguousarray(keys).view(np.uint8), digest_size=16).hexdigest()
    return json_key([order, batch_size, piece_rows] + ["again"] * again)
