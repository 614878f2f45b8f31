"""`index_dicom`: a PACS export and a table of reports become one table of pairs."""

from __future__ import annotations

import logging
import multiprocessing
import os
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...folder_lock import only_writer
from ...privacy.mode import check_private_mode
from ...privacy.vocabulary import listed_word
from ...progress import progress
from ..dicom_headers import Fault, HeaderError, header_facts, tag_of
from ..splits import DEFAULT_SEED
from .outputs import write_outputs
from .pair_table import build_pairs
from .reports_table import ReportTable, read_report_table
from .rules import MODALITIES, check_keep
from .state import HeaderState
from .walk import WalkedFile, referenced_files, walk

if TYPE_CHECKING:
    import pyarrow as pa

logger = logging.getLogger(__name__)

STATE_FILE = "headers.jsonl"
FORMATS = ("csv", "parquet")
_CHUNK = 128


@dataclass
class DicomIndex:
    """What `index_dicom` found."""

    table: pa.Table
    """The pairs; columns as `index_dicom` says."""
    report: dict[str, Any]
    """Counts; without path, id or text."""
    excluded: list[tuple[str, str]] = field(default_factory=list)
    """Name (relative to the root; in private mode its keyed hash) and rule or fault of each object left out."""
    found: list[str] = field(default_factory=list)
    """Of each of `excluded` what was found: of a fault which element, what it has and what was expected, if known."""


def index_dicom(
    root: str | os.PathLike,
    reports: str | os.PathLike | None = None,
    on: str = "AccessionNumber",
    *,
    to: str | os.PathLike | None = None,
    reports_on: str | None = None,
    text_column: str | Sequence[str] = "text",
    repeated: str = "join",
    encoding: str | None = None,
    delimiter: str | None = None,
    modalities: Sequence[str] = MODALITIES,
    keep: Sequence[str] = (),
    validation_fraction: float = 0.1,
    test_fraction: float = 0.1,
    seed: int = DEFAULT_SEED,
    num_proc: int | None = None,
    format: str = "csv",
    take_over: bool = False,
) -> DicomIndex:
    """
    Find the radiographs of a PACS export, and join them with a table of reports. Headers are read, no pixels.

    Files are found whatever their names, also inside zips, which are not unpacked. What is no radiograph of a wanted
    modality is left out by a named rule (`adaptor_hf.data.pacs.rules`); what cannot be read is counted by the kind of
    fault (`adaptor_hf.data.dicom_headers.FAULTS`) and stops nothing. In private mode ids are keyed hashes.

    The table names DICOM files: `read_image` applies rescale and inversion when a row is read, and the display window
    where the table is loaded with `load_pairs(..., voi_lut=True)`.

    Args:
        root: Folder of the export, or a DICOMDIR: then only the files it names.
        reports: Table of reports with a header line, or None.
        on: Keyword of the DICOM element that names a report, and the column of the table with the same values.
        to: Folder for `pairs.csv` (or .parquet), `index_report.json`, `excluded.csv` and `headers.jsonl`, by which the
            next call reads only headers that are new or changed, and a killed one goes on. None writes nothing.
        reports_on: The column's name, if it is not `on`.
        text_column, repeated, encoding, delimiter: As for `read_report_table`.
        modalities: Wanted ones, such as ("CR", "DX", "MG").
        keep: Rules that are switched off, of `adaptor_hf.data.pacs.rules.KEEPABLE`.
        validation_fraction, test_fraction, seed: As for `assign_splits`: the table has a split, by patient.
        num_proc: Processes that read headers; None takes as many as this one may use processors, 8 at most.
        format: "csv" or "parquet".
        take_over: Write to `to` although an index on another machine left its mark there: it has ended.

    Returns:
        `DicomIndex`. Columns of the table: `image` (absolute path, or member of a zip), `image_id` (SOPInstanceUID),
        `patient_id`, `study_id` (StudyInstanceUID), `view`, `sex` (F, M, O), `age` (years), `text` (None without
        report), `split`, `modality`, `body_part`, `burned_in` (YES, NO), `overlays` (number of overlay planes). All but
        `age` (float64) and `overlays` (int64) are text; None where unknown.

    Raises:
        BlockingIOError: Another index writes to `to`.
        FileNotFoundError: No such root or table of reports.
        ValueError: An option or column is unknown, the table of reports cannot be read, or no image is left; the
            message then has the counts.
    """
    check_private_mode()
    root = Path(os.path.abspath(os.path.expanduser(root)))
    tag_of(on)
    check_keep(keep)
    if format not in FORMATS:
        raise ValueError(f"format={format!r} is unknown. Choose one of: {', '.join(FORMATS)}.")
    if not root.exists():
        raise FileNotFoundError(f"The root {root} does not exist. Expected the folder of the export, or a DICOMDIR.")
    table = None
    if reports is not None:
        table = read_report_table(reports, reports_on or on, text_column, repeated, encoding, delimiter)
    folder = None if to is None else Path(to)
    shares = {"validation_fraction": validation_fraction, "test_fraction": test_fraction, "seed": seed}
    settings = {"on": on, "modalities": list(modalities), "keep": list(keep), "repeated": repeated, **shares}
    if folder is None:
        return _index(root, table, None, settings, shares, num_proc)
    with only_writer(folder, "index", what="index", option="--to", take_over=take_over):
        index = _index(root, table, folder, settings, shares, num_proc)
        write_outputs(index, folder, format)
    return index


def _index(
    root: Path,
    table: ReportTable | None,
    folder: Path | None,
    settings: dict[str, Any],
    shares: dict[str, Any],
    num_proc: int | None,
) -> DicomIndex:
    on = settings["on"]
    found, directory = _find(root, folder)
    num_proc = num_proc or min(8, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count())
    state = HeaderState(folder and folder / STATE_FILE, on)
    try:
        results, known = read_headers(found, on, state, num_proc)
    finally:
        state.close()
    listed = _compare_dicomdirs(root, found, results, directory)
    rules = settings["modalities"], settings["keep"]
    pairs, report, excluded, details = build_pairs(found, results, table, *rules, shares)
    settings = settings | {"modalities": [listed_word(name, "modality") for name in settings["modalities"]]}
    report = {"settings": settings, "headers_from_an_earlier_call": known, **report, "dicomdir": listed}
    return DicomIndex(pairs, report, excluded, details)


def read_headers(
    found: Sequence[WalkedFile], on: str, state: HeaderState, num_proc: int
) -> tuple[list[dict[str, Any] | Fault], int]:
    """
    Facts or fault of each object, in order, and how many of them were known from an earlier call.

    A bar, or lines in a log, shows headers a second.
    """
    results: list = [Fault(item.fault) if item.fault else state.get(item.name, item.state) for item in found]
    todo = [place for place, result in enumerate(results) if result is None]
    known = sum(item.fault is None for item in found) - len(todo)
    chunks = [todo[start : start + _CHUNK] for start in range(0, len(todo), _CHUNK)]
    work = [[(found[place].path, found[place].size) for place in chunk] for chunk in chunks]
    workers = max(1, min(num_proc, len(chunks)))
    title = f"Headers ({workers} worker{'s' * (workers > 1)})"
    with progress(len(found), title, unit="headers", initial=len(found) - len(todo)) as bar:
        for chunk, read in zip(chunks, _mapped(partial(_read_chunk, on=on), work, workers), strict=True):
            rows = [(found[p].name, found[p].state, result) for p, result in zip(chunk, read, strict=True)]
            for place, result in zip(chunk, state.add(rows), strict=True):
                results[place] = result
            bar.update(len(chunk))
    return results, known


def _mapped(function, work: list, workers: int) -> Iterator[list]:
    if workers == 1:
        yield from map(function, work)
        return
    import pydicom.filereader  # noqa: F401  (once, for all workers)

    # Where fork is the custom, the user's script needs no main guard. The children open files and parse headers only.
    context = multiprocessing.get_context("fork" if sys.platform == "linux" else None)
    executor = ProcessPoolExecutor(workers, mp_context=context)
    try:
        yield from executor.map(function, work)
    finally:
        executor.shutdown(cancel_futures=True)


def _read_chunk(chunk: list[tuple[str, int]], on: str) -> list[dict[str, Any] | Fault]:
    results: list[dict[str, Any] | Fault] = []
    for path, size in chunk:
        try:
            results.append(header_facts(path, size, on))
        except HeaderError as error:
            results.append(error.fault)
    return results


def _find(root: Path, skip: Path | None) -> tuple[list[WalkedFile], dict[str, int] | None]:
    """What is there; of a DICOMDIR what it names, with counts."""
    if root.is_dir():
        return list(walk(root, skip)), None
    names = {name.casefold() for name in referenced_files(root)}
    # CDs are mounted in capitals or not, whatever the DICOMDIR says.
    found = [item for item in walk(root.parent, skip) if item.name.casefold() in names]
    return found, {"files": 1, "references": len(names), "missing": len(names) - len(found), "unreadable": 0}


def _compare_dicomdirs(
    root: Path, found: Sequence[WalkedFile], results: Sequence, counts: dict[str, int] | None
) -> dict[str, int]:
    """How many files the DICOMDIRs of the tree name, and how many of them are not there."""
    if counts is not None:
        return counts
    counts = Counter(files=0, references=0, missing=0, unreadable=0)
    there = None
    for item, result in zip(found, results, strict=True):
        if isinstance(result, Fault) or not result["directory"] or "::" in item.name:
            continue
        there = there or {other.name.casefold() for other in found}
        counts["files"] += 1
        try:
            names = referenced_files(item.path)
        except (OSError, ValueError):
            counts["unreadable"] += 1
            continue
        prefix = item.name.rpartition("/")[0]
        counts["references"] += len(names)
        counts["missing"] += sum(f"{prefix}/{name}".lstrip("/").casefold() not in there for name in names)
    return dict(counts)


__all__ = ["FORMATS", "STATE_FILE", "DicomIndex", "index_dicom", "read_headers"]
