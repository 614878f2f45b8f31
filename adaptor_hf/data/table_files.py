"""Read a table of image-text pairs, whatever holds it, into flat Arrow columns."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet

from .image_folders import ClassFolders, read_class_folders
from .metadata_folders import METADATA, join_metadata, metadata_files

SEPARATORS = {".csv": ",", ".tsv": "\t", ".tab": "\t", ".txt": "\t"}
JSON_LINES = (".jsonl", ".json", ".ndjson")
PARQUET = (".parquet", ".pq")

# A row must fit into one block; long reports do not fit into Arrow's default of 1 MB.
_BLOCK_BYTES = 1 << 24


@dataclass
class Source:
    """A table's columns of text and numbers, and what their image paths are relative to.

    `images` is a data set of the same rows, for image columns that hold more than a path. `split` holds the split that
    a folder or a DatasetDict gives each row, or is None. `folder` is what a folder of class folders holds.
    """

    table: pa.Table
    root: Path | None = None
    images: datasets.Dataset | None = None
    split: pa.Array | None = None
    folder: ClassFolders | None = None


def read_source(source, image_column: str, sep: str | None = None) -> Source:
    """Read a file, a folder, a data set or a hub id. See `load_pairs` for the kinds and the errors."""
    if isinstance(source, (datasets.Dataset, datasets.DatasetDict)):
        return _from_dataset(source)
    path = Path(source)
    if path.is_dir():
        if (path / "dataset_dict.json").is_file() or (path / "state.json").is_file():
            return _from_dataset(datasets.load_from_disk(str(path)), path)
        return _read_folder(path, image_column, sep)
    if path.is_file():
        return _read_file(path, image_column, sep)
    if _suffix(path) in (*SEPARATORS, *JSON_LINES, *PARQUET) or not re.fullmatch(r"[\w.-]+/[\w.-]+", str(source)):
        raise FileNotFoundError(f"{source}: no such table. Expected a file, a folder, or a hub id such as owner/name.")
    try:
        return _from_dataset(datasets.load_dataset(str(source)))
    except (OSError, ValueError) as error:
        raise FileNotFoundError(
            f"{source}: neither a file nor a folder here, and not loaded from the hub as a data set either ({error}). "
            "Check the path; without network, save the data set to a folder with save_to_disk first."
        ) from error


def _suffix(path: Path) -> str:
    """Last suffix, under a .gz."""
    return (path.with_suffix("") if path.suffix.lower() == ".gz" else path).suffix.lower()


def _read_folder(folder: Path, image_column: str, sep: str | None) -> Source:
    """An imagefolder: with a metadata file in it or in each folder of a split, or with a folder for each class."""
    if files := metadata_files(folder):
        if not files[0][0]:
            return _read_file(files[0][1], image_column, sep)
        tables = [(name, _read_file(path, image_column, sep).table) for name, path in files]
        table, split = join_metadata(tables, image_column)
        return Source(table, folder, split=split)
    classes = read_class_folders(folder)
    if classes is None:
        raise FileNotFoundError(
            f"{folder}: no table in this folder. Expected one of {', '.join(METADATA)} in it or in its train, "
            "validation and test folders, folders of classes with images, or a data set written by save_to_disk."
        )
    split = None if classes.splits is None else pa.array(classes.splits, pa.string())
    return Source(classes.table(), classes.root, split=split, folder=classes)


def _read_file(path: Path, image_column: str, sep: str | None) -> Source:
    suffix = _suffix(path)
    if suffix in PARQUET:
        schema = pyarrow.parquet.read_schema(path)
        embedded = any(field.name.strip() == image_column and not _is_flat(field.type) for field in schema)
        if embedded:
            return _from_dataset(datasets.Dataset.from_parquet(str(path)), path.parent)
        flat = [field.name for field in schema if _is_flat(field.type)]
        return Source(pyarrow.parquet.read_table(path, columns=flat), path.parent)
    if suffix in JSON_LINES:
        return Source(_read_json_lines(path), path.parent)
    if sep is None and suffix not in SEPARATORS:
        known = ", ".join((*SEPARATORS, *JSON_LINES, *PARQUET))
        raise ValueError(
            f"{path}: a table's name ends in one of {known} (or .gz after it), for its separator to be known."
        )
    return Source(read_delimited(path, sep or SEPARATORS[suffix]), path.parent)


def read_delimited(path: Path, sep: str, *, header: Sequence[str] | None = None, quoting: bool = True) -> pa.Table:
    """Every cell as exact text: no numbers, no dates, no missing-value words.

    `header` names the columns of a file without header line. Without `quoting` a quote is an ordinary character.
    """

    def read(use_threads: bool, named: Sequence[str] | None = header, skip_rows: int = 0) -> pa.Table:
        options = {"column_names": list(named), "skip_rows": skip_rows} if named is not None else {}
        with pa.input_stream(str(path), compression="detect") as stream:
            return pyarrow.csv.read_csv(
                stream,
                read_options=pyarrow.csv.ReadOptions(use_threads=use_threads, block_size=_BLOCK_BYTES, **options),
                parse_options=pyarrow.csv.ParseOptions(
                    delimiter=sep, newlines_in_values=quoting, quote_char='"' if quoting else False
                ),
                convert_options=pyarrow.csv.ConvertOptions(column_types=dict.fromkeys(names, pa.string())),
            )

    try:
        names = header if header is not None else _csv_header(path, sep)
        return read(use_threads=True)
    except (UnicodeDecodeError, pa.ArrowInvalid):
        _text(path)
    if header is None and names[-1].strip() == "":
        # NIH's header ends in commas that its rows do not have.
        last = max((place for place, name in enumerate(names) if name.strip()), default=0)
        try:
            return read(use_threads=True, named=names[: last + 1], skip_rows=1)
        except pa.ArrowInvalid:
            pass
    try:
        # One thread knows the number of the bad row.
        return read(use_threads=False)
    except pa.ArrowInvalid as error:
        # Arrow's message quotes the row, which is a report: keep the counts only.
        counts = re.search(r"Row #(\d+): Expected (\d+) columns, got (\d+)", str(error))
        if counts is None:
            raise ValueError(f"{path}: not a well-formed table. Check the quotes: one that opens must close.") from None
        row, expected, got = map(int, counts.groups())
        raise ValueError(
            f"{path}, data row {row - 1 - (header is None)} (0-based, header not counted): {got} cells, expected "
            f"{expected}. Check for an unquoted {sep!r} or line break, or a quote that does not close."
        ) from None


def _csv_header(path: Path, sep: str) -> list[str]:
    with pa.input_stream(str(path), compression="detect") as stream:
        text = io.TextIOWrapper(stream, "utf-8-sig", newline="")
        names = next((row for row in csv.reader(text, delimiter=sep) if row), None)
    if names is None:
        raise ValueError(f"{path}: the table is empty. Expected a header and at least one row.")
    return names


def _read_json_lines(path: Path) -> pa.Table:
    rows = []
    for number, line in enumerate(_text(path).split("\n"), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise ValueError(
                f"{path}, line {number}, column {error.colno}: not JSON ({error.msg}). Expected one object a line."
            ) from None
        if not isinstance(row, dict):
            raise ValueError(f"{path}, line {number}: a JSON {type(row).__name__}, expected one object a line.")
        rows.append(row)
    columns = {}
    for name in dict.fromkeys(name for row in rows for name in row):
        values = [row.get(name) for row in rows]
        kinds = set(map(type, values))
        if not kinds & {dict, list}:
            cells = values if kinds <= {str, type(None)} else [_scalar(value) for value in values]
            columns[name] = _json_text(cells, name, path)
    return pa.table(columns)


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


def _text(path: Path) -> str:
    """The file as text, without a byte-order mark."""
    with pa.input_stream(str(path), compression="detect") as stream:
        data = stream.read()
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise ValueError(
            f"{path}, line {line}: byte 0x{data[error.start]:02x} at offset {error.start} is not UTF-8. Convert the "
            "file, for example with `iconv -f WINDOWS-1252 -t UTF-8`."
        ) from None


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
    return Source(table, root, images=dataset, split=split)


def _is_flat(type: pa.DataType | None) -> bool:
    """Whether a column of this type holds text or numbers."""
    if type is None:
        return False
    if pa.types.is_dictionary(type):
        return _is_flat(type.value_type)
    return not (pa.types.is_nested(type) or pa.types.is_binary(type) or pa.types.is_large_binary(type))
