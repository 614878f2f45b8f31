"""One modality of a build: which rows are wanted, what is missing, and computing it piece by piece."""

import logging
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from ..data.content_keys import content_key, digest, image_reference, key_vector
from ..data.reading import Reading
from ..privacy.mode import key_name, keyed_digests, private_reason
from ..progress import progress
from .compute import digests_of, embed, vector_faults
from .digests import FileChecks
from .image_batches import READ_ERROR, ImageBatches, image_batches, target_pixels
from .image_store import GREY, ImageStore
from .keys import modality_key
from .lookup import distinct_rows, find_keys
from .memory import release_memory
from .shards import Build, ModalityFolder, key_hex, plan_name, row_ranges
from .source import TowerSource
from .table import PairTable, needed
from .text_batches import TextBatches, prefetch

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


@dataclass
class Plan:
    """What is to be computed, the same on every rank.

    Attributes:
        name: of the build.
        rows: (n,) row of the data set for each planned position.
        keys: (n,) source keys.
        lengths: (n,) tokens before truncation; None for images.
        pieces: first and last position + 1 of each piece that is not there yet, by piece number.
    """

    name: str
    rows: np.ndarray
    keys: np.ndarray
    lengths: np.ndarray | None
    pieces: dict[int, tuple[int, int]] = field(default_factory=dict)


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
        if name == "images" and settings.image_store is not None:
            identity = identity | {"image_store": settings.image_store.identity}
        if name == "images":
            identity = identity | settings.reading.key
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
        """(m,) rows of the table, one for each distinct image or text that has no embedding, in order of appearance."""
        keys = self.keys(table)
        wanted = np.nonzero(needed(table, self.name) & (self.rows(table) < 0))[0]
        if not len(wanted):
            return wanted
        # Mostly all are wanted: then a copy of the keys is saved.
        rows = wanted[distinct_rows(keys if len(wanted) == len(keys) else keys[wanted])]
        failed = [key for key, why in self.folder.fault_reasons().items() if not why.startswith(READ_ERROR)]
        return rows[find_keys(key_vector(map(bytes.fromhex, failed)), keys[rows]) < 0]

    def plan(self, table: PairTable) -> Plan:
        """Plan the build; call with the lock held, on rank 0."""
        self.folder.reload()
        self.folder.remove_leftovers()
        rows = self.missing(table)
        self._rows, self._looked_up = self._rows[:0], 0  # what is computed now changes them
        if self.name == "images" and self.folder.rows and len(rows):
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
        size = self.settings.batch_size * max(1, self.settings.piece_rows // self.settings.batch_size)
        pieces = enumerate(row_ranges(len(plan.rows), size))
        plan.pieces = {index: piece for index, piece in pieces if not build.is_done(index)}
        return plan

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
        return Plan(plan_name(keys, self.settings.batch_size, self.settings.piece_rows), rows, keys, lengths)

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
        digests = keyed_digests(digests_of(b"".join(digests)))
        found = find_keys(self.folder.keys("digest"), digests) >= 0
        if found.any():
            self.folder.add_aliases(self.keys(table)[rows[found]], digests[found])
        return rows[~found]

    def bytes_needed(self, plan: Plan) -> int:
        """Disk space that a plan still takes: its pieces, the shards they are merged into, and one shard in between."""
        row = self.folder.manifest["width"] * np.dtype(self.settings.dtype).itemsize + 36
        todo = sum(stop - start for start, stop in plan.pieces.values())
        return row * (todo + len(plan.rows) + min(len(plan.rows), self.settings.shard_rows))

    def compute(self, table: PairTable, plan: Plan, rank: int, world: int) -> None:
        """Compute this rank's share of the pieces that are not there yet."""
        mine = list(plan.pieces.items())[rank::world]
        if not mine:
            return
        tower = self.source.load_as(self.tower_identity)
        build = Build(self.folder, plan.name)
        total = sum(stop - start for _, (start, stop) in mine)
        title = self.name if world == 1 else f"{self.name}, rank {rank} of {world}"
        with progress(total, title, shown=rank == 0) as bar:
            run = self._image_pieces if self.name == "images" else self._text_pieces
            run(tower, table, plan, mine, build, bar)

    def finish(self, plan: Plan) -> None:
        """Commit the pieces of a plan; call with the lock held, on rank 0, when all ranks are done."""
        build = Build(self.folder, plan.name)
        if build.path.exists():
            build.finish(self.settings.shard_rows, whole=True)

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

    def _image_pieces(self, tower, table, plan, mine, build, bar) -> None:
        if self.settings.image_store is not None:
            self.settings.image_store.check(target_pixels(tower.processor))
        size = self.settings.batch_size
        starts = np.concatenate([np.arange(*piece, size) for _, piece in mine])
        store, reading = self.settings.image_store, self.settings.reading
        processor = tower.processor
        # The tower may be a checkpoint's, whose own reading must not change what is read here.
        if getattr(processor, "image_mode", None) is not None:
            processor.image_mode = reading.mode
        if reading.mode == "RGB" and getattr(processor, "do_grayscale", False):
            logger.warning("Images are read in colour, but the vision tower takes one channel: it sees them as grey.")
        loaded = image_batches(
            ImageBatches(table.dataset, plan.rows, starts, size, processor, plan.keys, store, reading),
            min(self.settings.num_workers, len(starts)),
            next(tower.parameters()).device.type == "cuda",
        )
        for index, piece in mine:
            vectors, digests, kept, faults = [], [], [], {}
            for start, stop in row_ranges(piece[1], size, piece[0]):
                batch = next(loaded)
                if batch["kept"]:
                    inputs = {"pixel_values": batch["pixel_values"]}
                    vectors.append(embed(tower, inputs, self.settings.dtype))
                    kept += [start + offset for offset in batch["kept"]]
                    digests.append(batch["digests"])
                faults |= {start + offset: private_reason(reason) for offset, reason in batch["faults"].items()}
                bar.update(stop - start)
            columns = {"digest": keyed_digests(digests_of(b"".join(digests)))}
            self._write(build, index, plan, vectors, kept, columns, faults)

    def _text_pieces(self, tower, table, plan, mine, build, bar) -> None:
        texts = TextBatches(table.dataset, tower.processor, self.max_length)
        size = self.settings.batch_size
        batches = (batch for _, piece in mine for batch in row_ranges(piece[1], size, piece[0]))
        encoded = prefetch(lambda batch: texts.encode(plan.rows[batch[0] : batch[1]]), batches)
        for index, piece in mine:
            vectors = []
            for start, stop in row_ranges(piece[1], size, piece[0]):
                vectors.append(embed(tower, next(encoded), self.settings.dtype))
                bar.update(stop - start)
            kept = np.arange(*piece)
            columns = {"digest": plan.keys[kept], "num_tokens": plan.lengths[kept]}
            self._write(build, index, plan, vectors, kept, columns, {})

    def _write(self, build, index, plan, vectors, kept, columns, faults) -> None:
        width = self.folder.manifest["width"]
        dtype = np.dtype(self.settings.dtype)
        stacked = np.concatenate(vectors) if vectors else np.empty((0, width), dtype)
        bad = vector_faults(stacked)
        faults = faults | {int(kept[row]): reason for row, reason in bad.items()}
        good = np.setdiff1d(np.arange(len(stacked)), np.fromiter(bad, dtype=np.int64))
        kept = np.asarray(kept, dtype=np.int64)[good]
        columns = {"source": plan.keys[kept]} | {name: values[good] for name, values in columns.items()}
        positions = np.fromiter(faults, dtype=np.int64)
        named = dict(zip(key_hex(plan.keys[positions]), faults.values(), strict=True))
        build.write_piece(index, stacked[good], columns, named)
