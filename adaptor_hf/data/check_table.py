"""What one's own table holds, before a run: rows, patients, splits, ids in several spellings, files, copies of images.

Counts and row numbers only: no id, path or text is in the result, so that it may be shown under private mode too.
"""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from .content_keys import IMAGE_BLOCK_ROWS, KEY_DTYPE, blocks, content_key, digest, image_reference
from .duplicates import copies_across, describe_copies
from .ids import canonical_id, certain_message, find_spellings, loose_message, scientific_message
from .image_folders import copies_message, describe_folder
from .metadata_folders import count_listed
from .split_rule import SplitRule
from .splits import SPLITS
from .table_files import Source, blank_rows, read_source

if TYPE_CHECKING:
    from datasets import Dataset

_EXAMPLES = 5
_ID_COLUMNS = ("patient_id", "study_id", "image_id")

# As `build_cache`: over this share of rows without their image, a build stops.
_MAX_FAULT_SHARE = 0.05


def check_table(
    table: str | os.PathLike,
    *,
    ids: str | None = None,
    split_alias: Sequence[str] = (),
    rule: SplitRule | None = None,
    near: bool = False,
    **options: Any,
) -> dict[str, Any]:
    """
    Read a table as the scripts do and report what would stop them or mislead.

    Args:
        table: What `load_pairs` takes.
        ids: "exact" or "canonical", as the scripts would get it; None reports what they would stop at.
        split_alias: Renames of splits, as in the scripts.
        rule: How a table without a split would be split; None is the scripts' default.
        near: Also look for near copies (`adaptor_hf.data.near_copies`); reads every image.
        options: More of `load_pairs`.

    Returns:
        Counts, by name; `stops`, messages of what stops a script; `warnings`, of what does not; `ok`, no stops.

    Raises:
        FileNotFoundError, ValueError: The table cannot be read at all; see `load_pairs`.
    """
    from .tables import load_pairs

    form = {name: options.pop(name, None) for name in ("sep", "encoding")}
    data = read_source(table, options.get("image_column", "image"), **form)
    stops: list[str] = []
    warnings: list[str] = []
    found = _folder_of(data, options, stops, warnings)
    pairs = load_pairs(data, ids=ids, _checked=False, **options)
    rows = pairs["source_row"][:]
    result: dict[str, Any] = found | {
        "rows": len(pairs), "blank_rows": int(blank_rows(data).sum()),
        "ids": _check_ids(pairs, rows, ids, stops, warnings),
    }  # fmt: skip
    if not stops and ids == "canonical":
        # As the scripts have them: ids in one spelling.
        pairs = load_pairs(data, ids=ids, **options)
    patients = pairs["patient_id"][:]
    named = [None if patient is None else patient if ids == "exact" else canonical_id(patient) for patient in patients]
    result["patients"] = len(set(named) - {None})
    result["rows_without_patient"] = named.count(None)
    if result["rows_without_patient"]:
        warnings.append(
            f"{result['rows_without_patient']} rows have no patient id: one patient may be in several splits. Name the "
            "column with --patient_column if there is one."
        )
    result["rows_without_text"] = pairs["text"][:].count(None)
    rule = replace(rule or SplitRule(), ids=ids or "canonical")
    splits = _check_splits(pairs, named, list(split_alias), rule, result, stops)
    _check_repeats(pairs, rows, result, warnings)
    digests, missing = _digests(pairs)
    result["images_missing"] = len(missing)
    if missing:
        faults = f"{len(missing)} images are missing or cannot be read: {_rows(rows, missing)}"
        over = len(missing) > _MAX_FAULT_SHARE * len(pairs)
        (stops if over else warnings).append(f"{faults}." + (" A build stops over 5 %." if over else ""))
    _check_copies(digests, splits, named, rows, result, stops, warnings)
    if near:
        _check_near(pairs, digests, splits, named, rows, result, warnings)
    return result | {"stops": stops, "warnings": warnings, "ok": not stops}


def _folder_of(data: Source, options: dict[str, Any], stops: list[str], warnings: list[str]) -> dict[str, Any]:
    """Counts of a folder of class folders, or of how a folder and its metadata agree; {} of any other table. Of class
    folders no reports are asked for, so `options` change."""
    if data.folder is None:
        image_column = options.get("image_column", "image")
        names = [column.strip() for column in data.table.column_names]
        image_column = "file_name" if image_column not in names else image_column
        if image_column not in names or options.get("image_root") is not None or data.described is None:
            return {}
        return {"metadata": count_listed(data.described, data.table, image_column)}
    options.setdefault("text_column", None)
    warnings += data.folder.warnings
    if copies := data.folder.copies():
        stops.append(copies_message(copies))
    return {"folder": data.folder.counts()}


def format_table_check(result: dict[str, Any]) -> str:
    """The result of `check_table` as lines to read."""
    blank = f" (and {result['blank_rows']} blank ones, left out)" if result["blank_rows"] else ""
    lines = [
        *([describe_folder(result["folder"])] if "folder" in result else []),
        *(f"folder: {count} {kind.replace('_', ' ')}" for kind, count in result.get("metadata", {}).items()),
        f"rows: {result['rows']}{blank}, without text {result['rows_without_text']}, "
        f"without image {result['images_missing']}",
        f"patients: {result['patients']}, rows without patient {result['rows_without_patient']}",
    ]
    for name, counts in result["splits"].items():
        lines.append(f"{name}: {counts['rows']} rows, {counts['patients']} patients")
    for column, counts in result["ids"].items():
        said = ", ".join(f"{count} {kind.replace('_', ' ')}" for kind, count in counts.items())
        lines.append(f"{column}: {said}")
    copies = (
        f"{result['copies_across_splits']} images across splits, {result['copies_across_patients']} across patients"
    )
    lines.append(f"repeated image ids: {result['repeated_ids']} rows; byte copies: {copies}")
    if "near_copies" in result:
        counts = ", ".join(f"{count} {kind.replace('_', ' ')}" for kind, count in result["near_copies"].items())
        lines.append(f"near copies: {counts}")
    lines += [f"warning: {message}" for message in result["warnings"]]
    lines += [f"stop: {message}" for message in result["stops"]]
    lines.append("ok" if result["ok"] else f"a script would stop at {len(result['stops'])} of these")
    return "\n".join(lines)


def _check_ids(
    pairs: Dataset, rows: list[int], ids: str | None, stops: list[str], warnings: list[str]
) -> dict[str, dict[str, int]]:
    """Counts of ids in several spellings by column. Image ids that are paths have one spelling already."""
    patients, studies = pairs["patient_id"][:], pairs["study_id"][:]
    decisive = {
        "patient_id": True,
        "study_id": None in patients,
        "image_id": any(p is None and s is None for p, s in zip(patients, studies, strict=True)),
    }
    found = {}
    for column in _ID_COLUMNS:
        values = pairs[column][:]
        if column == "image_id":
            values = _typed(values, pairs)
        if all(value is None for value in values):
            continue
        report = find_spellings(values, rows, loose=column == "patient_id")
        found[column] = {
            "distinct": len(set(values) - {None}),
            "in_several_spellings": len(report.certain),
            "alike_but_for_punctuation": len(report.loose),
            "cells_in_scientific_notation": len(report.scientific),
        }
        if report.certain and ids is None:
            (stops if decisive[column] else warnings).append(certain_message(report, column))
        if report.loose:
            warnings.append(loose_message(report, column))
        if report.scientific:
            stops.append(scientific_message(report, column))
    return found


def _typed(image_ids: list[str], pairs: Dataset) -> list[str | None]:
    """Image ids without those that are the image's path: two paths are two files, whatever they differ by."""
    column = pairs.select_columns(["image"]).with_format("arrow")[:]["image"].to_pylist()
    paths = [value["path"] or "" if isinstance(value, dict) else "" for value in column]
    return [
        None if unicodedata.normalize("NFC", path).endswith(name) else name
        for name, path in zip(image_ids, paths, strict=True)
    ]


def _check_splits(
    pairs: Dataset,
    patients: list[str | None],
    aliases: list[str],
    rule: SplitRule,
    result: dict[str, Any],
    stops: list[str],
) -> list[str]:
    """Splits by the scripts' rule, and what is wrong with those that are given."""
    result["splits_given"] = None not in pairs.unique("split")
    try:
        pairs, _ = rule.apply(pairs, aliases)
    except ValueError as error:
        stops.append(str(error))
    splits = [split or "none" for split in pairs["split"][:]]
    result["splits"] = {}
    for name in (*SPLITS, "none"):
        members = [patient for patient, split in zip(patients, splits, strict=True) if split == name]
        if members:
            result["splits"][name] = {"rows": len(members), "patients": len(set(members) - {None})}
    return splits


def _check_repeats(pairs: Dataset, rows: list[int], result: dict[str, Any], warnings: list[str]) -> None:
    seen: dict[str, int] = {}
    repeats = []
    for place, name in enumerate(pairs["image_id"][:]):
        if seen.setdefault(name, place) != place:
            repeats.append((seen[name], place))
    result["repeated_ids"] = len(repeats)
    if repeats:
        shown = ", ".join(f"{rows[a]} and {rows[b]}" for a, b in repeats[:_EXAMPLES])
        more = f", and {len(repeats) - _EXAMPLES} more" if len(repeats) > _EXAMPLES else ""
        warnings.append(f"{len(repeats)} rows repeat the image id of an earlier one: data rows {shown}{more}.")


def _digests(pairs: Dataset) -> tuple[np.ndarray, list[int]]:
    """(n,) digests of the images' contents, empty where there is none, and the rows whose image cannot be read."""
    digests, missing = np.zeros(len(pairs), KEY_DTYPE), []
    of_path: dict[str, bytes] = {}
    for start, values in blocks(pairs.with_format("arrow"), "image", IMAGE_BLOCK_ROWS):
        for place, value in enumerate(values, start):
            path, data = image_reference(value)
            try:
                if data is not None:
                    digests[place] = digest(data)
                elif path:
                    of_path[path] = of_path.get(path) or content_key(path)
                    digests[place] = of_path[path]
                else:
                    missing.append(place)
            except OSError:
                missing.append(place)
    return digests, missing


def _check_copies(
    digests: np.ndarray,
    splits: list[str],
    patients: list[str | None],
    rows: list[int],
    result: dict[str, Any],
    stops: list[str],
    warnings: list[str],
) -> None:
    copies = copies_across(digests, splits)
    result["copies_across_splits"] = copies.contents
    if copies.contents:
        stops.append(
            f"{describe_copies(copies, rows, splits)} Give the copies one patient id, correct the split, or pass "
            "--duplicates drop to leave them out of training."
        )
    known = np.array([patient is not None for patient in patients])
    shared = copies_across(np.where(known, digests, b""), [patient or "" for patient in patients])
    result["copies_across_patients"] = shared.contents
    if shared.contents:
        shown = ", ".join(f"{rows[a]} and {rows[b]}" for a, b in shared.examples)
        warnings.append(
            f"{shared.contents} images are of several patients as byte copies, such as data rows {shown}: these may be "
            "one patient under several ids."
        )


def _check_near(
    pairs: Dataset,
    digests: np.ndarray,
    splits: list[str],
    patients: list[str | None],
    rows: list[int],
    result: dict[str, Any],
    warnings: list[str],
) -> None:
    from .images import read_image
    from .near_copies import near_copies, perceptual_hashes

    # Of byte copies the first stands for all: they are counted already.
    _, first = np.unique(digests, return_index=True)
    wanted = np.sort(first[digests[first] != digests.dtype.type()])
    column, readable = pairs.select_columns(["image"]).with_format("arrow"), []

    def images():
        for place in wanted:
            path, data = image_reference(column[int(place)]["image"][0].as_py())
            try:
                image = read_image(data if data is not None else path, min_size=256)
            except (OSError, ValueError):
                continue
            readable.append(int(place))
            yield image

    hashes = perceptual_hashes(images())
    found = [(readable[a], readable[b]) for a, b, _ in near_copies(hashes)]
    across = [(a, b) for a, b in found if splits[a] != splits[b]]
    result["near_copies"] = {
        "pairs": len(found),
        "across_splits": len(across),
        "across_patients": sum(patients[a] != patients[b] for a, b in found),
        "images_unreadable": len(wanted) - len(readable),
    }
    if across:
        shown = ", ".join(f"{rows[a]} ({splits[a]}) and {rows[b]} ({splits[b]})" for a, b in across[:_EXAMPLES])
        more = f", and {len(across) - _EXAMPLES} more" if len(across) > _EXAMPLES else ""
        warnings.append(
            f"{len(across)} pairs of images across splits are nearly copies: data rows {shown}{more}. Look at them; "
            "give those that are copies one patient id, or take one of each pair out."
        )


def _rows(rows: list[int], places: list[int]) -> str:
    more = f" and {len(places) - _EXAMPLES} more" if len(places) > _EXAMPLES else ""
    return (
        f"data rows {', '.join(str(rows[place]) for place in places[:_EXAMPLES])}{more} (0-based, header not counted)"
    )


__all__ = ["check_table", "format_table_check"]
