"""`pairs-<key>/`: which image row goes with which text row, with ids and split; and the list of excluded rows."""

import hashlib
import json
import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from .faults import EXCLUDED, excluded_csv, excluded_rows
from .files import CACHE_VERSION, FORMAT, KEY_DTYPE, MANIFEST, file_entry, write_batch, write_json, write_text
from .keys import json_key
from .table import BLOCK_ROWS, PairTable

if TYPE_CHECKING:
    from .sides import Side

PAIRS_FILE = "pairs.arrow"
LATEST = "latest.json"


def kept_rows(table: PairTable) -> np.ndarray:
    """(m,) rows of the table without fault."""
    keep = np.ones(len(table), dtype=bool)
    if table.faults:
        keep[np.fromiter(table.faults, dtype=np.int64)] = False
    return np.nonzero(keep)[0]


def write_pairs(cache_dir: Path, table: PairTable, sides: list["Side"]) -> Path:
    """Write the pairs folder if it is not there, and make it the one that `open_cache(cache_dir)` opens.

    Raises:
        ValueError: all rows are excluded.
    """
    kept = kept_rows(table)
    if not len(kept):
        raise ValueError(f"all {len(table)} rows are excluded, see {cache_dir / EXCLUDED}: there is nothing to cache")
    excluded = excluded_rows(table)
    rows_of = {side.name: side.rows(table)[kept] for side in sides}
    manifest: dict = {"excluded": len(excluded)}
    content = []
    for side in sides:
        rows = rows_of[side.name]
        digests = np.append(side.folder.keys("digest"), np.zeros(1, dtype=KEY_DTYPE))  # the last one stands for -1
        content.append(hashlib.blake2b(digests[rows].view(np.uint8), digest_size=16).hexdigest())
        manifest[side.name] = side.folder.path.name
        manifest[f"{side.name[:-1]}_tower"] = side.spec
        if side.name == "texts":
            manifest |= _text_lengths(side, rows)
    ids = table.ids.take(kept) if table.faults else table.ids
    return write_pairs_folder(cache_dir, manifest, content, rows_of, ids, excluded)


def write_pairs_folder(
    cache_dir: Path, manifest: dict, content: list[str], rows_of: dict[str, np.ndarray], ids: pa.Table, excluded: list
) -> Path:
    """Write `pairs-<key>/`; the key covers both sides' folders, the content of the pairs, their ids and splits.

    Args:
        manifest: folder names and specs of the sides.
        content: digests of what the image and text rows stand for.
        rows_of: (n,) row numbers by side, "images" and "texts".
        ids: n rows of ids.
        excluded: rows left out.
    """
    listed = excluded_csv(excluded)
    parts = [manifest.get("images"), manifest.get("texts"), content, _table_digest(ids), listed]
    key = json_key(parts)
    folder = cache_dir / f"pairs-{key}"
    if not (folder / MANIFEST).exists():
        none = np.full(ids.num_rows, -1, dtype=np.int64)
        columns = {name: pa.array(rows_of.get(f"{name}s", none)) for name in ("image", "text")}
        arrays = {f"{name}_row": rows for name, rows in columns.items()}
        for name in ids.column_names:
            arrays[name] = pa.concat_arrays(ids.column(name).chunks)
        batch = pa.RecordBatch.from_arrays(list(arrays.values()), names=list(arrays))
        aside = cache_dir / f".pairs-{key}.{os.getpid()}.partial"
        aside.mkdir(exist_ok=True)
        try:
            write_batch(aside / PAIRS_FILE, batch)
            write_text(aside / EXCLUDED, listed)
            header = {"format": FORMAT, "version": CACHE_VERSION, "content": "pairs", "key": key}
            files = [file_entry(aside / PAIRS_FILE, len(batch))]
            write_json(aside / MANIFEST, header | manifest | {"rows": len(batch), "shards": files})
            os.replace(aside, folder)
        except OSError:
            if not (folder / MANIFEST).exists():  # otherwise another process was faster, with the same content
                raise
        finally:
            shutil.rmtree(aside, ignore_errors=True)
    # A cache that is complete may be read-only.
    if not (cache_dir / EXCLUDED).exists() or (cache_dir / EXCLUDED).read_text(encoding="utf-8") != listed:
        write_text(cache_dir / EXCLUDED, listed)
    if latest_pairs(cache_dir) != folder.name:
        write_json(cache_dir / LATEST, {"format": FORMAT, "version": CACHE_VERSION, "pairs": folder.name})
    return folder


def latest_pairs(cache_dir: Path) -> str | None:
    """Name of the pairs folder that was built last, None if there is none."""
    try:
        return json.loads((cache_dir / LATEST).read_text(encoding="utf-8"))["pairs"]
    except (OSError, ValueError, KeyError):
        return None


def _table_digest(table: pa.Table) -> str:
    state = hashlib.blake2b(",".join(table.column_names).encode(), digest_size=16)
    for start in range(0, table.num_rows, BLOCK_ROWS):
        for column in table.slice(start, BLOCK_ROWS).columns:
            state.update(json.dumps(column.to_pylist(), default=str).encode())
    return state.hexdigest()


def _text_lengths(side: "Side", rows: np.ndarray) -> dict:
    used = np.unique(rows[rows >= 0])
    parts = [batch.column("num_tokens").to_numpy() for batch in side.folder.batches()]
    lengths = np.concatenate(parts)[used] if parts else np.empty(0, dtype=np.int32)
    cut = int((lengths > side.max_length).sum())
    return {"distinct_texts": len(used), "truncated_texts": cut, "max_text_length": side.max_length}
