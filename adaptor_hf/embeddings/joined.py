"""Several caches with the same pooled vectors as one: their files stay where they are, and no vector is copied."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from ..data.ids import SOURCE, canonical_id
from ..data.sources import source_names, unique_names
from ..data.splits import check_disjoint
from ..files import printable
from ..privacy.mode import is_private
from .keys import json_key
from .lookup import first_rows
from .pairs import study_codes
from .reader import EmbeddingCache
from .vectors import ColumnFile, Shards, Vectors

_IDS = ("image_id", "patient_id", "study_id")
_COLUMNS = (*_IDS, "view", "split", "source_row")
# Of what determines pooled vectors, those whose values say something to a reader.
_SHOWN = ("dtype", "max_text_length", "pooling", "layers", "layers_merge", "layers_norm", "truncate_layers")


def join_caches(
    caches: Sequence[EmbeddingCache], names: Sequence[str] | None = None, *, one_namespace: bool = False
) -> EmbeddingCache:
    """
    One cache of the rows of several, each a source; a single one is given back as it is.

    What has the same content in two of them, an image or a text, is one row of the joined embeddings: `text_row` is
    equal for equal texts, and copies of an image across splits are found. Ids get the name of their source before them.

    Args:
        caches: With the same pooled vectors: towers, reading and dtype. Of what is stored beside these the joined cache
            has the columns that are the same in all.
        names: Of the sources; by default those of the folders, in private mode numbers. A cache that holds several
            sources keeps their names, but for a number behind one that an earlier source has.
        one_namespace: Patient ids are of one place in all of them: patient 12 of one is patient 12 of another.

    Returns:
        EmbeddingCache: `sources`, `source(name)` and the batch column `source` are of the joined rows.

    Raises:
        ValueError: embeddings of different keys (the message says what differs), one cache twice, or, with
            `one_namespace`, a patient in several splits.
    """
    caches = list(caches)
    if len(caches) == 1:
        return caches[0]
    if not caches:
        raise ValueError("no cache is given: name one or more")
    if names is None:
        places = [str(cache.path.parent if cache.path.name.startswith("pairs-") else cache.path) for cache in caches]
        names = source_names(places, "cache")
    if len(names) != len(caches):
        raise ValueError(f"{len(names)} names for {len(caches)} caches: give one each, or none")
    if one_namespace and (several := [n for n, cache in enumerate(caches, 1) if cache.source_names]):
        raise ValueError(
            f"cache {several[0]} holds several sources, whose ids are of each of them: with others it is of no one "
            "namespace. Leave out --id_namespace, or build one cache of all tables"
        )
    _check_same_key(caches)
    return JoinedCache(caches, names, one_namespace)


def _check_same_key(caches: Sequence[EmbeddingCache]) -> None:
    if len({cache.path.resolve() for cache in caches}) < len(caches):
        raise ValueError("--cache names one cache twice. Each source is given once")
    for number, cache in enumerate(caches[1:], 2):
        for modality in ("images", "texts"):
            mine, theirs = (one.modality_manifests().get(one.manifest.get(modality), {}) for one in (caches[0], cache))
            if _of_pooled(mine) == _of_pooled(theirs):
                continue
            raise ValueError(
                f"caches 1 and {number} hold other embeddings of {modality}: {_differences(mine, theirs)}. Build both "
                "with the same towers and the same options; what is embedded already is not embedded again"
            )


def _of_pooled(manifest: dict) -> dict[str, Any]:
    """What determines the pooled vectors of a modality: all that its key is of, but for what is stored beside them."""
    if not manifest:
        return {}
    known = {"dtype": manifest["dtype"], "max_text_length": manifest.get("max_text_length")} | manifest["identity"]
    return {name: value for name, value in known.items() if name != "stored"}


def _named(one: dict, other: dict, shown: Sequence[str] | None = None) -> str:
    """Names of what is not the same in two dictionaries, with those values that are shown; None is all of them."""
    said = []
    for name in dict.fromkeys([*one, *other]):
        values = [one.get(name), other.get(name)]
        if values[0] == values[1]:
            continue
        plain = (shown is None or name in shown) and not any(isinstance(value, dict) for value in values)
        said.append(f"{name} ({' and '.join(map(_plain, values))})" if plain else name)
    return ", ".join(said)


def _plain(value: Any) -> str:
    return "none" if value is None else " ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def _differences(one: dict, other: dict) -> str:
    """Names of what determines embeddings and is not the same in two manifests."""
    if not one or not other:
        return "one of them has none"
    said = _named(_of_pooled(one), _of_pooled(other), _SHOWN)
    towers = [printable(str(found.get("tower", {}).get("preset") or found.get("tower", {}).get("name_or_path")))
              for found in (one, other)]  # fmt: skip
    return said if towers[0] == towers[1] or is_private() else f"{said} ({towers[0]} and {towers[1]})"


class JoinedCache(EmbeddingCache):
    """
    What `join_caches` gives; a view of it is one, too.

    Args:
        caches: Two or more.
        names: Of each.
        one_namespace: As of `join_caches`.
        rows: Joined rows of this view; None is all.
        columns: Of what is stored beside the pooled vectors.
        sequences: As of `EmbeddingCache.with_columns`.
    """

    def __init__(
        self,
        caches: Sequence[EmbeddingCache],
        names: Sequence[str],
        one_namespace: bool = False,
        rows: np.ndarray | None = None,
        columns: Sequence[str] = (),
        sequences: bool = False,
    ) -> None:
        self._store = _JoinedStore(caches, names, one_namespace)
        self._rows = np.arange(self._store.rows) if rows is None else np.asarray(rows, dtype=np.int64)
        self._columns, self._sequences = self._known(columns), sequences
        self._check_sizes()

    def __reduce__(self):
        store = self._store
        everything = len(self._rows) == store.rows and (np.diff(self._rows) == 1).all()
        rows = None if everything else self._rows
        return JoinedCache, (store.members, store.names, store.one_namespace, rows, self._columns, self._sequences)

    def __repr__(self) -> str:
        modalities = ", ".join(f"{name}: {vectors.width} wide" for name, vectors in self._store.vectors.items())
        return f"JoinedCache({len(self)} rows, {modalities}, {len(self._store.members)} caches)"

    def _known(self, columns: Sequence[str]) -> tuple[str, ...]:
        for name in columns:
            if name not in self.stored_columns:
                self._store.check_column(name)
        return super()._known(columns)

    @property
    def members(self) -> list[EmbeddingCache]:
        return list(self._store.members)

    @property
    def path(self) -> Path:
        """None of its own: see `members`."""
        raise ValueError("several joined caches have no one place: ask each of `members` for its path")

    @property
    def pairs(self):
        import datasets

        return datasets.Dataset(datasets.table.InMemoryTable(self._store.table)).select(self._rows)

    @property
    def excluded(self) -> list[dict]:
        return [row for member in self._store.members for row in member.excluded]

    def digests(self) -> dict[str, str]:
        named = zip(self._store.names, self._store.members, strict=True)
        return {f"{name}/{file}": digest for name, member in named for file, digest in member.digests().items()}

    def modality_manifests(self) -> dict[str, dict]:
        named = zip(self._store.names, self._store.members, strict=True)
        return {f"{name}/{key}": one for name, member in named for key, one in member.modality_manifests().items()}


class _JoinedStore:
    """What `EmbeddingCache` asks of its files, over several caches."""

    def __init__(self, caches: Sequence[EmbeddingCache], names: Sequence[str], one_namespace: bool) -> None:
        self.members, self.names, self.one_namespace = list(caches), list(names), one_namespace
        # For messages alone.
        self.folder = Path(" and ".join(names))
        self.checks = caches[0]._store.checks
        self.table, self.sources = _joined_table(caches, names, one_namespace)
        self.rows = len(self.table)
        self.splits = self.table["split"].combine_chunks().dictionary_encode()
        index = {name: code for code, name in enumerate(self.sources)}
        # Classes of one source are not those of another.
        self.targets = None
        self.source = np.array([index[name] for name in self.table[SOURCE].to_pylist()], dtype=np.int64)
        self.study = _study(caches, self.table, one_namespace)
        self.vectors: dict[str, JoinedVectors] = {}
        none = np.full(self.rows, -1, dtype=np.int64)
        rows_of = {"images": none, "texts": none}
        for modality, attribute in (("images", "image_rows"), ("texts", "text_rows")):
            if modality in caches[0].manifest:
                parts = [cache._stored(modality) for cache in caches]
                joined = JoinedVectors(parts)
                rows_of[modality] = joined.joined_rows([getattr(cache, attribute) for cache in caches])
                self.vectors[modality] = joined
        self.image_row, self.text_row = rows_of["images"], rows_of["texts"]
        first = caches[0].manifest
        kept = ("images", "texts", "image_tower", "text_tower", "max_text_length", "version")
        self.manifest = {name: first[name] for name in kept if name in first} | {
            "key": json_key([[cache.fingerprint, len(cache)] for cache in caches] + [list(names), one_namespace]),
            "rows": self.rows,
            "excluded": sum(cache.manifest["excluded"] for cache in caches),
            "sources": self.sources,
            "names": self.names,
            "one_namespace": one_namespace,
        }

    def check_column(self, name: str) -> None:
        """
        Raises:
            ValueError: some of the caches have this column, or all have another of this name.
        """
        for joined in self.vectors.values():
            owner = next((part for part in joined.parts if name in part.columns), None)
            if owner is None:
                continue
            number, other = next(
                (number, part) for number, part in enumerate(joined.parts, 1) if not _same_column(name, owner, part)
            )
            said = _named(*(part.manifest["identity"].get("stored", {}) for part in (owner, other)))
            raise ValueError(
                f"caches {joined.parts.index(owner) + 1} and {number} do not keep the same {name}"
                f"{': ' if said else ''}{said}. Build both with the same options, or leave {name} out"
            )


def _joined_table(
    caches: Sequence[EmbeddingCache], names: Sequence[str], one_namespace: bool
) -> tuple[pa.Table, list[str]]:
    """Ids, view, split, row and source of all rows, and the names of the sources in the order of the caches."""
    parts, sources = [], []
    owner = names[0]
    for cache, name in zip(caches, names, strict=True):
        known = cache.pairs.with_format("arrow")[:]
        columns = {column: known[column] for column in _COLUMNS}
        given = cache.source_names or [name]
        mine = unique_names([*sources, *given])[len(sources) :]
        sources += mine
        if cache.source_names:
            renamed = dict(zip(given, mine, strict=True))
            columns[SOURCE] = pa.array([renamed[one] for one in known[SOURCE].to_pylist()], pa.string())
            if given != mine:
                columns |= {column: _renamed_ids(known[column].to_pylist(), name, renamed) for column in _IDS}
        else:
            for column in _IDS:
                before = owner if one_namespace and column != "image_id" else name
                plain = canonical_id if one_namespace and column != "image_id" else str
                ids = [None if value is None else f"{before}/{plain(value)}" for value in known[column].to_pylist()]
                columns[column] = pa.array(ids, pa.string())
            columns[SOURCE] = pa.array(mine * len(known), pa.string())
        parts.append(pa.table(columns))
    joined = pa.concat_tables(parts).combine_chunks()
    if one_namespace:
        import datasets

        check_disjoint(datasets.Dataset(datasets.table.InMemoryTable(joined)), ids="exact")
    return joined, sources


def _renamed_ids(ids: list[str | None], name: str, renamed: dict[str, str]) -> pa.Array:
    """Ids of a cache of several sources whose names others have: they are of other patients than the others'."""
    found = []
    for value in ids:
        owner, _, rest = (value or "").partition("/")
        # What is hashed says not whose it is.
        found.append(None if value is None else f"{name}/{value}" if is_private() else f"{renamed[owner]}/{rest}")
    return pa.array(found, pa.string())


def _study(caches: Sequence[EmbeddingCache], table: pa.Table, one_namespace: bool) -> np.ndarray:
    """(n,) int64 codes, as of one cache."""
    if one_namespace:
        return study_codes(table, np.arange(len(table)))
    starts = np.cumsum([0] + [cache._store.rows for cache in caches])
    codes = [cache._store.study[cache._rows] + start for cache, start in zip(caches, starts, strict=False)]
    return np.concatenate(codes)


class JoinedShards(Shards):
    """
    The files of one column of several caches, numbered through: row r of cache k is row r behind all of those before.

    Args:
        parts: Of the caches, of one column.
    """

    def __init__(self, parts: Sequence[Shards]) -> None:
        self.parts = list(parts)
        self.folder, self.column = parts[0].folder, parts[0].column
        self.entries = [entry for part in parts for entry in part.entries]
        self.offsets = np.cumsum([0] + [entry["rows"] for entry in self.entries])
        self._owners = [(part, index) for part in parts for index in range(len(part.entries))]

    def map_files(self, indices: Sequence[int]) -> None:
        for part, index in (self._owners[index] for index in indices):
            part.map_files([index])

    def file(self, index: int) -> ColumnFile:
        part, index = self._owners[index]
        return part.file(index)

    def check_sizes(self, rows: np.ndarray) -> None:
        for part, index in (self._owners[index] for index in self.of_rows(rows)):
            part.check_sizes(np.array([part.offsets[index]]))


class JoinedVectors(Vectors):
    """
    The vectors of one modality of several caches, with the columns that are the same in all.

    Args:
        parts: Of the caches, whose pooled vectors were made alike.
    """

    def __init__(self, parts: Sequence[Vectors]) -> None:
        self.parts = list(parts)
        self.width, self.manifest = parts[0].width, parts[0].manifest
        self.shards = JoinedShards([part.shards for part in parts])
        self.columns = {
            name: JoinedShards([part.columns[name] for part in parts])
            for name in parts[0].columns
            if all(_same_column(name, parts[0], part) for part in parts[1:])
        }
        self.starts = np.cumsum([0] + [len(part) for part in parts])

    def joined_rows(self, rows: Sequence[np.ndarray]) -> np.ndarray:
        """(n,) joined rows of rows of each part, -1 for none; of equal contents the first one's row."""
        used = [np.unique(part[part >= 0]) for part in rows]
        keys = np.concatenate([part.keys("digest", some) for part, some in zip(self.parts, used, strict=True)])
        numbers = np.concatenate([some + start for some, start in zip(used, self.starts, strict=False)])
        first = np.arange(len(self))
        if len(numbers):
            first[numbers] = numbers[first_rows(keys)]
        return np.concatenate(
            [np.where(part < 0, -1, first[part + start]) for part, start in zip(rows, self.starts, strict=False)]
        )


def _same_column(name: str, one: Vectors, other: Vectors) -> bool:
    """Whether two modalities have a column of one kind, made by the same rules."""
    if not (name in one.columns and name in other.columns):
        return False
    columns = [part.columns[name].column for part in (one, other)]
    # A recipe of views is compared by what it does, and not by its name.
    info = [{key: value for key, value in column.info.items() if key != "recipe"} for column in columns]
    asked = [part.manifest["identity"].get("stored", {}) for part in (one, other)]
    rules = ("version", "view_recipe") if name.startswith("view_") else ("version",)
    rules_are_same = all(asked[0].get(rule) == asked[1].get(rule) for rule in rules)
    return columns[0] == columns[1] and info[0] == info[1] and rules_are_same


__all__ = ["JoinedCache", "join_caches"]
