"""One modality of a build: which rows are wanted, what is missing, and computing it."""

import logging
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa

from ..data.content_keys import content_key, digest, image_reference, key_vector
from ..data.reading import Reading
from ..data.views import target_pixels
from ..privacy.mode import key_name, keyed_digests, private_reason
from ..progress import progress
from .columns import Column
from .compute import Batch, embed_rows
from .digests import FileChecks
from .extract import columns_of
from .files import key_array
from .image_batches import READ_ERROR, ImageBatches, check_store, image_batches
from .image_store import GREY, ImageStore
from .joining import FILE_BYTES
from .keys import json_key, modality_key
from .lookup import distinct_rows, find_keys
from .memory import release_memory
from .pieces import PIECE_BYTES, Build
from .shards import KEY_BYTES, POOLED, ModalityFolder, key_hex, plan_name, row_ranges
from .source import TowerSource
from .stored import StoredImages, StoredTexts, asked_in
from .table import PairTable, needed
from .text_batches import TextBatches, check_span_range, prefetch

logger = logging.getLogger(__name__)


@dataclass
class Settings:
    """Arguments of `build_cache` that both modalities need."""

    batch_size: int
    dtype: str
    max_text_length: int
    num_workers: int
    piece_rows: int
    shard_rows: int
    image_store: ImageStore | None = None
    reading: Reading = GREY
    checks: FileChecks = field(default_factory=FileChecks)
    stored_images: StoredImages = field(default_factory=StoredImages)
    stored_texts: StoredTexts = field(default_factory=StoredTexts)
    rebuild: bool = False


@dataclass
class Plan:
    """What is to be computed, the same on every rank.

    Attributes:
        name: of the build.
        rows: (n,) row of the data set for each planned position.
        keys: (n,) source keys.
        lengths: (n,) tokens before truncation; None for images.
        columns: the pooled vector and what is kept beside it.
        pieces: first and last position + 1 of each piece that is not there yet, by piece number.
    """

    name: str
    rows: np.ndarray
    keys: np.ndarray
    lengths: np.ndarray | None
    columns: list[Column]
    pieces: dict[int, tuple[int, int]] = field(default_factory=dict)

    def piece(self, start: int, stop: int) -> pa.Table:
        """The planned rows from `start` to `stop`: their keys, and for texts their numbers of tokens."""
        columns: dict[str, pa.Array] = {"source": key_array(self.keys[start:stop]).cast(pa.binary())}
        if self.lengths is not None:
            columns["num_tokens"] = pa.array(self.lengths[start:stop])
        return pa.table(columns)


class Modality:
    """Images or texts of one build.

    Attributes:
        name: "images" or "texts".
        folder: where this modality's embeddings are.
        spec: the tower's spec; for images with their reading (`Reading.in_spec`), which a model's config carries on.
        max_length: tokens a text is cut to; None for images.
    """

    def __init__(
        self, name: str, source: TowerSource, identity: dict, spec: dict, cache_dir: Path, settings: Settings
    ) -> None:
        self.name = name
        self.source = source
        # A checkpoint's spec may say how its images were read: here that is for this data set to say.
        self.spec = settings.reading.in_spec(spec) if name == "images" else dict(spec)
        self.settings = settings
        self.tower_identity = identity
        self.max_length = None
        if name == "texts":
            self.max_length = min(settings.max_text_length, self.spec.get("max_length") or settings.max_text_length)
            check_span_range(self.max_length, settings.stored_texts)
        if name == "images" and settings.image_store is not None:
            identity = identity | {"image_store": settings.image_store.identity}
        if name == "images":
            identity = identity | settings.reading.key
        self.stored = settings.stored_images if name == "images" else settings.stored_texts
        identity = identity | self.stored.key
        if key_name() is not None:
            # Rows of another key, or of none, must not lie beside these.
            identity = identity | {"private": key_name()}
        header = {
            "tower": self.spec,
            "identity": identity,
            "dtype": settings.dtype,
            "width": identity["hidden_size"],
            "max_text_length": self.max_length,
        }
        key = modality_key(identity, settings.dtype, self.max_length)
        self.folder = ModalityFolder(cache_dir, name, key, header, settings.checks)
        self._columns: list[Column] | None = None
        self._rows = np.empty(0, dtype=np.int64)
        self._looked_up = 0  # never before

    def keys(self, table: PairTable) -> np.ndarray:
        return table.image_keys if self.name == "images" else table.text_keys

    def rows(self, table: PairTable) -> np.ndarray:
        """(n,) row of this modality's folder for each row of the table, -1 where there is none."""
        if self._looked_up != self.folder.changes:
            present = table.has_image if self.name == "images" else table.has_text
            self._rows = self.folder.lookup(self.keys(table))
            self._rows[~present] = -1
            self._looked_up = self.folder.changes
        return self._rows

    def missing(self, table: PairTable) -> np.ndarray:
        """(m,) rows of the table, one for each distinct image or text that has no embedding (or is
        to have a new one), in order of appearance."""
        keys = self.keys(table)
        wanted = needed(table, self.name)
        wanted = np.nonzero(wanted if self.settings.rebuild else wanted & (self.rows(table) < 0))[0]
        if not len(wanted):
            return wanted
        # Mostly all are wanted: then a copy of the keys is saved.
        rows = wanted[distinct_rows(keys if len(wanted) == len(keys) else keys[wanted])]
        if self.settings.rebuild:
            return rows
        failed = [key for key, why in self.folder.fault_reasons().items() if not why.startswith(READ_ERROR)]
        return rows[find_keys(key_vector(map(bytes.fromhex, failed)), keys[rows]) < 0]

    def check_columns(self) -> None:
        """Refuse what the tower cannot give; where rows are there already it could.

        Raises:
            ValueError: the tower does not have what is asked for.
        """
        if self.stored.key and not self.folder.rows:
            self._stored_columns()

    def _stored_columns(self) -> list[Column]:
        if self._columns is None:
            self._columns = columns_of(self.source.load(), self.stored, self.settings.dtype)
        return self._columns

    def plan(self, table: PairTable) -> Plan:
        """Plan the build; call with the lock held, on rank 0."""
        self.folder.reload()
        self.folder.remove_leftovers()
        rows = self.missing(table)
        self._rows, self._looked_up = self._rows[:0], 0  # what is computed now changes them
        if len(rows) and not self.folder.rows:
            self._say_what_lies_elsewhere(len(rows))
        if self.name == "images" and self.folder.rows and len(rows) and not self.settings.rebuild:
            rows = self._without_known_content(table, rows)
        release_memory()
        plan = self._arrange(table, rows)
        others = [build for build in self.folder.builds() if build.plan != plan.name]
        if others:
            # Another data set's build was killed here: what it finished counts, and the rest is planned anew.
            for build in others:
                build.finish(self.settings.shard_rows)
            return self.plan(table)
        build = Build(self.folder, plan.name)
        pieces = enumerate(row_ranges(len(plan.rows), self._piece_rows(plan)))
        plan.pieces = {index: piece for index, piece in pieces if not build.is_done(index)}
        return plan

    def _say_what_lies_elsewhere(self, rows: int) -> None:
        """That the tower runs again, where it has run and something else was kept."""
        ours, our_stored = _tower_and_stored(self.folder.manifest)
        for folder, manifest in self.folder.siblings():
            theirs, their_stored = _tower_and_stored(manifest)
            if theirs == ours and their_stored != our_stored:
                asked = asked_in(manifest["identity"].get("stored", {}))
                kept = [name for name in asked if not name.startswith("view_")]
                logger.info(
                    "all %d %s run through the tower again: what is stored is part of the key. %d of this tower lie in "
                    "another folder, %s, with %s",
                    rows, self.name, manifest["rows"], folder.name, " and ".join(["pooled vectors", *kept]),
                )  # fmt: skip

    def _piece_rows(self, plan: Plan) -> int:
        """Rows of a piece: whole batches, with tokens as many as fit into `PIECE_BYTES`, and with views as many as take
        as many passes."""
        rows = self.settings.piece_rows // (1 + getattr(self.stored, "views", 0))
        if len(plan.columns) > 1 and len(plan.rows):
            rows = min(rows, PIECE_BYTES // int(self._row_bytes(plan).max()))
        return self.settings.batch_size * max(1, rows // self.settings.batch_size)

    def _arrange(self, table: PairTable, rows: np.ndarray) -> Plan:
        lengths = None
        if self.name == "texts" and len(rows):
            tokenizer = self.source.load().processor
            batches = TextBatches(table.dataset, tokenizer, self.max_length)
            lengths = batches.lengths(rows)
            release_memory()
            logger.info(
                "text tower: of %d new texts %.1f %% are cut at %d tokens, %.2f %% of the tokens are unknown to it",
                len(rows), 100 * (lengths > self.max_length).mean(), self.max_length,
                100 * batches.unknown / max(1, lengths.sum()),
            )  # fmt: skip
            # Equal lengths side by side: a batch is padded to its longest, so hardly at all.
            order = np.argsort(lengths, kind="stable")
            rows, lengths = rows[order], lengths[order]
        keys = self.keys(table)[rows]
        columns = [Column(POOLED, (self.folder.manifest["width"],), self.settings.dtype)]
        if self.stored.key and len(rows):
            columns = self._stored_columns()
        name = plan_name(keys, self.settings.batch_size, self.settings.piece_rows, self.settings.rebuild)
        return Plan(name, rows, keys, lengths, columns)

    def _without_known_content(self, table: PairTable, rows: np.ndarray) -> np.ndarray:
        """Leave out images that are there under another path or time; only a grown or moved data set pays for this."""
        column = table.dataset.select_columns(["image"])
        digests = []
        for row in rows:
            path, data = image_reference(column[[int(row)]].column("image")[0].as_py())
            try:
                digests.append(digest(data) if data is not None else content_key(path))
            except OSError:
                digests.append(b"\0" * 16)
        digests = keyed_digests(key_vector(digests))
        found = find_keys(self.folder.keys("digest"), digests) >= 0
        if found.any():
            self.folder.add_aliases(self.keys(table)[rows[found]], digests[found])
        return rows[~found]

    def bytes_needed(self, plan: Plan) -> int:
        """Disk space that a plan still takes: its pieces, the files they are joined into, and one file in between."""
        sizes = self._row_bytes(plan)
        todo = sum(sizes[start:stop].sum() for start, stop in plan.pieces.values())
        pooled = _pooled_bytes(plan.columns) * min(len(sizes), self.settings.shard_rows)
        between = max(pooled, min(sizes.sum(), FILE_BYTES) if len(plan.columns) > 1 else 0)
        return int(todo + sizes.sum() + between)

    def _row_bytes(self, plan: Plan) -> np.ndarray:
        """(n,) bytes of each planned row."""
        fixed = _pooled_bytes(plan.columns)
        fixed += sum(column.row_bytes for column in plan.columns[1:] if not column.ragged)
        tokens = sum(column.row_bytes for column in plan.columns if column.ragged)
        lengths = 0 if plan.lengths is None else np.minimum(plan.lengths, self.max_length)
        return np.full(len(plan.rows), fixed, np.int64) + tokens * lengths

    def compute(self, table: PairTable, plan: Plan, rank: int, world: int) -> None:
        """Compute this rank's share of the pieces that are not there yet."""
        mine = list(plan.pieces.items())[rank::world]
        if not mine:
            return
        tower = self.source.load_as(self.tower_identity)
        build = Build(self.folder, plan.name)
        size = self.settings.batch_size
        batches = [batch for _, piece in mine for batch in row_ranges(piece[1], size, piece[0])]
        # One loader for all pieces: its workers decode the next piece's images while this one is written.
        loaded = (self._images if self.name == "images" else self._texts)(tower, table, plan, batches)
        total = sum(stop - start for _, (start, stop) in mine)
        title = self.name if world == 1 else f"{self.name}, rank {rank} of {world}"
        with progress(total, title, shown=rank == 0) as bar:
            embed = partial(
                embed_rows, tower=tower, stored=self.stored, columns=plan.columns, batches=loaded, batch_size=size,
                done=bar.update,
            )  # fmt: skip
            for index, piece in mine:
                build.write_piece(index, plan.piece(*piece), plan.columns, embed)

    def finish(self, plan: Plan) -> None:
        """Commit the pieces of a plan; call with the lock held, on rank 0, when all ranks are done."""
        build = Build(self.folder, plan.name)
        if build.path.exists():
            before = self.folder.rows
            build.finish(self.settings.shard_rows, whole=True, again=self.settings.rebuild)
            rows = self.folder.lookup(plan.keys)
            if self.settings.rebuild and (kept := int(((rows >= 0) & (rows < before)).sum())):
                logger.warning("%d %s could not be embedded anew and keep the embeddings they had", kept, self.name)

    def collect_faults(self, table: PairTable) -> None:
        """Mark the rows of the table whose image or text gave no embedding; its keys are needed no more, and go."""
        rows = np.nonzero(needed(table, self.name) & (self.rows(table) < 0))[0]
        reasons = self.folder.fault_reasons()
        for row, key in zip(rows, key_hex(self.keys(table)[rows]), strict=True):
            table.faults[int(row)] = reasons.get(key, "embedding is missing")
        if self.name == "images":
            table.image_keys = None
        else:
            table.text_keys = None

    def _images(self, tower, table: PairTable, plan: Plan, batches: list[tuple[int, int]]) -> Iterator[Batch]:
        store, reading = self.settings.image_store, self.settings.reading
        processor = tower.processor
        if store is not None:
            store.check(target_pixels(processor))
            check_store(store, processor, self.stored)
        # The tower may be a checkpoint's, whose own reading must not change what is read here.
        if getattr(processor, "image_mode", None) is not None:
            processor.image_mode = reading.mode
        if reading.mode == "RGB" and getattr(processor, "do_grayscale", False):
            logger.warning("Images are read in colour, but the vision tower takes one channel: it sees them as grey.")
        starts = np.array([start for start, _ in batches])
        size = self.settings.batch_size
        loader = image_batches(
            ImageBatches(table.dataset, plan.rows, starts, size, processor, plan.keys, store, reading, self.stored),
            min(self.settings.num_workers, len(starts)),
            next(tower.parameters()).device.type == "cuda",
        )
        for batch in loader:
            faults = {offset: private_reason(reason) for offset, reason in batch["faults"].items()}
            digests = keyed_digests(key_vector([batch["digests"]]))
            yield Batch(batch["inputs"], np.array(batch["kept"], np.int64), digests, faults)

    def _texts(self, tower, table: PairTable, plan: Plan, batches: list[tuple[int, int]]) -> Iterator[Batch]:
        texts = TextBatches(table.dataset, tower.processor, self.max_length, self.stored)
        encoded = prefetch(lambda batch: texts.encode(plan.rows[batch[0] : batch[1]]), batches)
        for inputs, (start, stop) in zip(encoded, batches, strict=True):
            yield Batch(inputs, np.arange(stop - start), plan.keys[start:stop], {})


def _tower_and_stored(manifest: dict) -> tuple[str, str]:
    """Digests of what made the pooled vectors, but their dtype, and of what is kept beside them."""
    identity = dict(manifest["identity"])
    stored = identity.pop("stored", {})
    return modality_key(identity, "", manifest.get("max_text_length")), json_key(stored)


def _pooled_bytes(columns: list[Column]) -> int:
    return columns[0].row_bytes + KEY_BYTES
