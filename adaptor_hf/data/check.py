"""What a data set's folder holds: counts of rows, files, faults, labels and patients, and images that do not open."""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import asdict
from typing import Any

import datasets
import numpy as np

from .burned_in import count_flags, describe_flags
from .catalog import get_dataset
from .colour import SAMPLE, ColourCounts, count_colour
from .public_datasets import load_with_report

_EXAMPLES = 10

# What `read_mask` tolerates and counts, and what is said of it.
_MASKS = {
    "resized": "masks brought to the size of their image",
    "grey": "masks with grey edges, cut at half of their maximum",
    "inverted": "masks that are inside nearly everywhere, so most likely inverted",
    "cut": "masks with a shape that leaves the image, cut there",
}


def check_dataset(
    name: str, root: str | os.PathLike, task: str | None = None, *, read: int | None = 1000, **options: Any
) -> dict[str, Any]:
    """
    Load a data set anew, tolerating every fault, and read images.

    Args:
        name, root, task, options: As for `load_public_dataset`.
        read: Number of rows whose image, and mask, is decoded, evenly spread; None reads all.

    Returns:
        The report of the load (`adaptor_hf.data.public_report.LoadReport`) and `rows_read`, `unreadable`,
        `unreadable_examples`, `masks_resized`, `masks_grey`,
        `masks_inverted` and `masks_cut` (masks read with reserve, see `read_mask`), `image_mode` (how images are
        read), `colour` (files in colour, grey and unreadable, of up to 200 looked at), `dicom` (what the rows' DICOM
        files say of text in the picture, see `count_flags`) and `ok`: whether faults stay under the share that loading
        tolerates.

    Raises:
        FileNotFoundError, ValueError: as `load_public_dataset`, but for the share of faults.
    """
    parts, report = load_with_report(name, root, task, max_fault_share=1.0, refresh=True, **options)
    total = sum(map(len, parts.values()))
    count = total if read is None else min(read, total)
    wanted = np.unique(np.linspace(0, total - 1, count).astype(int)) if count else np.zeros(0, int)
    unreadable, examples, start = 0, [], 0
    notes: Counter = Counter()
    flags: Counter = Counter()
    for part in parts.values():
        mine = wanted[(wanted >= start) & (wanted < start + len(part))] - start
        start += len(part)
        flags += count_flags(part, mine)
        columns = part.select_columns([column for column in ("image", "mask", "source") if column in part.column_names])
        if "mask" in columns.column_names:
            from .masks import RadiographMask, read_mask

            columns = columns.cast_column("mask", RadiographMask(decode=False))
        for place in mine:
            try:
                row = columns[int(place)]
                if row.get("mask") is not None:
                    read_mask(row["mask"], notes)
            except (OSError, ValueError) as error:
                unreadable += 1
                if len(examples) < _EXAMPLES:
                    known = "source" in columns.column_names
                    where = columns.select_columns(["source"])[int(place)]["source"] if known else f"row {place}"
                    examples.append(f"{where}: {error}")
    looked = datasets.concatenate_datasets([part.select_columns(["image"]) for part in parts.values()])
    share = (report["faults"] + unreadable) / max(1, report["rows"] + report["faults"])
    return report | {
        "rows_read": len(wanted),
        "unreadable": unreadable,
        "unreadable_examples": examples,
        **{f"masks_{kind}": notes[kind] for kind in _MASKS},
        "image_mode": looked.features["image"].mode,
        "colour": asdict(count_colour(looked, min(SAMPLE, len(wanted)))),
        "dicom": {name: flags[name] for name in ("files", "burned_in", "not_burned_in", "overlays")},
        "ok": share <= get_dataset(name).max_fault_share,
    }


def _describe_colour(counts: ColourCounts, mode: str) -> str:
    unused = ", and their colour is not used" if counts.mode == "RGB" and mode == "L" else ""
    return f"images are read as {mode}: {counts}{unused}"


def format_check(result: dict[str, Any]) -> str:
    """The result of `check_dataset` as lines to read."""
    lines = [
        f"{result['dataset']}, {result['task']}, split {result['split_scheme']} (hash {result['split_hash']})",
        f"rows in the tables: {result['table_rows']}",
        f"rows loaded: {result['rows']}, of {result['images']} images",
        f"image files found: {result['files_found']}",
        f"files missing: {result['missing_files']}, of zero bytes: {result['empty_files']}",
        f"faults in all: {result['faults']}",
        *(f"  {example}" for example in result["fault_examples"]),
        f"images and masks read: {result['rows_read']}, unreadable: {result['unreadable']}",
        *(f"  {example}" for example in result["unreadable_examples"]),
        *(f"{said}: {result[f'masks_{kind}']}" for kind, said in _MASKS.items() if result[f"masks_{kind}"]),
        _describe_colour(ColourCounts(**result["colour"]), result["image_mode"]),
        *([said] if (said := describe_flags(Counter(result["dicom"]))) else []),
        *(f"left out: {count} {rule}" for rule, count in result["dropped"].items()),
    ]
    for split, rows in result["rows_per_split"].items():
        patients = result["patients_per_split"].get(split)
        boxes = result["boxes"].get(split)
        line = f"{split}: {rows} rows"
        line += f", {patients} patients" if patients else ", patients unknown"
        lines.append(line + (f", {boxes} boxes" if boxes is not None else ""))
        for name, counts in result["labels"].get(split, {}).items():
            lines.append(f"  {name}: " + ", ".join(f"{count} {kind}" for kind, count in counts.items()))
    overlaps = ", ".join(f"{count} in {names}" for names, count in result["overlaps"].items())
    lines.append(f"patients in several splits: {overlaps or 'none found'}")
    if result["leak"]:
        lines.append(f"known leak of this split: {result['leak']}")
    lines += [f"note: {note}" for note in result["notes"]]
    lines.append("ok" if result["ok"] else "too many faults: loading stops unless max_fault_share is raised")
    return "\n".join(lines)


__all__ = ["check_dataset", "format_check"]
