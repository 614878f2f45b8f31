"""Ready-made embeddings (NumPy, safetensors, Parquet) as a cache, with the same checks as one built here."""

import hashlib
import logging
import os
from pathlib import Path
from typing import Any

import numpy as np

from ..data.content_keys import BLOCK_ROWS, key_vector
from ..data.private_rows import private_rows
from ..files import check_regular
from ..privacy.mode import check_private_mode
from .compute import vector_faults
from .faults import check_faults, excluded_rows, fault_summary
from .files import NUMPY_DTYPES, embedding_batch, write_batch
from .keys import modality_key
from .pairs import kept_rows, write_pairs_folder
from .reader import EmbeddingCache, open_cache
from .shards import SHARD_ROWS, ModalityFolder
from .table import PairTable, find_duplicates, merge_splits, read_ids, read_texts

logger = logging.getLogger(__name__)

_COLUMN_NAMES = {"images": ("image_embeds", "embedding"), "texts": ("text_embeds", "embedding")}


def import_embeddings(
    image: Any = None,
    text: Any = None,
    table: Any = None,
    cache_dir: str | os.PathLike = "embeddings",
    *,
    name: str = "external",
    dtype: str | None = None,
    max_fault_fraction: float = 0.05,
) -> EmbeddingCache:
    """Make a cache from embeddings that were computed elsewhere; the tower is then `external:NAME`.

    Row i of each file belongs to row i of the table. Rows with the same text must have the same text embedding: where
    they do not, file and table are out of step. A row whose embedding is NaN, infinite or zero is excluded and listed.

    Args:
        image, text: (n, D) embeddings: a .npy, .safetensors or .parquet file, or an array. A safetensors file has one
            tensor, or one named image_embeds/text_embeds; a Parquet file one list column, or one so named.
        table: datasets.Dataset or DatasetDict with the contract columns, or a file that
            `adaptor_hf.data.tables.load_pairs` reads. None makes ids from the row number.
        cache_dir: folder of the cache.
        name: what to call the towers.
        dtype: storage, "float16" or "float32"; None keeps float16 and float32 and stores float64 as float32. float16
            keeps 11 bits (1 - cosine below 1e-6) and values up to 65504; a row beyond is excluded as infinite.
        max_fault_fraction: largest share of excluded rows that is accepted.

    Returns:
        EmbeddingCache of all splits.

    Raises:
        ValueError: shapes, dtypes or row counts that do not fit, too many faulty rows, or private mode was asked for by
            the environment and is not on.
        FileNotFoundError: a file is missing.
    """
    check_private_mode()
    if image is None and text is None:
        raise ValueError("give image embeddings, text embeddings, or both")
    if dtype is not None and dtype not in NUMPY_DTYPES:
        raise ValueError(f"dtype must be one of {sorted(NUMPY_DTYPES)} or None, got {dtype!r}")
    cache_dir = Path(cache_dir)
    given = {"images": image, "texts": text}
    arrays = {modality: _read_array(value, modality) for modality, value in given.items() if value is not None}
    rows = _read_rows(table, len(next(iter(arrays.values()))))
    for modality, array in arrays.items():
        if len(array) != len(rows):
            raise ValueError(
                f"{modality}: {len(array)} embeddings for {len(rows)} rows of the table; expected one a row"
            )
        _find_faults(rows, modality, array, dtype)
    cache_dir.mkdir(parents=True, exist_ok=True)
    check_faults(rows, cache_dir, max_fault_fraction)
    excluded = excluded_rows(rows)
    kept = kept_rows(rows)
    manifest: dict = {"excluded": len(excluded)}
    folders, rows_of, content = {}, {}, []
    for modality, array in arrays.items():
        folder, row_numbers = _write_modality(cache_dir, modality, array, rows, name, dtype)
        folders[modality], rows_of[modality] = folder, row_numbers[kept]
        manifest |= {modality: folder.path.name, f"{modality[:-1]}_tower": folder.manifest["tower"]}
        content.append(hashlib.blake2b(rows_of[modality], digest_size=16).hexdigest())
    if rows.faults:
        logger.warning(fault_summary(rows, cache_dir))
    return open_cache(write_pairs_folder(cache_dir, manifest, content, folders, rows_of, rows.ids, kept, excluded))


def _read_rows(table: Any, count: int) -> PairTable:
    if table is None:
        import datasets

        table = datasets.Dataset.from_dict({"source_row": list(range(count))})
    elif isinstance(table, str | os.PathLike):
        from ..data.tables import load_pairs

        table = private_rows(load_pairs(table, image_mode="L"))
    merged, splits = merge_splits(table)
    rows = PairTable(merged, read_ids(merged, splits))
    find_duplicates(rows)
    if "text" in merged.column_names:
        read_texts(rows)
    else:
        rows.text_keys = key_vector(f"row {row}".encode().ljust(16, b".") for row in range(len(rows)))
        rows.has_text = np.ones(len(rows), dtype=bool)
    return rows


def _storage_dtype(array: np.ndarray, dtype: str | None) -> str:
    return dtype or ("float16" if array.dtype == np.float16 else "float32")


def _stored(array: np.ndarray, dtype: str) -> np.ndarray:
    with np.errstate(over="ignore"):
        return array.astype(NUMPY_DTYPES[dtype])


def _find_faults(rows: PairTable, modality: str, array: np.ndarray, dtype: str | None) -> None:
    for start in range(0, len(array), BLOCK_ROWS):
        stored = _stored(array[start : start + BLOCK_ROWS], _storage_dtype(array, dtype))
        for offset, reason in vector_faults(stored).items():
            if modality == "images" or rows.has_text[start + offset]:
                rows.faults.setdefault(start + offset, f"{modality[:-1]} {reason}")


def _write_modality(
    cache_dir: Path, modality: str, array: np.ndarray, rows: PairTable, name: str, dtype: str | None
) -> tuple[ModalityFolder, np.ndarray]:
    """Write one modality's folder if it is not there; returns it and the (n,) row numbers of the table's rows in it."""
    dtype = _storage_dtype(array, dtype)
    if modality == "images":
        chosen = row_numbers = np.arange(len(array))
        keys = key_vector(f"row {row}".encode().ljust(16, b".") for row in range(len(array)))
    else:
        chosen, row_numbers = _distinct_texts(array, rows)
        keys = rows.text_keys[chosen]
    state = hashlib.blake2b(keys.view(np.uint8), digest_size=16)
    for start in range(0, len(array), BLOCK_ROWS):
        state.update(np.ascontiguousarray(array[start : start + BLOCK_ROWS]))
    kind = {"images": "vision", "texts": "text"}[modality]
    spec = {
        "kind": kind,
        "library": "external",
        "name_or_path": f"external:{name}",
        "revision": None,
        "preset": None,
        "pooling": None,
        "hidden_size": array.shape[1],
        "grid_shape": None,
        "max_length": None,
        "image_processor": None,
        "pretraining_data": None,
        "license": None,
        "tested": None,
    }
    identity = {"kind": kind, "library": "external", "name": name, "weights": state.hexdigest()}
    header = {"tower": spec, "identity": identity, "dtype": dtype, "width": array.shape[1], "max_text_length": None}
    folder = ModalityFolder(cache_dir, modality, modality_key(identity, dtype, None), header)
    if not folder.rows:
        folder.path.mkdir(parents=True, exist_ok=True)
        entries = []
        for start in range(0, len(chosen), SHARD_ROWS):
            part = chosen[start : start + SHARD_ROWS]
            columns = {"source": keys[start : start + SHARD_ROWS], "digest": keys[start : start + SHARD_ROWS]}
            path = folder.path / f"data-{len(entries):05d}.arrow"
            entries.append(write_batch(path, embedding_batch(_stored(array[part], dtype), columns)))
        folder.commit(array.shape[1], entries, {})
    return folder, row_numbers


def _distinct_texts(array: np.ndarray, rows: PairTable) -> tuple[np.ndarray, np.ndarray]:
    """First row of each distinct text, and the (n,) position among them of each row's text, -1 without text."""
    usable = rows.has_text.copy()
    usable[np.fromiter(rows.faults, dtype=np.int64)] = False
    usable = np.nonzero(usable)[0]
    if not len(usable):
        raise ValueError("text embeddings are given, but no row of the table has a text to go with them")
    _, first, inverse = np.unique(rows.text_keys[usable], return_index=True, return_inverse=True)
    for start in range(0, len(usable), BLOCK_ROWS):
        block = usable[start : start + BLOCK_ROWS]
        original = usable[first[inverse[start : start + BLOCK_ROWS]]]
        a, b = array[block].astype(np.float64), array[original].astype(np.float64)
        cosine = (a * b).sum(1) / (np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1))
        if (cosine < 0.99).any():
            worst = int(cosine.argmin())
            where = rows.ids.column("source_row")
            raise ValueError(
                f"source rows {where[int(original[worst])]} and {where[int(block[worst])]} have the same text but "
                f"different text embeddings (cosine {cosine[worst]:.3f}): the file and the table are out of step"
            )
    row_numbers = np.full(len(array), -1, dtype=np.int64)
    row_numbers[usable] = inverse
    return usable[first], row_numbers


def _read_array(value: Any, modality: str) -> np.ndarray:
    """(n, D) array of floats; a file is memory-mapped where its format allows."""
    label = modality[:-1]
    if isinstance(value, str | os.PathLike):
        path = Path(value)
        label = str(path)
        if not path.is_file():
            raise FileNotFoundError(f"{modality}: no file {path}")
        if path.suffix == ".npy":
            try:
                array = np.load(check_regular(path), mmap_mode="r", allow_pickle=False)
            except ValueError as error:
                raise ValueError(
                    f"{path} is no plain array of numbers ({error}); files with pickles are not read"
                ) from error
        elif path.suffix == ".safetensors":
            array = _read_safetensors(path, modality)
        elif path.suffix == ".parquet":
            array = _read_parquet(path, modality)
        else:
            raise ValueError(f"{modality}: {path} must be a .npy, .safetensors or .parquet file")
    else:
        array = np.asarray(value.detach().cpu() if hasattr(value, "detach") else value)
    if array.ndim != 2 or not np.issubdtype(array.dtype, np.floating) or 0 in array.shape:
        raise ValueError(
            f"{label}: expected an array of floats of shape (rows, width), got {array.shape} {array.dtype}"
        )
    return array


def _choose(names: list[str], modality: str, path: Path) -> str:
    for name in _COLUMN_NAMES[modality]:
        if name in names:
            return name
    if len(names) == 1:
        return names[0]
    raise ValueError(f"{path} has {names}: expected one array, or one called {_COLUMN_NAMES[modality][0]!r}")


def _read_safetensors(path: Path, modality: str) -> np.ndarray:
    import torch
    from safetensors import safe_open

    with safe_open(check_regular(path), framework="pt") as file:
        tensor = file.get_tensor(_choose(list(file.keys()), modality, path))
    return (tensor.float() if tensor.dtype == torch.bfloat16 else tensor).numpy()


def _read_parquet(path: Path, modality: str) -> np.ndarray:
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    def is_list(kind: pa.DataType) -> bool:
        return pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)

    schema = pq.read_schema(check_regular(path))
    column = _choose([field.name for field in schema if is_list(field.type)], modality, path)
    values = pq.read_table(path, columns=[column]).column(column).combine_chunks()
    if values.null_count:
        raise ValueError(f"{path}: {values.null_count} rows of {column!r} are null; store NaN for a missing embedding")
    lengths = np.unique(pc.list_value_length(values).to_numpy(zero_copy_only=False))
    if len(lengths) != 1:
        raise ValueError(f"{path}: the lists in {column!r} have different lengths {lengths[:5].tolist()}")
    return values.flatten().to_numpy(zero_copy_only=False).reshape(len(values), int(lengths[0]))
