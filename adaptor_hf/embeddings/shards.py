"""One modality's folder: committed shards of one record batch each, and the pieces of a build that is under way.

A build is cut into pieces of a few thousand rows, planned once for all ranks. A piece is written aside and renamed
when whole, so that a killed build computes at most one piece a rank again. When all are there they are merged into
shards, and the manifest, renamed into place, commits them. Shards are only ever added: row numbers stay valid.
"""

import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from ..files import read_regular
from .digests import FileChecks, check_seal
from .files import (
    KEY_DTYPE,
    batch_metadata,
    embedding_batch,
    key_array,
    key_view,
    map_batch,
    merged,
    write_batch,
)
from .keys import json_key
from .lookup import find_keys
from .manifest import CACHE_VERSION, MANIFEST, read_manifest, repair, write_record

logger = logging.getLogger(__name__)

SHARD_ROWS = 65_536
PIECE_ROWS = 1024
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

    def commit(self, shards: list[dict], width: int, faults: dict[str, str]) -> None:
        """Add finished shard files and faults to the manifest."""
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
        self.manifest = write_record(self.path / MANIFEST, self.manifest)

    def remove_leftovers(self) -> None:
        """Delete what a killed build left half-written; call with the lock held."""
        for pattern in (".data-*.partial", "building-*/.piece-*.partial"):
            for path in self.path.glob(pattern):
                path.unlink()

    def builds(self) -> list["Build"]:
        """Builds that were begun and not committed."""
        return [Build(self, path.name.removeprefix("building-")) for path in sorted(self.path.glob("building-*"))]

    def write_shards(self, batches: list[pa.RecordBatch], shard_rows: int) -> list[dict]:
        """Merge record batches into new shard files of one record batch each; returns their manifest entries."""
        table = pa.Table.from_batches([batch.replace_schema_metadata(None) for batch in batches])
        entries = []
        for start in range(0, table.num_rows, shard_rows):
            part = table.slice(start, shard_rows)
            path = self.path / f"data-{len(self.manifest['shards']) + len(entries):05d}.arrow"
            with merged(part, self.path) as batch:
                entries.append(write_batch(path, batch))
        return entries


class Build:
    """Pieces of one planned build, in `building-<plan>/` of a modality's folder."""

    def __init__(self, folder: ModalityFolder, plan: str) -> None:
        self.folder = folder
        self.plan = plan
        self.path = folder.path / f"building-{plan}"

    def piece_path(self, index: int) -> Path:
        return self.path / f"piece-{index:06d}.arrow"

    def is_done(self, index: int) -> bool:
        """Whether a piece is there and whole. A damaged one is named; it is computed again."""
        path = self.piece_path(index)
        return path.exists() and self._piece(path, "It is computed again") is not None

    def _piece(self, path: Path, advice: str) -> pa.RecordBatch | None:
        try:
            # Also of version 1, whose pieces have no digest: at most one build that was under way is begun anew.
            check_seal(path, advice)
            return map_batch(path)
        except ValueError as error:
            logger.warning("%s", error)
            return None

    def write_piece(
        self, index: int, vectors: np.ndarray, columns: dict[str, np.ndarray], faults: dict[str, str]
    ) -> None:
        """Write one piece: (n, D) vectors with their columns, and the faults found on the way."""
        self.path.mkdir(parents=True, exist_ok=True)
        write_batch(self.piece_path(index), embedding_batch(vectors, columns, {"faults": faults}), seal=True)

    def finish(self, shard_rows: int, *, whole: bool = False) -> None:
        """Merge the pieces that are there, in their planned order, commit them, and remove them.

        Args:
            shard_rows: rows of one shard.
            whole: all pieces were just computed or checked, so a damaged one is an error; else it is left out.

        Raises:
            ValueError: a piece is damaged; it is deleted, and the same build computes it again.
        """
        batches = []
        for path in sorted(self.path.glob("piece-*.arrow")):
            batch = self._piece(path, "Run the same command again: this piece is computed again")
            if batch is None and whole:
                path.unlink()
                raise ValueError(
                    f"{path} was damaged after it was written, see the warning above; it was deleted. Check the disk, "
                    "and run the same command again: this piece is computed again, all others are kept"
                )
            if batch is not None:
                batches.append(batch)
        faults = {key: why for batch in batches for key, why in batch_metadata(batch).get("faults", {}).items()}
        # A build killed after its commit leaves pieces whose rows are there already.
        fresh = [batch for batch in batches if (self.folder.lookup(key_view(batch, "source")) < 0).any()]
        if batches:
            width = batches[0].column("embedding").type.list_size
            self.folder.commit(self.folder.write_shards(fresh, shard_rows) if fresh else [], width, faults)
        shutil.rmtree(self.path)


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
