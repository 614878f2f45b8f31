"""Reads a cache: memory-mapped shards, gathered into batches without copying what is not asked for."""

import os
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from .column_batches import batch_names
from .columns import Column
from .digests import FileChecks, data_entry
from .faults import EXCLUDED, read_excluded
from .files import json_bytes
from .manifest import MANIFEST, modality_files, rebuild
from .pair_store import PairStore
from .pairs import LATEST, PAIRS_FILE, latest_pairs
from .ranks import Ranks
from .resident import ResidentCache, read_batch
from .sequences import stored_column, with_sequences
from .targets import TARGETS
from .vectors import Shards, Vectors

# Names of the pooled vectors in batches.
_POOLED = {"images": "image_embeds", "texts": "text_embeds"}


def open_cache(
    path: str | os.PathLike, split: str | None = None, *, columns: Sequence[str] = (), check: str = "touched"
) -> "EmbeddingCache":
    """Open a cache made by `build_cache` or `import_embeddings`.

    All paths inside are relative: a cache may be moved or copied to another machine. Every opening compares files with
    their digests again (XXH3-128; SHA-256 in a cache of version 0.1): that a file has its size and time says nothing.

    Args:
        path: cache folder (the pairs built last are opened), or one `pairs-<key>` folder in it.
        split: "train", "validation" or "test"; None is all rows.
        columns: what batches have beside the pooled vectors, of `stored_columns`, such as "image_tokens".
        check: "touched": the manifests, the pairs and the shards of pooled vectors that hold a row of theirs, now;
            other files, those of columns among them, when a process first reads them. "full": all files of these
            folders now, and not again in workers. "off": nothing but sizes.

    Raises:
        FileNotFoundError: no cache there, or one of its files is missing (named).
        ValueError: damaged file (named), other format or version, no such split or column, or an unknown `check`.
    """
    cache = EmbeddingCache(find_pairs(path, check=check != "off"), checks=FileChecks(check), columns=columns)
    return cache if split is None else cache.split(split)


def open_together(path: str | os.PathLike, checks: FileChecks, ranks: Ranks) -> "EmbeddingCache":
    """Open a cache on all ranks of a launch, each of which must make this call: files are checked once on each node.

    Args:
        path: as of `open_cache`.
        checks: what is compared with digests, and was already.
        ranks: of the launch.

    Raises:
        FileNotFoundError, ValueError: as `open_cache`, on the rank that found it; elsewhere RuntimeError that says so.
    """
    opened: list[EmbeddingCache] = []

    def first() -> None:
        opened.append(EmbeddingCache(find_pairs(path, check=checks.metadata), checks=checks))

    if ranks.once_a_node(first):
        return opened[0]
    return EmbeddingCache(find_pairs(path, check=checks.metadata), checks=checks.done_elsewhere())


def find_pairs(path: str | os.PathLike, *, check: bool = True) -> Path:
    """The `pairs-<key>` folder that a path means."""
    folder = Path(path)
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder} is no folder: build the cache first, with build_cache(..., cache_dir=...)")
    if not folder.name.startswith("pairs-"):
        latest = latest_pairs(folder, check=check)
        if latest is None:
            raise FileNotFoundError(
                f"{folder} holds no finished embedding cache ({LATEST} is missing). Run build_cache; if it was "
                "interrupted, it goes on from where it stopped"
            )
        folder = folder / latest
    return folder


class EmbeddingCache:
    """Pairs of cached embeddings, in the order of the data set; a view of all rows, a split, or selected rows.

    It serves a `torch.utils.data.DataLoader` or `Trainer`: `__getitems__` gathers a batch at once, so the collator
    is the identity. It pickles as a path, so workers open the files themselves.

    Batches have, as far as the modalities exist: `image_embeds` and `text_embeds`, (n, D) tensors in storage dtype,
    float16 where int8 is stored; the columns that were asked for; `text_row`, int64 (n,), equal for equal texts;
    `study`, int64 codes (n,); `row`, int64 (n,), the row in the whole cache; of several sources `source`, int64 codes
    (n,) of `source_names`. A row without text has text_row -1 and NaN for a vector: take `paired()` for contrastive
    training.

    A column of fixed shape is (n, *shape), in its dtype, float16 for int8. One whose rows differ in length is padded to
    the longest of the batch, (n, L, ...): with zeros and, for text tokens, `text_attention_mask`, (n, L) int64; spans,
    int64, with -1. Where there is no image or text, fixed rows are NaN and ragged ones empty.

    Args:
        folder: `pairs-<key>/` of a cache; use `open_cache`.
        rows: pair rows of this view; None is all.
        checks: what is compared with digests.
        columns: of `stored_columns`, in batches beside the pooled vectors; and "targets", see `with_columns`.
        sequences: as of `with_columns`.

    Raises:
        FileNotFoundError, ValueError: as `open_cache`.
    """

    def __init__(
        self,
        folder: str | os.PathLike,
        rows: np.ndarray | None = None,
        checks: FileChecks | None = None,
        columns: Sequence[str] = (),
        sequences: bool = False,
    ) -> None:
        self._store = PairStore(Path(folder), checks or FileChecks())
        self._rows = np.arange(self._store.rows) if rows is None else np.asarray(rows, dtype=np.int64)
        self._columns, self._sequences = self._known(columns), sequences
        self._check_sizes()

    def _view(self, rows: np.ndarray, columns: tuple[str, ...] | None = None) -> "EmbeddingCache":
        view = object.__new__(type(self))
        view._store = self._store
        view._rows = rows
        view._columns = self._columns if columns is None else columns
        view._sequences = self._sequences
        return view

    def _known(self, columns: Sequence[str]) -> tuple[str, ...]:
        stored = self.stored_columns
        for name in columns:
            if name != TARGETS:
                stored_column(stored, name, str(self._store.folder))
            elif self._store.targets is None:
                raise ValueError(
                    "this cache has no targets. A build keeps them of a table with a column labels; several caches "
                    "that are joined have none in common"
                )
        return tuple(dict.fromkeys(columns))

    def with_columns(self, *names: str, sequences: bool = False) -> "EmbeddingCache":
        """This view with these columns in its batches, of `stored_columns`; without names, none.

        Args:
            names: of `stored_columns`; or "targets", the labels of the pairs: (n,) int64 classes, -1 where unknown, or
                float32 numbers, (n,) or (n, C), NaN where unknown.
            sequences: batches have tokens as the Adaptor reads them: `image_embeds` (n, 1 + T, D) and `text_embeds` (n,
                1 + L, D), the pooled vector first, instead of `image_tokens` and `text_tokens`; the mask goes with it.

        Raises:
            FileNotFoundError: a file of such a column is missing (named).
            ValueError: the cache has no such column, and which option of a build makes it; or one of its files has not
                its size.
        """
        view = self._view(self._rows, self._known(names))
        view._sequences = sequences
        view._check_sizes()
        return view

    def _check_sizes(self) -> None:
        """What is missing or cut of the columns is named now, and not when training comes there."""
        for _, shards, rows in self._shards[len(self._store.vectors) :]:
            shards.check_sizes(rows)

    @property
    def stored_columns(self) -> dict[str, Column]:
        """What is stored beside the pooled vectors: shape and dtype of a row, and more, by name."""
        return {
            name: shards.column for vectors in self._store.vectors.values() for name, shards in vectors.columns.items()
        }

    @property
    def columns(self) -> tuple[str, ...]:
        """The stored columns that batches of this view have."""
        return self._columns

    @cached_property
    def _shards(self) -> list[tuple[str, Shards, np.ndarray]]:
        """For each stored column of a batch its name, its files, and (n,) row numbers in them for all pairs."""
        store = self._store
        rows = {"images": store.image_row, "texts": store.text_row}
        pooled = [(_POOLED[name], vectors.shards, rows[name]) for name, vectors in store.vectors.items()]
        owners = {name: modality for modality, vectors in store.vectors.items() for name in vectors.columns}
        return pooled + [
            (name, store.vectors[owners[name]].columns[name], rows[owners[name]])
            for name in self._columns
            if name != TARGETS
        ]

    def __reduce__(self):
        everything = len(self._rows) == self._store.rows and (np.diff(self._rows) == 1).all()
        # A worker opens what this process has checked.
        checks = self._store.checks.done_elsewhere()
        return EmbeddingCache, (
            str(self._store.folder),
            None if everything else self._rows,
            checks,
            self._columns,
            self._sequences,
        )

    @property
    def sequences(self) -> bool:
        """Whether batches have tokens as the Adaptor reads them, see `with_columns`."""
        return self._sequences

    def __len__(self) -> int:
        return len(self._rows)

    def __repr__(self) -> str:
        parts = [f"{name}: {vectors.width} wide" for name, vectors in self._store.vectors.items()]
        return f"EmbeddingCache({len(self)} rows, {', '.join([*parts, *self._columns])}, {self._store.folder})"

    @property
    def column_names(self) -> list[str]:
        pooled = [_POOLED[modality] for modality in self._store.vectors]
        stored = self.stored_columns
        in_sequences = ("image_tokens", "text_tokens") if self._sequences else ()
        further = dict.fromkeys(
            name
            for column in self._columns
            if column != TARGETS
            for name in batch_names(stored[column])
            if name not in in_sequences
        )
        more = [*([TARGETS] if TARGETS in self._columns else []), *(["source"] if self._store.sources else [])]
        return [*pooled, *further, "text_row", "study", "row", *more]

    @property
    def members(self) -> list["EmbeddingCache"]:
        """The caches that lie in one place each: this one, or those that were joined."""
        return [self]

    @property
    def path(self) -> Path:
        """The `pairs-<key>` folder."""
        return self._store.folder

    @property
    def fingerprint(self) -> str:
        """Key of the whole cache: towers, rows, ids and splits; views of it share it."""
        return self._store.manifest["key"]

    @property
    def manifest(self) -> dict:
        """What is stored about the cache: folders, tower specs, counts, share of cut texts."""
        return self._store.manifest

    @property
    def vision_spec(self) -> dict | None:
        return self._store.manifest.get("image_tower")

    @property
    def text_spec(self) -> dict | None:
        return self._store.manifest.get("text_tower")

    @property
    def rows(self) -> np.ndarray:
        """(n,) int64 row in the whole cache of each row of this view, `row` of batches."""
        return self._rows

    def whole(self) -> "EmbeddingCache":
        """View of all rows of the cache."""
        return self._view(np.arange(self._store.rows))

    @property
    def image_rows(self) -> np.ndarray:
        """(n,) int64 image row of each pair row of this view, -1 without image."""
        return self._store.image_row[self._rows]

    @property
    def text_rows(self) -> np.ndarray:
        """(n,) int64 text row of each pair row of this view, -1 without text; equal for equal texts."""
        return self._store.text_row[self._rows]

    def image_digests(self) -> np.ndarray | None:
        """
        (n,) 16-byte digests of the content of each pair row's image, empty without image; keyed in private mode. None
        where they are not known: the cache has no images, or its embeddings were imported.
        """
        return self._digests("images", self.vision_spec, self.image_rows)

    def text_digests(self) -> np.ndarray | None:
        """(n,) 16-byte digests of each pair row's text, as `image_digests`."""
        return self._digests("texts", self.text_spec, self.text_rows)

    def _digests(self, modality: str, spec: dict | None, rows: np.ndarray) -> np.ndarray | None:
        if modality not in self._store.vectors or (spec or {}).get("library") == "external":
            return None
        return self._store.vectors[modality].keys("digest", rows)

    @property
    def num_texts(self) -> int:
        """Distinct texts of this view."""
        rows = self.text_rows
        return len(np.unique(rows[rows >= 0]))

    @property
    def num_bytes(self) -> int:
        """Bytes of the distinct vectors of this view and its columns, as stored; ragged ones by their mean length."""
        return sum(int(len(np.unique(rows[self._rows])) * shards.bytes_a_row) for _, shards, rows in self._shards)

    @property
    def num_image_only(self) -> int:
        """Rows of this view without text."""
        return int((self.text_rows < 0).sum())

    @property
    def pairs(self):
        """datasets.Dataset of this view's rows: ids, view, split, source_row, targets."""
        from datasets import Dataset

        return Dataset.from_file(str(self._store.folder / PAIRS_FILE)).select(self._rows)

    @property
    def excluded(self) -> list[dict]:
        """Rows left out of the cache: split, source_row, image_id, file, reason."""
        store = self._store
        store.checks.check(store.folder, store.manifest.get("files", []), rebuild(store.folder))
        return read_excluded(store.folder / EXCLUDED)

    def digests(self) -> dict[str, str]:
        """SHA-256, as written, of the files of this cache, by their names relative to the cache folder.

        Of the manifests that of the pairs, which names the others' files: theirs grows with each further data set.
        """
        manifests = {self.path.name: self.manifest} | self.modality_manifests()
        found = {
            f"{name}/{entry['file']}": entry["sha256"]
            for name, manifest in manifests.items()
            for entry in modality_files(manifest)
        }
        return found | {f"{self.path.name}/{MANIFEST}": data_entry(json_bytes(self.manifest))["sha256"]}

    def modality_manifests(self) -> dict[str, dict]:
        """What is stored about the images and the texts, by the names of their folders, as it was at opening."""
        return {self.manifest[name]: vectors.manifest for name, vectors in self._store.vectors.items()}

    def files(self) -> list[str]:
        """The files of this cache, relative to the cache folder."""
        return list(self.digests())

    @property
    def splits(self) -> dict[str, int]:
        """Rows of each split in this view."""
        names = self._store.splits.dictionary.to_pylist()
        counts = np.bincount(self._store.splits.indices.to_numpy()[self._rows], minlength=len(names))
        return {name: int(count) for name, count in zip(names, counts, strict=True) if count}

    def split(self, name: str) -> "EmbeddingCache":
        """View of one split.

        Raises:
            ValueError: no row of this view is in that split.
        """
        names = self._store.splits.dictionary.to_pylist()
        if name not in self.splits:
            raise ValueError(f"no split {name!r} in {self._store.folder}; there are {sorted(self.splits)}")
        codes = self._store.splits.indices.to_numpy()[self._rows]
        return self._view(self._rows[codes == names.index(name)])

    @property
    def source_names(self) -> list[str]:
        """Of the whole cache, in the order of their codes; empty of one source."""
        return list(self._store.sources)

    @property
    def source_codes(self) -> np.ndarray | None:
        """(n,) int64 source of each row of this view, a place in `source_names`; None of one source."""
        return None if self._store.source is None else self._store.source[self._rows]

    @property
    def sources(self) -> dict[str, int]:
        """Rows of each source in this view; empty of one source."""
        if (codes := self.source_codes) is None:
            return {}
        counts = np.bincount(codes, minlength=len(self._store.sources))
        return {name: int(count) for name, count in zip(self._store.sources, counts, strict=True) if count}

    def source(self, name: str) -> "EmbeddingCache":
        """View of one source.

        Raises:
            ValueError: no row of this view is of that source.
        """
        if name not in self.sources:
            raise ValueError(f"no source {name!r} in {self._store.folder}; there are {sorted(self.sources)}")
        return self._view(self._rows[self.source_codes == self._store.sources.index(name)])

    def select(self, indices: Sequence[int] | np.ndarray) -> "EmbeddingCache":
        """View of these rows of this view, in this order."""
        return self._view(self._rows[self._checked(indices)])

    def paired(self) -> "EmbeddingCache":
        """View of the rows that have both an image and a text: those for contrastive training."""
        return self._view(self._rows[(self.image_rows >= 0) & (self.text_rows >= 0)])

    def _checked(self, indices: Sequence[int] | np.ndarray) -> np.ndarray:
        indices = np.asarray(indices, dtype=np.int64)
        if len(indices) and (indices.min() < -len(self) or indices.max() >= len(self)):
            raise IndexError(f"row {indices.min()} to {indices.max()} of a cache view of {len(self)} rows")
        return np.where(indices < 0, indices + len(self), indices) if (indices < 0).any() else indices

    def __getitems__(self, indices: Sequence[int]) -> dict[str, torch.Tensor]:
        rows = self._rows[self._checked(indices)]
        store = self._store
        batch = {}
        for name, shards, numbers in self._shards:
            batch |= read_batch(name, shards, numbers[rows])
        if self._sequences:
            batch = with_sequences(batch, self.stored_columns)
        batch["text_row"] = torch.from_numpy(store.text_row[rows])
        batch["study"] = torch.from_numpy(store.study[rows])
        batch["row"] = torch.from_numpy(rows)
        if TARGETS in self._columns:
            batch[TARGETS] = torch.from_numpy(store.targets[rows])
        if store.source is not None:
            batch["source"] = torch.from_numpy(store.source[rows])
        return batch

    def __getitem__(self, index: int | slice | Sequence[int]) -> dict[str, torch.Tensor]:
        if isinstance(index, int | np.integer):
            return {name: values[0] for name, values in self.__getitems__([index]).items()}
        if isinstance(index, slice):
            index = np.arange(len(self))[index]
        return self.__getitems__(index)

    def image_embeddings(self, rows: Sequence[int] | np.ndarray | None = None) -> torch.Tensor:
        """(n, D) image embeddings in storage dtype, float16 for int8, of rows of this view; None is all of them."""
        return self._stored("images").take(self.image_rows if rows is None else self.image_rows[self._checked(rows)])

    def text_embeddings(self, rows: Sequence[int] | np.ndarray | None = None) -> torch.Tensor:
        """(n, D) text embeddings in storage dtype, float16 for int8, of rows of this view; None is all of them."""
        return self._stored("texts").take(self.text_rows if rows is None else self.text_rows[self._checked(rows)])

    def _stored(self, name: str) -> Vectors:
        if name not in self._store.vectors:
            raise ValueError(f"the cache {self._store.folder} was built without {name}")
        return self._store.vectors[name]

    def to_device(self, device: Any) -> "ResidentCache":
        """This view's embeddings as tensors on a device, for training without a loader."""
        return ResidentCache(self, device)
