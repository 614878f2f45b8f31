"""`pairs-<key>/`: which image row goes with which text row, with ids and split; and the list of excluded rows."""

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ..data.content_keys import text_key
from ..files import folder_written_aside, read_json, read_regular
from .faults import EXCLUDED, excluded_csv, excluded_rows
from .files import (
    CACHE_VERSION,
    FORMAT,
    KEY_DTYPE,
    MANIFEST,
    file_entry,
    write_batch,
    write_batches,
    write_json,
    write_text,
)
from .keys import json_key
from .lookup import first_rows
from .memory import release_memory
from .table import PairTable

if TYPE_CHECKING:
    from .modalities import Modality

# Numbers in one record batch, so that they are read where they lie; ids in parts, so that no copy of all is made.
ROWS_FILE = "rows.arrow"
PAIRS_FILE = "pairs.arrow"
LATEST = "latest.json"
BATCH_ROWS = 16_384


def kept_rows(table: PairTable) -> np.ndarray:
    """(m,) rows of the table without fault."""
    keep = np.ones(len(table), dtype=bool)
    if table.faults:
        keep[np.fromiter(table.faults, dtype=np.int64)] = False
    return np.nonzero(keep)[0]


def write_pairs(cache_dir: Path, table: PairTable, modalities: list["Modality"]) -> Path:
    """Write the pairs folder if it is not there, and make it the one that `open_cache(cache_dir)` opens.

    Raises:
        ValueError: all rows are excluded.
    """
    kept = kept_rows(table)
    if not len(kept):
        raise ValueError(f"all {len(table)} rows are excluded, see {cache_dir / EXCLUDED}: there is nothing to cache")
    excluded = excluded_rows(table)
    rows_of = {modality.name: modality.rows(table)[kept] for modality in modalities}
    manifest: dict = {"excluded": len(excluded)}
    content = []
    for modality in modalities:
        rows = rows_of[modality.name]
        content.append(_content_digest(modality, rows))
        manifest[modality.name] = modality.folder.path.name
        manifest[f"{modality.name[:-1]}_tower"] = modality.spec
        if modality.name == "texts":
            manifest |= _text_lengths(modality, rows)
    return write_pairs_folder(cache_dir, manifest, content, rows_of, table.ids, kept, excluded)


def _content_digest(modality: "Modality", rows: np.ndarray) -> str:
    """Digest of what these rows of a modality's folder stand for."""
    known = modality.folder.keys("digest")
    state = hashlib.blake2b(digest_size=16)
    for start in range(0, len(rows), BATCH_ROWS):
        part = rows[start : start + BATCH_ROWS]
        digests = np.zeros(len(part), dtype=KEY_DTYPE)  # zeros stand for -1
        digests[part >= 0] = known[part[part >= 0]]
        state.update(digests.view(np.uint8))
    return state.hexdigest()


def write_pairs_folder(
    cache_dir: Path,
    manifest: dict,
    content: list[str],
    rows_of: dict[str, np.ndarray],
    ids: pa.Table,
    kept: np.ndarray,
    excluded: list[dict],
) -> Path:
    """Write `pairs-<key>/`; the key covers both modalities' folders, the content of the pairs, their ids and splits.

    Args:
        manifest: folder names and specs of the modalities.
        content: digests of what the image and text rows stand for.
        rows_of: (n,) row numbers by modality, "images" and "texts".
        ids: ids of all rows of the table.
        kept: (n,) rows of the table that are no faults.
        excluded: the other rows.
    """
    listed = excluded_csv(excluded)
    parts = [ROWS_FILE, manifest.get("images"), manifest.get("texts"), content, _ids_digest(ids, kept), listed]
    key = json_key(parts)
    folder = cache_dir / f"pairs-{key}"
    if not (folder / MANIFEST).exists():
        none = np.full(len(kept), -1, dtype=np.int64)
        numbers = {f"{name}_row": rows_of.get(f"{name}s", none) for name in ("image", "text")}
        numbers["study"] = study_codes(ids, kept)
        release_memory()
        rows = pa.RecordBatch.from_pydict(numbers)
        try:
            with folder_written_aside(folder) as aside:
                write_batch(aside / ROWS_FILE, rows)
                batches = (batch for part in _id_batches(ids, kept) for batch in part.combine_chunks().to_batches())
                write_batches(aside / PAIRS_FILE, ids.schema, batches)
                write_text(aside / EXCLUDED, listed)
                header = {"format": FORMAT, "version": CACHE_VERSION, "content": "pairs", "key": key}
                files = [file_entry(aside / name, len(kept)) for name in (ROWS_FILE, PAIRS_FILE)]
                write_json(aside / MANIFEST, header | manifest | {"rows": len(kept), "shards": files})
        except OSError:
            if not (folder / MANIFEST).exists():  # otherwise another process was faster, with the same content
                raise
    # A cache that is complete may be read-only.
    if not (cache_dir / EXCLUDED).exists() or read_regular(cache_dir / EXCLUDED) != listed.encode(
        "utf-8", "backslashreplace"
    ):
        write_text(cache_dir / EXCLUDED, listed)
    if latest_pairs(cache_dir) != folder.name:
        write_json(cache_dir / LATEST, {"format": FORMAT, "version": CACHE_VERSION, "pairs": folder.name})
    return folder


def latest_pairs(cache_dir: Path) -> str | None:
    """Name of the pairs folder that was built last, None if there is none."""
    try:
        return read_json(cache_dir / LATEST)["pairs"]
    except (OSError, ValueError, KeyError):
        return None


def _id_batches(ids: pa.Table, kept: np.ndarray) -> Iterator[pa.Table]:
    # A part at a time, never a copy of all: the ids of a large table lie in mapped files.
    for start in range(0, len(ids), BATCH_ROWS):
        part = ids.slice(start, BATCH_ROWS)
        low, high = np.searchsorted(kept, [start, start + len(part)])
        yield part if high - low == len(part) else part.take(kept[low:high] - start)


def _ids_digest(ids: pa.Table, kept: np.ndarray) -> str:
    """Digest of the values, whatever chunks they lie in."""
    states = [(hashlib.blake2b(digest_size=16), hashlib.blake2b(digest_size=16)) for _ in ids.column_names]
    for part in _id_batches(ids, kept):
        for column, (values, lengths) in zip(part.columns, states, strict=True):
            if pa.types.is_string(column.type):
                lengths.update(pc.binary_length(column).fill_null(-1).to_numpy())
                for chunk in column.fill_null("").chunks:
                    every = pa.ListArray.from_arrays([0, len(chunk)], chunk)
                    values.update(pc.binary_join(every, "")[0].as_buffer())
            elif pa.types.is_integer(column.type) and not column.null_count:
                values.update(column.to_numpy())
            else:
                values.update("".join(json.dumps(value, default=str) + ";" for value in column.to_pylist()).encode())
    return json_key([ids.column_names, [state.hexdigest() for pair in states for state in pair]])


def study_codes(ids: pa.Table, kept: np.ndarray) -> np.ndarray:
    """(n,) int64; rows of one study of one patient share a code, a row without study has one of its own."""
    if ids.column("study_id").null_count == len(ids):
        return np.arange(len(kept))
    keys, row = np.empty(len(kept), dtype=KEY_DTYPE), 0
    for part in _id_batches(ids.select(["patient_id", "study_id"]), kept):
        for patient, study in zip(part["patient_id"].to_pylist(), part["study_id"].to_pylist(), strict=True):
            keys[row] = row.to_bytes(16) if study is None else text_key(f"{patient}\0{study}")
            row += 1
    return first_rows(keys)


def _text_lengths(modality: "Modality", rows: np.ndarray) -> dict:
    used = np.zeros(modality.folder.rows, dtype=bool)
    used[rows[rows >= 0]] = True
    parts = [batch.column("num_tokens").to_numpy() for batch in modality.folder.batches()]
    cut = used & (np.concatenate(parts) > modality.max_length) if parts else used
    return {
        "distinct_texts": int(used.sum()),
        "truncated_texts": int(cut.sum()),
        "max_text_length": modality.max_length,
    }
