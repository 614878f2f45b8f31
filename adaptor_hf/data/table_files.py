"""Read a table of image-text pairs, whatever holds it, into flat Arrow columns."""

from __future__ import annotations

import json
import logging
import math
import os
import re
from dataclasses import dataclass, field, replace
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet

from ..files import MARKED, check_regular, parse_json
from .delimited import SEPARATORS, read_delimited
from .folder_walk import walk_images
from .image_folders import ClassFolders, read_class_folders
from .metadata_folders import METADATA, join_metadata, metadata_files
from .saved_datasets import load_saved_dataset
from .spreadsheets import FOREIGN, WORKBOOKS, read_workbook
from .text_files import decoded, read_utf8, say_once, suffix_of

logger = logging.getLogger(__name__)

JSON_LINES = (".jsonl", ".json", ".ndjson")
PARQUET = (".parquet", ".pq")


@dataclass
class Source:
    """A table's columns of text and numbers, and what their image paths are relative to.

    `images` is a data set of the same rows, for image columns that hold more than a path. `split` holds the split that
    a folder or a DatasetDict gives each row, or is None. `folder` is what a folder of class folders holds, `described`
    a folder whose metadata files are the table. `nested` says of columns that are not in the table what they hold, such
    as lists. `name` is what messages call it.
    """

    table: pa.Table
    root: Path | None = None
    images: datasets.Dataset | None = None
    split: pa.Array | None = None
    folder: ClassFolders | None = None
    described: Path | None = None
    nested: dict[str, str] = field(default_factory=dict)
    name: str = "data set"


def read_source(source, image_column: str, sep: str | None = None, encoding: str | None = None) -> Source:
    """Read a file, a folder, a data set or a hub id, once: a `Source` is given back. See `load_pairs` for the kinds."""
    if isinstance(source, Source):
        return source
    found = _read(source, image_column, {"sep": sep, "encoding": encoding})
    if isinstance(source, (str, os.PathLike)):
        found.name = str(source)
    return found


def read_unlabelled(source, image_column: str, sep: str | None = None, encoding: str | None = None) -> Source:
    """
    As `read_source`, but of a folder without metadata files every image, whatever its sub-folders are called.

    Raises:
        FileNotFoundError: No image under the folder.
    """
    folder = Path(source)
    if not folder.is_dir() or is_saved(folder) or metadata_files(folder):
        return read_source(source, image_column, sep, encoding)
    root = os.path.abspath(folder)
    walk = walk_images(Path(root))
    if not walk.images:
        raise FileNotFoundError(f"{source}: no image in this folder or below it.")
    ignored = ", ".join(f"{count} {kind}" for kind, count in walk.ignored.most_common())
    logger.info("%d images under the folder; passed over: %s.", len(walk.images), ignored or "nothing")
    paths = pa.array([os.path.join(root, *image.parts) for image in walk.images], pa.string())
    return Source(pa.table({image_column: paths}), Path(root), name=str(source))


def blank_rows(source: Source) -> np.ndarray:
    """(n,) bool: rows whose cells are all empty or blank, as spreadsheets leave below a table. They are no pairs."""
    table = source.table
    blank = np.full(len(table), source.images is None and table.num_columns > 0)
    for column in table.columns:
        places = np.flatnonzero(blank)
        if len(places) == 0:
            break
        cells = column.take(pa.array(places))
        if pa.types.is_dictionary(cells.type):
            cells = cells.cast(cells.type.value_type)
        empty = cells.is_null(nan_is_null=True)
        if pa.types.is_string(cells.type) or pa.types.is_large_string(cells.type):
            empty = pc.or_(empty, pc.fill_null(pc.equal(pc.utf8_trim_whitespace(cells), ""), False))
        blank[places] = empty.to_numpy()
    return blank


def is_hub_id(source: str | os.PathLike) -> bool:
    """Whether a table that is not on this machine can be meant as one of the Hub: OWNER/NAME."""
    endings = (*SEPARATORS, *JSON_LINES, *PARQUET, *WORKBOOKS, *FOREIGN)
    return suffix_of(Path(source)) not in endings and re.fullmatch(r"[\w.-]+/[\w.-]+", str(source)) is not None


def _read(source, image_column: str, form: dict[str, str | None]) -> Source:
    if isinstance(source, (datasets.Dataset, datasets.DatasetDict)):
        return _from_dataset(source)
    if not isinstance(source, (str, os.PathLike)):
        raise TypeError(
            f"A table is a path, a hub id or a data set, got {type(source).__name__}. Of a pandas DataFrame make one "
            "with datasets.Dataset.from_pandas(frame)."
        )
    path = Path(source)
    if path.is_dir():
        if is_saved(path):
            return _from_dataset(load_saved_dataset(path), path)
        return _read_folder(path, image_column, form)
    if os.path.lexists(path):
        return _read_file(path, image_column, form)
    if not is_hub_id(source):
        raise FileNotFoundError(f"{source}: no such table. Expected a file, a folder, or a hub id such as owner/name.")
    try:
        return _from_dataset(datasets.load_dataset(str(source)))
    except (OSError, ValueError) as error:
        raise FileNotFoundError(
            f"{source}: neither a file nor a folder here, and not loaded from the hub as a data set either ({error}). "
            "Check the path; without network, save the data set to a folder with save_to_disk first."
        ) from error


def is_saved(folder: Path) -> bool:
    """Whether `save_to_disk` wrote it."""
    return any((folder / name).is_file() for name in ("dataset_dict.json", "state.json"))


def _read_folder(folder: Path, image_column: str, form: dict[str, str | None]) -> Source:
    """An imagefolder: with a metadata file in it or in each folder of a split, or with a folder for each class."""
    if files := metadata_files(folder):
        if not files[0][0]:
            return replace(_read_file(files[0][1], image_column, form), described=folder)
        parts = {name: _read_file(path, image_column, form) for name, path in files}
        table, split = join_metadata([(name, part.table) for name, part in parts.items()], image_column)
        nested = {column: kind for part in parts.values() for column, kind in part.nested.items()}
        return Source(table, folder, split=split, described=folder, nested=nested)
    classes = read_class_folders(folder)
    if classes is None:
        raise FileNotFoundError(
            f"{folder}: no table in this folder. Expected one of {', '.join(METADATA)} in it or in its train, "
            "validation and test folders, folders of classes with images, or a data set written by save_to_disk."
        )
    split = None if classes.splits is None else pa.array(classes.splits, pa.string())
    return Source(classes.table(), classes.root, split=split, folder=classes)


def _read_file(path: Path, image_column: str, form: dict[str, str | None]) -> Source:
    suffix = suffix_of(check_regular(path))
    if suffix in PARQUET:
        schema = pyarrow.parquet.read_schema(path)
        embedded = any(column.name.strip() == image_column and not _is_flat(column.type) for column in schema)
        if embedded:
            return _from_dataset(datasets.Dataset.from_parquet(str(path)), path.parent)
        flat = [column.name for column in schema if _is_flat(column.type)]
        nested = {column.name: _nested_kind(column.type) for column in schema if not _is_flat(column.type)}
        return Source(pyarrow.parquet.read_table(path, columns=flat), path.parent, nested=nested)
    if suffix in JSON_LINES:
        table, nested = _read_json_lines(path, form["encoding"])
        return Source(table, path.parent, nested=nested)
    if suffix in WORKBOOKS:
        return Source(read_workbook(path), path.parent)
    if suffix in FOREIGN:
        raise ValueError(f"{path}: {FOREIGN[suffix]}")
    if form["sep"] is None and suffix not in SEPARATORS:
        known = ", ".join((*SEPARATORS, *JSON_LINES, *PARQUET, *WORKBOOKS))
        raise ValueError(
            f"{path}: a table's name ends in one of {known} (or .gz after it), or its separator is given with "
            "--delimiter (sep= in Python)."
        )
    return Source(_plain_cells(read_delimited(path, **form).table, path), path.parent)


def _plain_cells(table: pa.Table, path: Path) -> pa.Table:
    """A table with the texts of which `csv_cell` made its cells, for spreadsheets."""
    changed = 0
    for place, column in enumerate(table.columns):
        marked = pc.match_substring_regex(column, MARKED)
        if pc.any(marked).as_py():
            changed += pc.sum(marked).as_py()
            plain = pc.if_else(marked, pc.utf8_slice_codeunits(column, 1), column)
            table = table.set_column(place, table.column_names[place], plain)
    if changed:
        say_once(str(path), f"{changed} cells begin with an apostrophe before =, +, -, @, a tab or a line end, as is "
                 "written for spreadsheets: it is taken off.")  # fmt: skip
    return table


def _read_json_lines(path: Path, encoding: str | None) -> tuple[pa.Table, dict[str, str]]:
    """The flat columns of a file, and what the others hold."""
    rows = []
    data, _, _ = read_utf8(path, encoding)
    for number, line in enumerate(decoded(data, path).split("\n"), start=1):
        if not line.strip():
            continue
        try:
            row = parse_json(line)
        except ValueError as error:
            column = f", column {error.colno}" if isinstance(error, json.JSONDecodeError) else ""
            reason = getattr(error, "msg", str(error))
            raise ValueError(
                f"{path}, line {number}{column}: not JSON ({reason}). Expected one object a line."
            ) from None
        if not isinstance(row, dict):
            raise ValueError(f"{path}, line {number}: a JSON {type(row).__name__}, expected one object a line.")
        if any(isinstance(value, float) and math.isinf(value) for value in row.values()):
            raise ValueError(f"{path}, line {number}: a number that is too large to be one. Write ids in quotes.")
        rows.append(row)
    columns, nested = {}, {}
    for name in dict.fromkeys(name for row in rows for name in row):
        values = [row.get(name) for row in rows]
        kinds = set(map(type, values))
        if kinds & {dict, list}:
            nested[name] = "lists" if list in kinds else "objects"
        else:
            cells = values if kinds <= {str, type(None)} else [_scalar(value) for value in values]
            columns[name] = _json_text(cells, name, path)
    return pa.table(columns), nested


def _json_text(cells: list, name: str, path: Path) -> pa.Array:
    try:
        return pa.array(cells, pa.string())
    except UnicodeEncodeError:
        raise ValueError(
            f"{path}: column {name!r} has half a surrogate pair (\\ud800 to \\udfff), not Unicode text."
        ) from None


def _scalar(value) -> str | None:
    """Text of a JSON number; 7.0 is 7, as an id that passed through a float column was."""
    if isinstance(value, float):
        return None if value != value else str(int(value)) if value.is_integer() else repr(value)
    return value if value is None or isinstance(value, str) else json.dumps(value)


def _from_dataset(dataset: datasets.Dataset | datasets.DatasetDict, root: Path | None = None) -> Source:
    split = None
    if isinstance(dataset, datasets.DatasetDict):
        # A lone "train" is how the hub stores a data set without splits.
        if list(dataset) != ["train"]:
            split = pa.array([name for name, part in dataset.items() for _ in range(len(part))], pa.string())
        dataset = datasets.concatenate_datasets(list(dataset.values()))
    if dataset._indices is not None:
        dataset = dataset.flatten_indices()
    features = dataset.features
    flat = [name for name, feature in features.items() if _is_flat(getattr(feature, "pa_type", None))]
    # Arrow refuses a selection of no columns.
    table = dataset.select_columns(flat).with_format("arrow")[:] if flat else pa.table({"": pa.nulls(len(dataset))})
    for name in flat:
        if isinstance(features[name], datasets.ClassLabel):
            names = pa.array(features[name].names, pa.string())
            codes = table[name].combine_chunks()
            codes = pc.if_else(pc.less(codes, 0), None, codes)
            table = table.set_column(table.column_names.index(name), name, names.take(codes))
    nested = {
        name: _nested_kind(getattr(feature, "pa_type", None))
        for name, feature in features.items()
        if name not in flat and not isinstance(feature, datasets.Image)
    }
    return Source(table, root, images=dataset, split=split, nested=nested)


def _is_flat(type: pa.DataType | None) -> bool:
    """Whether a column of this type holds text or numbers."""
    if type is None:
        return False
    if pa.types.is_dictionary(type):
        return _is_flat(type.value_type)
    return not (pa.types.is_nested(type) or pa.types.is_binary(type) or pa.types.is_large_binary(type))


def _nested_kind(type: pa.DataType | None) -> str:
    """What a column that is not flat holds, for messages. `datasets` gives lists and objects no Arrow type."""
    if type is None or pa.types.is_list(type) or pa.types.is_large_list(type) or pa.types.is_fixed_size_list(type):
        return "lists"
    return "objects" if pa.types.is_nested(type) else "bytes"
