"""Rows of a loader as Arrow columns with the features of the data contract."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from .archives import stored_image
from .catalog import LoadedRows
from .features import RadiographImage
from .target_features import BoxList, MultiLabel

if TYPE_CHECKING:
    import pandas as pd

CHUNK_ROWS = 32_768


def contract_features(loaded: LoadedRows) -> datasets.Features:
    """Features of the columns that `loaded` has; ids, view and split are always there."""
    rows = loaded.rows
    features = {"image": RadiographImage()}
    features |= {name: datasets.Value("string") for name in ("image_id", "patient_id", "study_id", "view")}
    present = {*rows.columns, *(("text", "sections", "sentences") if loaded.shared is not None else ())}
    if "text" in present:
        features["text"] = datasets.Value("string")
    if "sections" in present:
        features["sections"] = {name: datasets.Value("string") for name in _section_names(loaded)}
    if "sentences" in present:
        features["sentences"] = datasets.List(datasets.Value("string"))
    if loaded.class_names is not None:
        features["labels"] = datasets.ClassLabel(names=list(loaded.class_names))
    elif loaded.label_names is not None:
        features["labels"] = MultiLabel(list(loaded.label_names))
    if "boxes" in rows:
        features["boxes"] = BoxList()
        names = loaded.box_class_names
        number = datasets.ClassLabel(names=list(names)) if names else datasets.Value("int64")
        features["box_labels"] = datasets.List(number)
    if "mask" in rows:
        from .masks import RadiographMask

        features["mask"] = RadiographMask()
    features["split"] = datasets.Value("string")
    if "sex" in rows:
        features["sex"] = datasets.Value("string")
    if "age" in rows:
        features["age"] = datasets.Value("float32")
    if "source" in rows:
        features["source"] = datasets.Value("string")
    return datasets.Features(features)


def contract_table(rows: pd.DataFrame, loaded: LoadedRows, features: datasets.Features, root: Path) -> pa.Table:
    """Some of the rows as a table of these features; paths become absolute."""
    columns = {}
    shared = _take_shared(loaded.shared, rows["shared"].to_numpy()) if loaded.shared is not None else {}
    for name, feature in features.items():
        kind = datasets.Features({name: feature}).arrow_schema.field(name).type
        if name == "image":
            columns[name] = _images(rows["image"], root, kind)
        elif name == "labels" and loaded.label_names is not None:
            values = rows[loaded.label_names].to_numpy(dtype=np.float32)
            columns[name] = pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1)), values.shape[1]).cast(kind)
        elif name == "boxes":
            boxes = [None if value is None else np.asarray(value, np.float32).tolist() for value in rows[name]]
            columns[name] = pa.array(boxes, kind)
        elif name == "box_labels":
            columns[name] = pa.array(_box_labels(rows), kind)
        elif name == "mask":
            from .masks import with_root

            columns[name] = pa.array([with_root(value, root) for value in rows[name]], kind)
        elif name in shared:
            columns[name] = shared[name].cast(kind)
        elif name in rows:
            columns[name] = _array(rows[name], kind)
        else:
            columns[name] = pa.nulls(len(rows), kind)
    return pa.table(columns, schema=features.arrow_schema)


def _images(cells: pd.Series, root: Path, kind: pa.DataType) -> pa.Array:
    prefix = os.path.join(root, "")
    values = [
        cell | {"path": cell.get("path"), "bytes": cell.get("bytes")}
        if isinstance(cell, dict)
        else stored_image(prefix + cell)
        for cell in cells
    ]
    return pa.array(values, kind)


def _take_shared(table: pa.Table, numbers: np.ndarray) -> dict[str, pa.Array]:
    """Rows of the shared table, and their text. Batch by batch: Arrow's own take would copy all of a column first."""
    wanted, place = np.unique(numbers, return_inverse=True)
    parts, start = [], 0
    for batch in table.to_batches():
        low, high = np.searchsorted(wanted, [start, start + batch.num_rows])
        parts.append(batch.take(pa.array(wanted[low:high] - start)))
        start += batch.num_rows
    taken = pa.Table.from_batches(parts, table.schema).combine_chunks().take(pa.array(place))
    columns = {name: taken[name].combine_chunks() for name in taken.column_names}
    return columns | {"text": pc.binary_join(columns["sentences"], " ")}


def _array(cells: pd.Series, kind: pa.DataType) -> pa.Array:
    array = pa.Array.from_pandas(cells, type=None if hasattr(cells.dtype, "pyarrow_dtype") else kind)
    array = array.combine_chunks() if isinstance(array, pa.ChunkedArray) else array
    return array if array.type == kind else array.cast(kind)


def _box_labels(rows: pd.DataFrame) -> list:
    if "box_labels" in rows:
        return [None if labels is None else [int(label) for label in labels] for labels in rows["box_labels"]]
    return [None if boxes is None else [0] * len(boxes) for boxes in rows["boxes"]]


def _section_names(loaded: LoadedRows) -> list[str]:
    """Names of all sections that any row has."""
    if loaded.shared is not None:
        return [field.name for field in loaded.shared.schema.field("sections").type]
    sections = loaded.rows["sections"]
    if hasattr(sections.dtype, "pyarrow_dtype"):
        return [field.name for field in sections.dtype.pyarrow_dtype]
    return list(dict.fromkeys(name for value in sections if isinstance(value, dict) for name in value))


__all__ = ["CHUNK_ROWS", "contract_features", "contract_table"]
