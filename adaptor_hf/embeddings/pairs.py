"""`pairs-<key>/`: which image row goes with which text row, with ids and split; and the list of excluded rows."""

import hashlib
import json
import logging
import shutil
from collections.abc import Iterator
from pathlib import Path, PurePath
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ..data.content_keys import text_key
from ..data.ids import SOURCE
from ..files import folder_written_aside, read_regular
from ..folder_lock import only_writer
from .digests import FileChecks
from .faults import EXCLUDED, excluded_csv, excluded_rows
from .files import KEY_DTYPE, map_batch, write_batch, write_batches, write_text
from .keys import json_key
from .lookup import first_rows
from .manifest import MANIFEST, read_manifest, read_record, rebuild, write_record
from .memory import release_memory
from .table import PairTable

if TYPE_CHECKING:
    from .modalities import Modality
    from .shards import ModalityFolder

# Numbers in one record batch, so that they are read where they lie; ids in parts, so that no copy of all is made.
ROWS_FILE = "rows.arrow"
PAIRS_FILE = "pairs.arrow"
LATEST = "latest.json"
BATCH_ROWS = 16_384

logger = logging.getLogger(__name__)


def kept_rows(table: PairTable) -> np.ndarray:
    """(m,) rows of the table without fault."""
    keep = np.ones(len(table), dtype=bool)
    if table.faults:
        keep[np.fromiter(table.faults, dtype=np.int64)] = False
    return np.nonzero(keep)[0]


def write_pairs(cache_dir: Path, table: PairTable, modalities: list["Modality"], *, latest: bool = True) -> Path:
    """Write the pairs folder if it is not there, and make it the one that `open_cache(cache_dir)` opens, see `latest`
    of `write_pairs_folder`.

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
    folders = {modality.name: modality.folder for modality in modalities}
    return write_pairs_folder(cache_dir, manifest, content, folders, rows_of, table.ids, kept, excluded, latest=latest)


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
    folders: dict[str, "ModalityFolder"],
    rows_of: dict[str, np.ndarray],
    ids: pa.Table,
    kept: np.ndarray,
    excluded: list[dict],
    *,
    latest: bool = True,
) -> Path:
    """Write `pairs-<key>/`; the key covers both modalities' folders, the content of the pairs, their ids and splits.

    One that is there stays, unless it is damaged or its row numbers are not those of the folders as they are now.

    Args:
        manifest: folder names and specs of the modalities.
        content: digests of what the image and text rows stand for.
        folders: the modalities' folders, by "images" and "texts".
        rows_of: (n,) row numbers by modality.
        ids: ids of all rows of the table.
        kept: (n,) rows of the table that are no faults.
        excluded: the other rows.
        latest: whether `open_cache(cache_dir)` opens these from now on; with False only where it opens none yet.
    """
    listed = excluded_csv(excluded)
    parts = [ROWS_FILE, manifest.get("images"), manifest.get("texts"), content, _ids_digest(ids, kept), listed]
    key = json_key(parts)
    rebuilt = {name: one.rebuilt for name, one in folders.items() if one.rebuilt}
    if rebuilt:
        # Beside those that were there, which runs may read.
        manifest = manifest | {"replaces": f"pairs-{key}", "rebuilt": rebuilt}
        key = json_key([*parts, rebuilt])
    folder = cache_dir / f"pairs-{key}"
    none = np.full(len(kept), -1, dtype=np.int64)
    numbers = {f"{name}_row": rows_of.get(f"{name}s", none) for name in ("image", "text")}
    # Shards are only ever added: those that are there now are what the row numbers stand for.
    shards = {name: [entry["sha256"] for entry in one.manifest["shards"]] for name, one in folders.items()}
    checks = next(iter(folders.values())).checks
    if not _is_current(folder, numbers, shards, checks):
        # Another build may write the same pairs: what it has finished is not removed under its eyes.
        with only_writer(cache_dir, "pairs", timeout=600, what="build", option="cache_dir", strict=False):
            if not _is_current(folder, numbers, shards, checks):
                release_memory()
                _write_folder(folder, numbers | {"study": study_codes(ids, kept)}, ids, kept, shards, listed, manifest)
    # A cache that is complete may be read-only.
    if not (cache_dir / EXCLUDED).exists() or read_regular(cache_dir / EXCLUDED) != listed.encode(
        "utf-8", "backslashreplace"
    ):
        write_text(cache_dir / EXCLUDED, listed)
    if not latest and (cache_dir / LATEST).is_file():
        return folder
    try:
        before = latest_pairs(cache_dir, check=checks.metadata)
    except ValueError as error:
        logger.warning("%s", error)
        before = None
    if before != folder.name:
        write_record(cache_dir / LATEST, {"pairs": folder.name})
    return folder


def _write_folder(
    folder: Path,
    numbers: dict[str, np.ndarray],
    ids: pa.Table,
    kept: np.ndarray,
    shards: dict[str, list[str]],
    listed: str,
    manifest: dict,
) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    with folder_written_aside(folder) as aside:
        files = [write_batch(aside / ROWS_FILE, pa.RecordBatch.from_pydict(numbers))]
        batches = (batch for part in _id_batches(ids, kept) for batch in part.combine_chunks().to_batches())
        files.append(write_batches(aside / PAIRS_FILE, ids.schema, batches))
        header = {"content": "pairs", "key": folder.name.removeprefix("pairs-"), "rows": len(kept), "shards": files}
        header |= {"embedding_files": shards, "files": [write_text(aside / EXCLUDED, listed)]}
        if SOURCE in ids.column_names:
            header["sources"] = pc.unique(ids[SOURCE]).to_pylist()
        write_record(aside / MANIFEST, header | manifest)


def _is_current(folder: Path, numbers: dict[str, np.ndarray], shards: dict[str, list[str]], checks: FileChecks) -> bool:
    """Whether pairs are there and whole, with these row numbers of these shards."""
    if not (folder / MANIFEST).exists():
        return False
    try:
        manifest = read_manifest(folder, check=checks.metadata)
        checks.check(folder, [*manifest["shards"], *manifest.get("files", [])], rebuild(folder))
        rows = map_batch(folder / ROWS_FILE)
    except (FileNotFoundError, ValueError) as error:
        logger.warning("%s. It is written anew", str(error).removesuffix("."))
        return False
    same = all(np.array_equal(rows.column(name).to_numpy(), values) for name, values in numbers.items())
    return same and all(
        shards[name][: len(known)] == known for name, known in manifest.get("embedding_files", {}).items()
    )


def latest_pairs(cache_dir: Path, *, check: bool = True) -> str | None:
    """Name of the pairs folder that was built last, None if there is none.

    Raises:
        ValueError: the file that names it is damaged.
    """
    path = cache_dir / LATEST
    if not path.is_file():
        return None
    advice = "Run the same build again, which writes it anew, or name one of the pairs-... folders"
    name = read_record(path, advice, check=check).get("pairs")
    if not isinstance(name, str) or not name.startswith("pairs-") or PurePath(name).name != name:
        raise ValueError(f"{path} is damaged: it names no pairs folder. {advice}")
    return name


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
    cut = used & (modality.folder.token_counts() > modality.max_length)
    return {
        "distinct_texts": int(used.sum()),
        "truncated_texts": int(cut.sum()),
        "max_text_length": modality.max_length,
    }
