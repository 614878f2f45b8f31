"""Pieces of a build that is under way: each one `Dataset.map` into a file named by its key, and a record of it.

`map` takes a file that is there for its own, whatever is in it. So the name has the key of all that determines the
content, and the record, written when `map` has finished, has the file's digest and the reasons of the rows that were
left out: a piece without its record, or with another digest, is not there. Each piece has a folder of its own, so that
what a kill leaves of it, `map`'s temporary files too, goes when it is computed again.
"""

import logging
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa

from ..data.content_keys import key_vector
from ..files import full_disk_named
from .columns import Column
from .compute import piece_features
from .digests import FileChecks, file_entry
from .files import map_table
from .keys import json_key
from .manifest import read_record, write_record

if TYPE_CHECKING:
    from .shards import ModalityFolder

logger = logging.getLogger(__name__)

PIECE_ROWS = 1024
PIECE_BYTES = 128 << 20


@dataclass
class Piece:
    """A piece as it lies on disk.

    Attributes:
        table: its rows, memory-mapped.
        columns: the pooled vector and what is kept beside it.
        faults: source key (hexadecimal) -> reason, of the rows that were left out.
    """

    table: pa.Table
    columns: list[Column]
    faults: dict[str, str]


class Build:
    """Pieces of one planned build, in `building-<plan>/` of a modality's folder."""

    def __init__(self, folder: "ModalityFolder", plan: str) -> None:
        self.folder = folder
        self.plan = plan
        self.path = folder.path / f"building-{plan}"

    def piece_path(self, index: int) -> Path:
        """The file of a piece; its record lies beside it."""
        key = json_key([self.folder.path.name, self.plan, index])
        return self.path / f"{index:06d}" / f"piece-{index:06d}-{key}.arrow"

    def is_done(self, index: int) -> bool:
        """Whether a piece is there and whole. A damaged one is named; it is computed again."""
        return self._read(self.piece_path(index), "It is computed again") is not None

    def write_piece(
        self,
        index: int,
        planned: pa.Table,
        columns: list[Column],
        embed: Callable[[pa.Table], tuple[pa.Table, dict[int, str]]],
    ) -> None:
        """Compute one piece and write it.

        Args:
            index: number of the piece.
            planned: its rows, as they were planned.
            columns: the pooled vector and what is kept beside it.
            embed: see `compute.embed_rows`.

        Raises:
            OSError: the folder cannot be written; nothing half-written is kept.
        """
        import datasets

        path = self.piece_path(index)
        shutil.rmtree(path.parent, ignore_errors=True)  # `map` would take what lies there
        faults: dict[str, str] = {}

        def run(rows: pa.Table) -> pa.Table:
            table, left_out = embed(rows)
            faults.update({planned["source"][row].as_py().hex(): reason for row, reason in left_out.items()})
            return table

        try:
            with full_disk_named(path), _no_bars():
                datasets.Dataset(planned, fingerprint=path.stem).with_format("arrow").map(
                    run,
                    batched=True,
                    batch_size=len(planned),
                    writer_batch_size=len(planned),
                    features=piece_features(columns, "num_tokens" in planned.column_names),
                    # Else `datasets` takes the digest of the function, and with it of the tower.
                    new_fingerprint=path.stem,
                    cache_file_name=str(path),
                    load_from_cache_file=False,
                    num_proc=None,
                )
            written = {"file": path.name, "columns": [asdict(column) for column in columns]} | file_entry(path)
            write_record(path.with_suffix(".json"), {"piece": written, "faults": faults})
        except BaseException:
            shutil.rmtree(path.parent, ignore_errors=True)
            raise

    def finish(self, shard_rows: int, *, whole: bool = False, again: bool = False) -> None:
        """Join the pieces that are there, in their planned order, commit them, and remove them.

        Args:
            shard_rows: rows of one shard.
            whole: all pieces were just computed or checked, so a damaged one is an error; else it is left out.
            again: their rows replace those that are there.

        Raises:
            ValueError: a piece is damaged; it is deleted, and the same build computes it again.
        """
        pieces = []
        for path in sorted(self.path.glob("*/piece-*.arrow")):
            piece = self._read(path, "Run the same command again: this piece is computed again")
            if piece is None and whole:
                shutil.rmtree(path.parent)
                raise ValueError(
                    f"{path} was damaged after it was written, see the warning above; it was deleted. Check the disk, "
                    "and run the same command again: this piece is computed again, all others are kept"
                )
            if piece is not None:
                pieces.append(piece)
        if pieces:
            # A build killed after its commit leaves pieces whose rows are there already.
            fresh = [piece.table for piece in pieces if again or self._has_new_rows(piece.table)]
            faults = {key: why for piece in pieces for key, why in piece.faults.items()}
            columns = pieces[0].columns
            shards, further = self.folder.write_shards(columns, fresh, shard_rows) if fresh else ([], {})
            self.folder.commit(columns[0].shape[0], shards, faults, further, again=again and bool(shards))
        # Renamed first: what a kill leaves of it must not look like a build to go on with.
        done = self.path.rename(self.path.with_name(f".{self.path.name}.partial"))
        shutil.rmtree(done)

    def _has_new_rows(self, table: pa.Table) -> bool:
        return bool((self.folder.lookup(key_vector(table["source"].to_pylist())) < 0).any())

    def _read(self, path: Path, advice: str) -> Piece | None:
        """A piece, compared with its record; None if there is none, or if it is damaged, which is said."""
        try:
            return read_piece(path, advice)
        except FileNotFoundError:
            return None
        except ValueError as error:
            logger.warning("%s", error)
            return None


def read_piece(path: Path, advice: str) -> Piece:
    """Read a piece that has a record, and compare both with their digests.

    Args:
        path: the file.
        advice: a sentence for messages: what to do.

    Raises:
        FileNotFoundError: there is no such piece, or no record of it: it was not finished.
        ValueError: one of both is damaged, or of another piece.
    """
    record = read_record(path.with_suffix(".json"), advice)
    entry = record.get("piece", {})
    if entry.get("file") != path.name:
        raise ValueError(f"{path.with_suffix('.json')} is of another piece. {advice}")
    FileChecks("full").check(path.parent, [entry], advice, "xxh3")
    columns = [Column(**column | {"shape": tuple(column["shape"])}) for column in entry["columns"]]
    return Piece(map_table(path), columns, record["faults"])


@contextmanager
def _no_bars() -> Iterator[None]:
    """Without the bars of `datasets`, one a piece: the build has a bar of its own."""
    import datasets

    hidden = datasets.are_progress_bars_disabled()
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        if not hidden:
            datasets.enable_progress_bars()
