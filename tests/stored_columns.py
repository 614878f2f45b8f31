"""Caches with columns beside their pooled vectors, for tests: random numbers, written as a build writes them."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa

from adaptor_hf.embeddings import import_embeddings, open_cache
from adaptor_hf.embeddings.columns import Column, Ragged, entry_of, to_arrow
from adaptor_hf.embeddings.files import map_batch, write_batch
from adaptor_hf.embeddings.joining import file_ranges, row_bytes, write_columns
from adaptor_hf.embeddings.keys import modality_key
from adaptor_hf.embeddings.manifest import write_record

WIDTH = 8
IMAGE_COLUMNS = [
    Column("image_tokens", (5, 6), "int8", {"grid": [2, 2], "prefix": 1}),
    Column("regions", (4, 3), "float32"),
    Column("shallow", (7,), "float16"),
    Column("view_tokens", (2, 5, 6), "int8"),
]
TEXT_COLUMNS = [
    Column("text_tokens", (None, 6), "int8"),
    Column("text_attention", (None,), "float16"),
    Column("words", (None, 2), "int16"),
]


def random_rows(column: Column, lengths: np.ndarray, seed: int = 0) -> np.ndarray | Ragged:
    """Numbers for a column: as many rows as `lengths` has, which are the lengths of ragged ones."""
    generator = np.random.default_rng(seed)
    shape = (int(lengths.sum()) if column.ragged else len(lengths), *column.element)
    values = generator.integers(0, 99, shape) if column.dtype == "int16" else generator.normal(size=shape)
    return Ragged(values, np.concatenate([[0], np.cumsum(lengths)])) if column.ragged else values


def add_columns(folder: Path, columns: list[Column], lengths: np.ndarray, max_bytes: int = 150) -> dict:
    """Store random numbers in a modality's folder; returns them by name."""
    manifest = json.loads((folder / "cache.json").read_text())
    written = {column.name: random_rows(column, lengths, seed) for seed, column in enumerate(columns)}
    entries = {}
    for column in columns:
        table = pa.table(to_arrow(column, written[column.name]))
        shards = []
        for start, stop in file_ranges(row_bytes(column, table[column.name]), max_bytes):
            path = folder / f"{column.name}-{len(shards):05d}.arrow"
            shards.append(write_columns(path, table.slice(start, stop - start), [column]))
        entries[column.name] = entry_of(column, shards)
    write_record(folder / "cache.json", manifest | {"columns": entries})
    return written


def store_as_int8(pairs: Path, modality: str) -> None:
    """Write the pooled vectors of a modality again, as int8, in a folder of the key that this has."""
    named = json.loads((pairs / "cache.json").read_text())
    folder = pairs.parent / named[modality]
    manifest = json.loads((folder / "cache.json").read_text())
    column = Column("embedding", (manifest["width"],), "int8")
    shards = []
    for entry in manifest["shards"]:
        batch = map_batch(folder / entry["file"])
        vectors = np.stack(batch.column("embedding").to_numpy(zero_copy_only=False))
        arrays = to_arrow(column, vectors) | {name: batch.column(name) for name in ("source", "digest")}
        (folder / entry["file"]).unlink()  # it is mapped
        rewritten = pa.RecordBatch.from_arrays(list(arrays.values()), names=list(arrays))
        shards.append(write_batch(folder / entry["file"], rewritten))
    key = modality_key(manifest["identity"], "int8", manifest["max_text_length"])
    write_record(folder / "cache.json", manifest | {"dtype": "int8", "shards": shards, "key": key})
    named |= {modality: f"{modality}-{key}"}
    named["embedding_files"][modality] = [entry["sha256"] for entry in shards]
    folder.rename(folder.with_name(named[modality]))
    write_record(pairs / "cache.json", named)


def cache_with_columns(folder: Path, rows: int, *, int8: bool = False, table=None):
    """
    An opened cache of random vectors and all columns of both modalities, in several files each; what was written of
    the pooled vectors and of the columns by name.
    """
    generator = np.random.default_rng(0)
    vectors = {name: generator.normal(size=(rows, WIDTH)).astype(np.float32) for name in ("images", "texts")}
    cache = import_embeddings(vectors["images"], vectors["texts"], table, folder)
    written = dict(vectors)
    for modality, columns in (("images", IMAGE_COLUMNS), ("texts", TEXT_COLUMNS)):
        place = folder / cache.manifest[modality]
        manifest = json.loads((place / "cache.json").read_text())
        written |= add_columns(place, columns, generator.integers(0, 6, manifest["rows"]))
        if int8:
            store_as_int8(cache.path, modality)
    return open_cache(cache.path), written
