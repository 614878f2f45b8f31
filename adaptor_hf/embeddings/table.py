"""The rows of a data set as the cache sees them: ids, keys of image and text, and what is wrong with them."""

import os
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ..data.content_keys import (
    BLOCK_ROWS,
    IMAGE_BLOCK_ROWS,
    KEY_DTYPE,
    blocks,
    digest,
    file_key,
    image_reference,
    key_vector,
    text_key,
)
from ..data.ids import SOURCE
from ..data.missing import is_missing
from ..data.splits import canonical_split
from ..files import printable
from ..privacy.mode import keyed_digests, private_name
from ..privacy.vocabulary import column_list
from .lookup import first_rows

ID_COLUMNS = ("image_id", "patient_id", "study_id", "view")
_NO_KEY = b"\0" * 16


@dataclass
class PairTable:
    """Rows of one data set.

    Attributes:
        dataset: datasets.Dataset with the contract columns, all splits one after the other.
        ids: Arrow table with image_id, patient_id, study_id, view, split, source_row and, with labels, targets; of
            several sources, source.
        image_keys, text_keys: (n,) keys of 16 bytes, or None for a modality that is not built.
        has_image, has_text: (n,) bool; False also where the row is faulty.
        faults: row -> reason.
    """

    dataset: object
    ids: pa.Table | None = None
    image_keys: np.ndarray | None = None
    text_keys: np.ndarray | None = None
    has_image: np.ndarray | None = None
    has_text: np.ndarray | None = None
    faults: dict[int, str] = field(default_factory=dict)

    def __len__(self) -> int:
        return self.ids.num_rows


def merge_splits(dataset):
    """One datasets.Dataset with a column `split` from a Dataset or DatasetDict."""
    import datasets

    if isinstance(dataset, datasets.DatasetDict):
        if not dataset:
            raise ValueError("the DatasetDict is empty: expected at least one split")
        names = {name: canonical_split(name) for name in dataset}
        columns = set.intersection(*(set(part.column_names) for part in dataset.values()))
        keep = [name for name in next(iter(dataset.values())).column_names if name in columns and name != "split"]
        parts = [part.select_columns(keep) for part in dataset.values()]
        merged = datasets.concatenate_datasets(parts) if len(parts) > 1 else parts[0]
        splits = np.repeat(list(names.values()), [len(part) for part in dataset.values()])
    elif isinstance(dataset, datasets.Dataset):
        merged = dataset
        splits = None
    else:
        raise TypeError(f"dataset must be a datasets.Dataset or DatasetDict, got {type(dataset).__name__}")
    if len(merged) == 0:
        raise ValueError("the data set has no rows")
    return merged.with_format("arrow"), splits


def read_table(dataset, *, images: bool, texts: bool) -> PairTable:
    """Read ids and keys of all rows; find duplicate ids, missing image files and texts that are no text.

    A missing image file costs one `stat`; files are opened only when their embedding is computed.

    Raises:
        TypeError: not a datasets.Dataset or DatasetDict.
        ValueError: no rows, or a column that is needed is missing.
    """
    merged, splits = merge_splits(dataset)
    for column, needed, option in (("image", images, "vision_tower"), ("text", texts, "text_tower")):
        if needed and column not in merged.column_names:
            raise ValueError(
                f"{option} is given but the data set has no column {column!r}. {column_list(merged.column_names)} "
                "Rename the column, or read the file with adaptor_hf.data.tables.load_pairs"
            )
    table = PairTable(merged, read_ids(merged, splits))
    if texts:
        read_texts(table)
    if images:
        _read_images(table)
    find_duplicates(table)
    return table


def _column(dataset, name: str) -> pa.ChunkedArray:
    return dataset.select_columns([name])[:].column(name)


def read_ids(dataset, splits: np.ndarray | None = None) -> pa.Table:
    """Ids, view, split, source row and targets of each row; what is missing is made from the row number, or null."""
    rows = len(dataset)
    names = dataset.column_names
    columns = {}
    if "source_row" in names:
        source_row = _column(dataset, "source_row").cast(pa.int64())
    else:
        _, starts, counts = np.unique(
            np.zeros(rows) if splits is None else splits, return_index=True, return_counts=True
        )
        numbers = np.arange(rows) - np.repeat(np.sort(starts), counts[np.argsort(starts)])
        source_row = pa.chunked_array([pa.array(numbers)])
    if splits is not None:
        split = pa.chunked_array([pa.array(splits)])
    elif "split" in names:
        split = _splits(_column(dataset, "split").cast(pa.string()))
    else:
        split = pa.chunked_array([pa.repeat("train", rows)])
    for name in ID_COLUMNS:
        if name in names:
            columns[name] = _column(dataset, name).cast(pa.string())
        else:
            columns[name] = pa.chunked_array([pa.nulls(rows, pa.string())])
    if columns["image_id"].null_count:
        generated = pc.binary_join_element_wise(split, source_row.cast(pa.string()), "-")
        columns["image_id"] = pc.coalesce(columns["image_id"], generated)
    columns |= {"split": split, "source_row": source_row}
    if "labels" in names:
        # `labels` would make Trainer take the batch for a labelled one.
        columns["targets"] = _column(dataset, "labels")
    if (source := _sources(dataset)) is not None:
        columns[SOURCE] = source
    return pa.table(columns)


def _sources(dataset) -> pa.ChunkedArray | None:
    """Name of each row's source, (n,) text; None where there are not several sources."""
    names = getattr(dataset.features.get(SOURCE), "names", None)
    if names is None or len(names) < 2:
        return None
    codes = _column(dataset, SOURCE).combine_chunks()
    if codes.null_count or pc.any(pc.less(codes, 0)).as_py():
        raise ValueError(f"some rows have no {SOURCE}. Of several sources every row is of one")
    # Not as a dictionary: `datasets` opens no file with such a column.
    return pa.chunked_array([pa.array(names, pa.string()).take(codes)])


def _splits(given: pa.ChunkedArray) -> pa.ChunkedArray:
    """Split of each row by its one name; all rows are training rows where none has a split."""
    codes = given.combine_chunks().dictionary_encode()
    names = [canonical_split(name) for name in codes.dictionary.to_pylist()]
    split = pa.array(names, pa.string()).take(codes.indices)
    missing = split.null_count
    if missing == len(split):
        return pa.chunked_array([pa.repeat("train", len(split))])
    if missing:
        raise ValueError(
            f"{missing} of {len(split)} rows have no split. Fill the split column, or leave it out to split by patient "
            "(adaptor_hf.data.splits.assign_splits)."
        )
    return pa.chunked_array([split])


def find_duplicates(table: PairTable) -> None:
    """Mark rows whose image_id an earlier row has, but not an image that stands in several rows with other texts."""
    column = table.ids.column("image_id")
    starts = range(0, len(column), BLOCK_ROWS)
    hashes = np.empty(len(column), dtype=np.int64)
    for start in starts:
        hashes[start : start + BLOCK_ROWS] = list(map(hash, column.slice(start, BLOCK_ROWS).to_pylist()))
    hashes.sort()
    if (hashes[1:] != hashes[:-1]).all():
        return  # as nearly always, and faster than digests
    digests = [b"".join(map(text_key, column.slice(start, BLOCK_ROWS).to_pylist())) for start in starts]
    keys = key_vector(digests)
    first = first_rows(keys)
    repeated = first != np.arange(len(keys))
    if table.image_keys is not None and table.text_keys is not None:
        same_image = table.image_keys == table.image_keys[first]
        pairs = np.empty(len(keys), dtype=[("id", KEY_DTYPE), ("text", KEY_DTYPE)])
        pairs["id"], pairs["text"] = keys, table.text_keys
        repeated &= ~same_image | (first_rows(pairs) != np.arange(len(keys)))
    source_row = table.ids.column("source_row")
    for row in np.nonzero(repeated)[0]:
        original = source_row[int(first[row])].as_py()
        table.faults[int(row)] = f"duplicate image_id, first seen in source row {original}"


def text_fault(text) -> str | None:
    """What is wrong with a text that should be there; None when nothing is."""
    if isinstance(text, float) and text != text:
        return "text is NaN"
    if not isinstance(text, str):
        return f"text is {type(text).__name__}, expected str"
    if not text.strip():
        return "text is empty"
    if is_missing(text):
        return f"text is the word {text.strip()!r}"
    return None


def read_texts(table: PairTable) -> None:
    """Fill the keys of the texts; mark texts that are no text."""
    digests: list[bytes] = []  # joined block by block: half a million small objects would stay in memory
    for start, values in blocks(table.dataset, "text"):
        block = []
        for offset, text in enumerate(values):
            fault = None if text is None else text_fault(text)
            if fault is not None:
                table.faults.setdefault(start + offset, fault)
            block.append(_NO_KEY if text is None or fault is not None else text_key(text))
        digests.append(b"".join(block))
    table.text_keys = keyed_digests(key_vector(digests))
    table.has_text = table.text_keys != np.array(_NO_KEY, dtype=KEY_DTYPE)


def image_key(value) -> tuple[bytes, str | None]:
    """Key of an image and None, or an empty key and what is wrong."""
    path, data = image_reference(value)
    if data is not None:
        return digest(data), None
    if not path:
        return _NO_KEY, "no image"
    try:
        return file_key(path), None
    except FileNotFoundError:
        return _NO_KEY, "image file is missing"
    except OSError as error:
        # What is no regular file has no number of the system's; the path has a column of its own.
        why = error.strerror or str(error).removeprefix(f"{printable(path)}: ") or type(error).__name__
        return _NO_KEY, f"image file cannot be read: {why}"


def image_name(value) -> str:
    """File name of an image for the list of excluded rows."""
    path, _ = image_reference(value)
    return private_name(os.path.basename(path)) if path else ""


def _read_images(table: PairTable) -> None:
    digests: list[bytes] = []
    stored = not pa.types.is_string(table.dataset.data.schema.field("image").type)
    for start, values in blocks(table.dataset, "image", IMAGE_BLOCK_ROWS if stored else BLOCK_ROWS):
        block = []
        for offset, value in enumerate(values):
            key, fault = image_key(value)
            if fault is not None:
                table.faults.setdefault(start + offset, fault)
            block.append(key)
        digests.append(b"".join(block))
    table.image_keys = keyed_digests(key_vector(digests))
    table.has_image = table.image_keys != np.array(_NO_KEY, dtype=KEY_DTYPE)


def needed(table: PairTable, modality: str) -> np.ndarray:
    """(n,) bool: rows whose image (or text) must have an embedding."""
    present = table.has_image if modality == "images" else table.has_text
    wanted = present.copy()
    if table.faults:
        wanted[np.fromiter(table.faults, dtype=np.int64)] = False
    return wanted
