"""The files of one cache of pairs, opened and compared with each other."""

import logging
from functools import cached_property
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from .digests import FileChecks
from .files import map_batch, map_batches
from .keys import check_tower
from .manifest import read_manifest, rebuild
from .pairs import PAIRS_FILE, ROWS_FILE
from .targets import TARGETS, target_values
from .vectors import Vectors

logger = logging.getLogger(__name__)


def _source_codes(table: pa.Table, names: list[str], folder: Path) -> np.ndarray | None:
    """(n,) int64 place of each row's source among the names of a manifest; None where it names none.

    Raises:
        ValueError: a row is of none of them.
    """
    if not names:
        return None
    codes = pc.index_in(table["source"], pa.array(names, pa.string())).combine_chunks()
    if codes.null_count:
        raise ValueError(f"{folder} has rows of no source that its manifest names. {rebuild(folder)}")
    return codes.cast(pa.int64()).to_numpy()


class PairStore:
    """The opened files of one cache, shared by its views."""

    def __init__(self, folder: Path, checks: FileChecks) -> None:
        self.folder = folder
        self.checks = checks
        self.manifest = read_manifest(folder, check=checks.metadata)
        if checks.metadata and self.manifest["version"] == 1:
            logger.info("%s is of version 0.1: its files have a SHA-256, its metadata no digest", folder)
        others = self.manifest.get("files", [])
        checks.check(folder, self.manifest["shards"] + (others if checks.mode == "full" else []), rebuild(folder))
        if not (folder / ROWS_FILE).is_file():
            raise ValueError(
                f"{folder} is of an early layout without {ROWS_FILE}. Run the build of {folder.parent} again: what is "
                "embedded stays, only the pairs are written anew"
            )
        batch = map_batch(folder / ROWS_FILE)
        self.rows = len(batch)
        self.image_row, self.text_row, self.study = (
            batch.column(name).to_numpy() for name in ("image_row", "text_row", "study")
        )
        table = pa.Table.from_batches(map_batches(folder / PAIRS_FILE))
        self.splits = table["split"].dictionary_encode().combine_chunks()
        self.sources = self.manifest.get("sources", [])
        self.source = _source_codes(table, self.sources, folder)
        self._labels = table[TARGETS] if TARGETS in table.column_names else None
        if not self.rows == len(table) == self.manifest["rows"]:
            raise ValueError(
                f"{folder} has {self.rows} rows in {ROWS_FILE}, {len(table)} in {PAIRS_FILE} and "
                f"{self.manifest['rows']} in its manifest. {rebuild(folder)}"
            )
        self.vectors = {}
        for modality, rows in (("images", self.image_row), ("texts", self.text_row)):
            if modality in self.manifest:
                self.vectors[modality] = self._vectors(modality, rows)

    @cached_property
    def targets(self) -> np.ndarray | None:
        """Labels of the pairs, see `target_values`; None where none were kept."""
        return None if self._labels is None else target_values(self._labels)

    def _vectors(self, modality: str, rows: np.ndarray) -> Vectors:
        vectors = Vectors(self.folder.parent / self.manifest[modality], rows, self.checks)
        if len(rows) and rows.max() >= len(vectors):
            raise ValueError(
                f"{self.folder / ROWS_FILE} needs row {rows.max()} of {self.manifest[modality]}, which has "
                f"{len(vectors)} rows. The folders do not belong together. {rebuild(self.folder)}"
            )
        spec = self.manifest.get(f"{modality[:-1]}_tower")
        if self.checks.metadata and isinstance(spec, dict):
            check_tower(self.folder, spec, vectors.manifest["identity"], rebuild(self.folder))
        # A version-1 manifest does not say which shards its row numbers are of.
        known = self.manifest.get("embedding_files", {}).get(modality, [])
        found = [entry["sha256"] for entry in vectors.manifest["shards"]]
        if found[: len(known)] != known:
            raise ValueError(
                f"{self.folder} was made for other files than those of {self.manifest[modality]}: its row numbers "
                f"would name other rows. {rebuild(self.folder)}"
            )
        return vectors


__all__ = ["PairStore"]
