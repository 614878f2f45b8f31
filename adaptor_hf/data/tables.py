"""`load_pairs`: a table of images and reports, from a file, a folder or the hub, into the column contract."""

from __future__ import annotations

import difflib
import logging
import os
from collections.abc import Sequence
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.compute as pc

from ..privacy.mode import speaks_privately
from ..privacy.vocabulary import column_list
from .cells import MAX_NAME_CHARACTERS, MAX_TEXT_CHARACTERS, check_cells
from .features import RadiographImage, stated_reading
from .ids import check_ids, check_mode
from .image_folders import copies_message, describe_folder
from .image_paths import name_rows, plain_path, resolve_paths
from .metadata_folders import count_listed
from .missing import without_missing
from .reading import IMAGE_MODES, Reading
from .splits import SPLIT_ALIASES, unknown_split
from .table_files import Source, blank_rows, read_source
from .value_range import check_percentile

logger = logging.getLogger(__name__)

_IDS = ("image_id", "patient_id", "study_id")

COLUMNS = ("image", "image_id", "patient_id", "study_id", "view", "text", "split", "source_row")
"""Columns of the result, in order."""


def load_pairs(
    source: str | os.PathLike | datasets.Dataset | datasets.DatasetDict | Source,
    *,
    image_column: str = "image",
    text_column: str | None = "text",
    image_root: str | os.PathLike | None = None,
    patient_column: str | None = None,
    study_column: str | None = None,
    split_column: str | None = None,
    id_column: str | None = None,
    view_column: str | None = None,
    filters: Sequence[str] | None = None,
    sep: str | None = None,
    encoding: str | None = None,
    voi_lut: bool = False,
    ids: str | None = None,
    image_mode: str = "auto",
    missing_words: Sequence[str] = (),
    range_percentile: float = 0.0,
    _checked: bool = True,
) -> datasets.Dataset:
    """Load image-text pairs with the columns of `COLUMNS`; images stay on disk, and some are looked at.

    Values:

    * Text is exact: neither stripped, normalised nor re-encoded. A missing or blank text is None, an image-only row;
      so is one that is only a word for "no value" (`MISSING_WORDS`).
    * Ids are text: leading zeros stay. An id that passed through a float column loses its ".0", so that 7 and 7.0 are
      one patient: where every id of the column is a whole number, or where the column has both. Ids that differ in
      other ways that no one means (case, leading zeros, see `adaptor_hf.data.ids`) stop the load until `ids` says what
      they are; ids that a spreadsheet has rounded (1.23457E+11) stop it always.
    * Splits: val, valid, validate, dev are "validation"; training, testing likewise; any case. Every row has one, or
      none has.
    * `image_id` is the image's path relative to the root if there is no id column, and the row number if there is no
      path; `./im/1.png` and `im//1.png` are `im/1.png`. Rows that share an id but not the image, or that repeat image
      and text, are kept and reported with both row numbers in a warning, for whoever builds on them can drop one and
      keep the rows' numbers.

    Image paths are relative to `image_root`, by default the table's folder. A path with ".." or a URL is refused: a
    table from elsewhere must not choose files outside. An absolute path is taken as it is, unless `image_root` is
    given: then it must lie under it. Symbolic links are followed. Images embedded in a data set stay as they are. Of
    relative paths with backslashes the file with slashes is taken where it exists.

    Rows whose cells are all blank, as Excel leaves them, are left out, counted in the log.

    Args:
        source: One of
            a CSV, TSV, JSON-lines or Parquet file (text tables also .gz), or an Excel workbook (.xlsx);
            an imagefolder, with metadata.csv, .tsv, .jsonl, .parquet or .xlsx in it or in its train/validation/test
            folders, or with a folder for each class (`adaptor_hf.data.image_folders`), without reports;
            a folder written by `datasets.save_to_disk`; a `Dataset` or `DatasetDict`; a hub data set id owner/name.
            The keys of a DatasetDict and the split folders are the split, if there is no split column.
        image_column: Column of image paths or embedded images. "file_name" is taken if there is no column "image".
        text_column: Column of reports; None for images alone.
        image_root: Folder that image paths are relative to.
        patient_column, study_column, split_column, id_column, view_column: Optional columns. None takes the column
            that has the contract's name (patient_id, study_id, split, image_id, view), if there is one.
        filters: "column=value" strings. Different columns must all match (AND); for one column given several times
            any value matches (OR). Values are compared as text, stripped, in the table's own spelling.
        sep: Separator of a text table, one character or comma, semicolon, tab or bar. None takes the one of these that
            its header and first rows show, or that of a first line "sep=;".
        encoding: Of a text table, such as "windows-1252"; None takes UTF-8, or UTF-16 with a byte-order mark.
        voi_lut: Read DICOM files as displayed, see `read_image`. Everything that reads the column follows, embeddings
            too. A data set's image column that says so already keeps it.
        ids: What ids in several spellings are: "exact", different ids; "canonical", one id, written as the first of
            them in sorted order. None stops at them, as far as they decide what is one patient, and warns of others.
        image_mode: "L" reads images as grey, "RGB" in colour (`Reading`). "auto" takes what a data set's image column
            states, else looks at up to 200 files and says in the log what it chose (`adaptor_hf.data.colour`).
        missing_words: Words that mean "no value" beside `adaptor_hf.data.missing.MISSING_WORDS`, such as "unknown".
        range_percentile: Scale DICOM and other deep files from this percentile of their pixels to 100 minus it, not
            from minimum to maximum, see `read_image`.

    Returns:
        Dataset: `image` (`RadiographImage`, lazy), text columns (None where missing), `source_row` (int64, data row in
        the source, 0-based, header and blank lines not counted; several files count on in order of their names).

    Raises:
        FileNotFoundError: No such table.
        ValueError: No such column (the message lists the columns and a close match), no rows, no rows after the
            filters, a malformed table (`read_delimited`), a separator or encoding in doubt, an unknown split, an image
            path outside the root, of another system or to a format that is not read, or ids as described at `ids`.
            The message names file and rows.
    """
    check_mode(ids)  # `_checked` is for `data check --table`, which reports all that is wrong at once
    if image_mode not in IMAGE_MODES:
        raise ValueError(f"image_mode must be one of {', '.join(IMAGE_MODES)}, got {image_mode!r}.")
    check_percentile(range_percentile)
    data = read_source(source, image_column, sep, encoding)
    name = data.name
    blank = blank_rows(data)
    if blank.all():
        raise ValueError(f"{name}: the table has no rows. Expected a header and at least one row.")
    if data.folder is not None:
        data.folder.check_columns(text_column, (patient_column, study_column, view_column, id_column))
        logger.info("%s", describe_folder(data.folder.counts()))
        for warning in data.folder.warnings:
            logger.warning("%s", warning)
    columns = data.images.column_names if data.images else [*data.table.column_names, *data.nested]
    names = [column.strip() for column in columns]
    if image_column == "image" and "image" not in names and "file_name" in names:
        image_column = "file_name"
    wanted = {
        "image": _find(names, image_column, "image_column", name),
        "text": text_column and _find(names, text_column, "text_column", name),
        "image_id": _find_optional(names, id_column, "image_id", "id_column", name),
        "patient_id": _find_optional(names, patient_column, "patient_id", "patient_column", name),
        "study_id": _find_optional(names, study_column, "study_id", "study_column", name),
        "view": _find_optional(names, view_column, "view", "view_column", name),
        "split": _find_optional(names, split_column, "split", "split_column", name),
    }
    _refuse_nested(data, wanted)
    table = data.table.rename_columns([column.strip() for column in data.table.column_names])
    embedded = wanted["image"] not in table.column_names
    kept = _filter(table, names, filters or (), name)
    if blank.any():
        logger.info("%d rows are blank and left out.", blank.sum())
        filled = pa.chunked_array([pa.array(~blank)])
        kept = filled if kept is None else pc.and_(kept, filled)
    rows = pa.array(range(len(table)), pa.int64()) if kept is None else pc.indices_nonzero(kept).cast(pa.int64())
    if len(rows) == 0:
        raise ValueError(f"{name}: none of its {len(table)} rows matches the filters {list(filters)}.")
    if data.folder is not None and _checked and (copies := data.folder.copies(rows.to_pylist())):
        raise ValueError(f"{name}: {copies_message(copies)}")

    def read(key: str, strip: bool = True) -> pa.ChunkedArray:
        if wanted[key] is None:
            return pa.chunked_array([pa.nulls(len(rows), pa.string())])
        column = table[wanted[key]] if kept is None else table[wanted[key]].filter(kept)
        if key in _IDS:
            _check_precision(column, wanted[key], rows, name)
        limit = MAX_TEXT_CHARACTERS if key == "text" else MAX_NAME_CHARACTERS
        column = check_cells(_as_text(column, wanted[key], name), wanted[key], limit, rows, name)
        return without_missing(column, strip, missing_words)

    values = {key: read(key) for key in _IDS}
    values["image_id"] = plain_path(values["image_id"])
    if ids != "exact":
        values = {key: _without_float_suffix(column) for key, column in values.items()}
    if _checked:
        values |= _checked_ids(values, rows, ids)
    values |= {"view": read("view"), "text": read("text", strip=False), "split": read("split")}
    if wanted["split"] is None and data.split is not None:
        values["split"] = pa.chunked_array([data.split.take(rows)])
    if wanted["split"] is not None or data.split is not None:
        values["split"] = _canonical_splits(values["split"], rows, name)
    paths = relative = pa.chunked_array([pa.nulls(len(rows), pa.string())])
    if not embedded:
        # A file's name may begin with a space; a cell's first space is none of it.
        paths, relative = resolve_paths(read("image", strip=data.folder is None), image_root, data.root, rows, name)
        if image_root is None and data.described is not None:
            _log_listed(data.described, table, wanted["image"], int((~blank).sum()))
    values["image_id"] = pc.coalesce(values["image_id"], relative, rows.cast(pa.string()))
    _report(values, paths, rows)
    values = {key: values[key] for key in COLUMNS if key in values} | {"source_row": rows}
    if embedded:
        stated = stated_reading(data.images, _original_name(data.images, wanted["image"]))
        pairs = _beside_images(values, data.images, wanted["image"])
    else:
        stated, pairs = None, _with_paths(values, paths)
    return _with_reading(pairs, stated, image_mode, voi_lut, range_percentile)


def _log_listed(folder: Path, table: pa.Table, image_column: str, rows: int) -> None:
    """Log how a folder and its metadata files agree, in counts."""
    counts = count_listed(folder, table, image_column)
    if any(counts.values()):
        logger.warning(
            "%d of %d rows of the folder's metadata name a file that is not there, or no regular one; %d image files "
            "in the folder are named by no row and are not read.",
            counts["rows_without_file"], rows, counts["images_not_listed"],
        )  # fmt: skip


def _refuse_nested(data: Source, wanted: dict[str, str | None]) -> None:
    """A column of lists or objects where one value a row is read."""
    nested = {column.strip(): kind for column, kind in data.nested.items()}
    for key, column in wanted.items():
        if column in nested and (key != "image" or data.images is None):
            expected = "a path" if key == "image" else "a text or number"
            raise ValueError(
                f"{data.name}: the column {column!r} holds {nested[column]}, expected {expected} in each row. Write a "
                "column with one value a row (of sentences, the joined text), or name another."
            )


def _find(names: list[str], wanted: str, option: str, source: str) -> str:
    """The column's name, found after stripping whitespace."""
    wanted = wanted.strip()
    if names.count(wanted) == 1:
        return wanted
    if wanted in names:
        raise ValueError(f"{source}: the column {wanted!r} is there {names.count(wanted)} times. Rename all but one.")
    lower = {name.lower(): name for name in names}
    close = difflib.get_close_matches(wanted.lower(), lower, n=1)
    hint = f" Did you mean {lower[close[0]]!r}?" if close and not speaks_privately() else ""
    if len(names) == 1 and any(mark in names[0] for mark in ",;\t|"):
        hint = " The header is a single column: name what separates its cells with --delimiter (sep= in Python)."
    raise ValueError(f"{source}: no column {wanted!r} ({option}).{hint} {column_list(names)}")


def _find_optional(names: list[str], wanted: str | None, default: str, option: str, source: str) -> str | None:
    if wanted is None:
        return default if default in names else None
    return _find(names, wanted, option, source)


def _as_text(column: pa.ChunkedArray, column_name: str, source: str) -> pa.ChunkedArray:
    """A column as text; whole floats (7.0) lose their point, as ids that passed through a float column need."""
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    if pa.types.is_nested(column.type) or pa.types.is_binary(column.type):
        raise ValueError(f"{source}: the column {column_name!r} holds {column.type}, expected text or numbers.")
    if pa.types.is_floating(column.type):
        column = pc.if_else(pc.is_finite(column), column, None)
        if pc.all(pc.equal(pc.floor(column), column), min_count=0).as_py():
            column = column.cast(pa.int64())
    return column.cast(pa.string())


def _without_float_suffix(ids: pa.ChunkedArray) -> pa.ChunkedArray:
    bare = pc.replace_substring_regex(ids, r"^([0-9]+)\.0$", r"\1")
    if pc.all(pc.match_substring_regex(bare, r"^[0-9]+$"), min_count=0).as_py():
        return bare
    return pc.if_else(pc.is_in(bare, value_set=ids.combine_chunks()), bare, ids)


def _check_precision(column: pa.ChunkedArray, column_name: str, rows: pa.Array, source: str) -> None:
    """Refuse whole numbers beyond what their floating-point type can tell apart: different ids may have become one."""
    digits = {pa.float16(): 11, pa.float32(): 24, pa.float64(): 53}.get(column.type)
    if digits is None:
        return
    large = pc.and_(pc.is_finite(column), pc.greater_equal(pc.abs(column.cast(pa.float64())), float(2**digits)))
    if pc.any(large).as_py():
        raise ValueError(
            f"{source}: the ids in column {column_name!r} are floating-point numbers, too large to be exact in "
            f"{name_rows(large, rows)}: different ids may have become one. Write the column as text or integers."
        )


def _checked_ids(values: dict[str, pa.ChunkedArray], rows: pa.Array, mode: str | None) -> dict[str, pa.ChunkedArray]:
    """The ids, checked for several spellings of one. A column stops the load where it decides what stays together."""
    without_patient = pc.is_null(values["patient_id"])
    by_image = pc.and_(without_patient, pc.is_null(values["study_id"]))
    decisive = {"patient_id": True, "study_id": pc.any(without_patient).as_py(), "image_id": pc.any(by_image).as_py()}
    numbers = rows.to_numpy()
    checked = {}
    for key, ids in values.items():
        if ids.null_count < len(ids):
            given = ids.to_pylist()
            loose = key == "patient_id"
            checked[key] = check_ids(given, numbers, key, mode, stop=decisive[key], loose=loose)
            ids = ids if checked[key] == given else pa.chunked_array([pa.array(checked[key], pa.string())])
        checked[key] = ids
    return checked


def _filter(table: pa.Table, names: list[str], filters: Sequence[str], source: str) -> pa.ChunkedArray | None:
    """Mask of the rows that match, or None without filters."""
    if isinstance(filters, str):
        filters = [filters]
    allowed: dict[str, list[str]] = {}
    for item in filters:
        column, equals, value = item.partition("=")
        if not equals or not column.strip():
            raise ValueError(f"Filter {item!r} is not of the form column=value.")
        allowed.setdefault(_find(names, column, "filters", source), []).append(value.strip())
    mask = None
    for column, values in allowed.items():
        if column not in table.column_names:
            raise ValueError(f"{source}: cannot filter on {column!r}, it holds neither text nor numbers.")
        cells = pc.utf8_trim_whitespace(pc.fill_null(_as_text(table[column], column, source), ""))
        match = pc.is_in(cells, pa.array(values, pa.string()))
        mask = match if mask is None else pc.and_(mask, match)
    return mask


def _canonical_splits(splits: pa.ChunkedArray, rows: pa.Array, source: str) -> pa.ChunkedArray:
    if splits.null_count == len(splits):
        return splits
    lower = pc.utf8_lower(pc.utf8_trim_whitespace(splits))
    position = pc.index_in(lower, pa.array(SPLIT_ALIASES))
    unknown = pc.is_null(position)
    if pc.any(unknown).as_py():
        found = pc.unique(splits.filter(unknown)).to_pylist()
        raise ValueError(f"{source}: {unknown_split(found, f' in {name_rows(unknown, rows)}')}")
    return pa.chunked_array([pa.array(SPLIT_ALIASES.values()).take(position.combine_chunks())])


def _report(values: dict[str, pa.ChunkedArray], paths: pa.ChunkedArray, rows: pa.Array) -> None:
    """Log counts of rows without text, and rows that share an id. Row numbers only: no text, path or id in a log."""
    missing = values["text"].null_count
    # Of all rows it is no news: nobody asked for texts.
    if 0 < missing < len(rows):
        logger.info("%d of %d rows have no text and are image-only.", missing, len(rows))
    repeated_id = values["image_id"].to_pandas().duplicated(keep=False).to_numpy()
    if not repeated_id.any():
        return
    paths = pc.utf8_normalize(paths, "NFC")
    table = pa.table({"id": values["image_id"], "path": paths, "text": values["text"], "row": rows})
    frame = table.filter(pa.array(repeated_id)).to_pandas().fillna({"path": "", "text": ""})
    by_id = frame.groupby("id", sort=False)
    _warn_pairs(
        "share an image id but name different images", frame["row"], by_id["row"].transform("first"),
        frame["path"] != by_id["path"].transform("first"),
    )  # fmt: skip
    whole = ["id", "path", "text"]
    first = frame.groupby(whole, sort=False)["row"].transform("first")
    _warn_pairs("repeat the same image and text", frame["row"], first, frame.duplicated(whole))


def _warn_pairs(what: str, row, first, mask, limit: int = 5) -> None:
    if not mask.any():
        return
    pairs = [f"{a} and {b}" for a, b in zip(first[mask][:limit], row[mask][:limit], strict=True)]
    more = f", and {int(mask.sum()) - limit} more" if mask.sum() > limit else ""
    logger.warning("Data rows %s: %s%s (0-based, header not counted).", what, ", ".join(pairs), more)


def _with_paths(values: dict, paths: pa.ChunkedArray) -> datasets.Dataset:
    flat = paths.combine_chunks()
    empty = pa.nulls(len(flat), pa.binary())
    images = pa.StructArray.from_arrays([empty, flat], ["bytes", "path"], mask=flat.is_null())
    return _dataset({"image": images} | values)


def _original_name(images: datasets.Dataset, column: str) -> str:
    return next(name for name in images.column_names if name.strip() == column)


def _beside_images(values: dict, images: datasets.Dataset, column: str) -> datasets.Dataset:
    """The image column of a data set stays where it is, memory-mapped: the other columns are laid beside it."""
    original = _original_name(images, column)
    images = images.select_columns([original])
    images = images if original == "image" else images.rename_column(original, "image")
    images = images.cast_column("image", RadiographImage())
    rows = values["source_row"]
    table = pa.table(values)
    if len(rows) < len(images):
        table = table.take(pc.index_in(pa.array(range(len(images)), pa.int64()), rows))
    beside = datasets.concatenate_datasets([images, _dataset({key: table[key] for key in values})], axis=1)
    return (beside.select(rows.to_pylist()) if len(rows) < len(images) else beside).select_columns(list(COLUMNS))


def _with_reading(
    pairs: datasets.Dataset, stated: Reading | None, image_mode: str, voi_lut: bool, range_percentile: float
) -> datasets.Dataset:
    """The pairs with an image column that states how its files are read; the options come before what it stated."""
    if image_mode == "auto" and stated is None:
        from .colour import choose_mode

        image_mode = choose_mode(pairs)
    mode = stated.mode if image_mode == "auto" else image_mode
    voi_lut = voi_lut or (stated is not None and stated.voi_lut)
    range_percentile = range_percentile or (stated.range_percentile if stated is not None else 0.0)
    feature = RadiographImage(mode=mode, voi_lut=voi_lut, range_percentile=range_percentile)
    return pairs.cast_column("image", feature)


def _dataset(columns: dict) -> datasets.Dataset:
    kinds = {"image": RadiographImage(), "source_row": datasets.Value("int64")}
    features = datasets.Features({name: kinds.get(name, datasets.Value("string")) for name in columns})
    return datasets.Dataset(
        datasets.table.InMemoryTable(pa.table(columns)), info=datasets.DatasetInfo(features=features)
    )
