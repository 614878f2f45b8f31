"""
`results.jsonl`: one line a metric of a run, with all that is needed to know where the number comes from.

A run is a folder with `predictions.parquet`, `results.jsonl` and the digests of both, `SHA256SUMS`. The results are
written last and whole, so a folder that has them is a finished run.
"""

import difflib
import functools
import hashlib
import json
import logging
import math
import os
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from ..file_records import differences, read_sums, write_sums
from ..files import file_sha256, parse_json, read_regular, write_aside
from .aligners import name_in_controls
from .notes import run_notes
from .predictions import PREDICTIONS_FILE, Predictions, repeated_images_of, save_predictions
from .scoring import score_predictions
from .tasks import TASKS

logger = logging.getLogger(__name__)

RETRIEVAL_FILE = "retrieval.json"
RESULTS_FILE = "results.jsonl"
IDENTITY = (
    "system", "module", "vision_tower", "text_tower", "checkpoint", "task", "dataset", "test_set", "split_hash",
    "protocol", "recipe", "input_size", "fraction", "seed", "positive_class", "targets_hash",
)  # fmt: skip
"""
Fields that tell one run from another; known before it starts, so that a sweep can skip it. `targets_hash` is a digest
of what is predicted: names and exclusiveness of the classes and every image's label (or mask, or report) of the parts
that the run reads, of the training part all rows.
"""
LATER = ("positive_class", "targets_hash")
"""Those that earlier versions did not have: where they are None, a run keeps the key that it had."""

OUTCOME = (
    "checkpoint_name",
    "n_train",
    "head_params",
    "trainable_params",
    "total_params",
    "lr",
    "C",
    "selected_on",
    "tower_saw_dataset",
    "checkpoint_check",
    "pretraining_overlap",
    "seen_patients",
    "seen_images",
    "commit",
)
REQUIRED = ("system", "task", "dataset", "split_hash", "protocol", "seed", "tower_saw_dataset")
SELECTED_ON = ("none", "train", "validation", "cross-validation", "external", "test")
"""
Rows that epoch, learning rate and thresholds were chosen on: `none` where nothing was chosen, `cross-validation` within
the training rows, `external` for another data set. None (null) where it is not known. `test` is refused by
[`write_run`]; a line of someone else that says so is read, and marked wherever it is shown.
"""
NUMBERS = ("value", "ci_lo", "ci_hi", "trivial_baseline")


@dataclass
class ResultFiles:
    """
    What result files hold.

    Args:
        lines (`list[dict]`): One a metric of a run; NaN where a number is unknown.
        faults (`list[str]`): What could not be used, with file and line. Files are never changed.
    """

    lines: list[dict[str, Any]] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)


def run_key(fields: Mapping[str, Any]) -> str:
    """
    16 hex digits that name a run: a digest of its `IDENTITY` fields. Fields that are absent count as None; a system
    counts by its name in `CONTROLS`, whatever its aligner, of which `checkpoint` tells.
    """
    check_fields(fields)
    identity = {name: fields.get(name) for name in IDENTITY if name not in LATER or fields.get(name) is not None}
    identity["system"] = name_in_controls(fields.get("module"), fields["system"])
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:16]


def check_fields(fields: Mapping[str, Any]) -> None:
    """
    Check the fields that describe a run.

    Raises:
        ValueError: a required field is missing, a name is unknown, or a field has no value that it can have.
    """
    known = (*IDENTITY, *OUTCOME)
    for name in fields:
        if name not in known:
            close = difflib.get_close_matches(name, known, 1)
            hint = f" Did you mean {close[0]!r}?" if close else f" Known: {', '.join(known)}."
            raise ValueError(f"A run has no field {name!r}.{hint}")
    missing = [name for name in REQUIRED if fields.get(name) is None]
    if missing:
        raise ValueError(f"A run needs {', '.join(missing)}.")
    readouts = list(dict.fromkeys(readout for task in TASKS.values() for readout in task.readouts))
    if fields["protocol"] not in readouts:
        raise ValueError(f"protocol is one of {', '.join(readouts)}, got {fields['protocol']!r}.")
    if fields["tower_saw_dataset"] not in ("yes", "no", "unknown"):
        raise ValueError(f"tower_saw_dataset is yes, no or unknown, got {fields['tower_saw_dataset']!r}.")
    if fields.get("pretraining_overlap", "unknown") not in ("found", "none", "unknown"):
        raise ValueError(f"pretraining_overlap is found, none or unknown, got {fields['pretraining_overlap']!r}.")
    if fields.get("checkpoint_check") not in (None, "verified", "unverified"):
        raise ValueError(f"checkpoint_check is verified, unverified or null, got {fields['checkpoint_check']!r}.")
    if fault := _selection_fault(fields.get("selected_on")):
        raise ValueError(fault)


def _selection_fault(value: Any) -> str | None:
    if value is None or value in SELECTED_ON:
        return None
    return f"selected_on is one of {', '.join(SELECTED_ON)}, or null where it is not known, got {value!r}."


def write_run(folder: str | os.PathLike, predictions: Predictions, fields: Mapping[str, Any]) -> list[dict[str, Any]]:
    """
    Score a finished run, once, and write its `predictions.parquet` and `results.jsonl`.

    Args:
        folder (`str` or `PathLike`): Of the run.
        predictions ([`Predictions`]): Of every test image.
        fields (`Mapping`): `IDENTITY` and `OUTCOME` fields, those of `REQUIRED` at least.

    Returns:
        `list[dict]`: The lines.

    Raises:
        FileExistsError: the run was scored before. A test split is scored once.
        ValueError: as of [`check_fields`], or something was chosen on the test split.
    """
    folder = Path(folder)
    key = run_key(fields)
    if fields.get("selected_on") == "test":
        raise ValueError("selected_on is the test split: nothing may be chosen there. Choose on validation.")
    path = folder / RESULTS_FILE
    if path.exists():
        raise FileExistsError(f"{path} exists: this run was scored before, and a test split is scored once.")
    scores = score_predictions(predictions)
    notes = run_notes(predictions, scores)
    sha256 = file_sha256(save_predictions(predictions, folder))
    described = {"pretraining_overlap": "unknown"} | fields
    described = {name: described.get(name) for name in (*IDENTITY, *OUTCOME)}
    lines = [
        {"run": key, "num_metrics": len(scores)}
        | described
        | {"n_test": len(predictions), "n_patients": predictions.num_patients}
        | {"interval_over": predictions.interval_over}
        | vars(score)
        | {
            "run_notes": notes,
            "predictions_sha256": sha256,
            "versions": package_versions(),
        }
        for score in scores
    ]
    data = _encode(lines)
    write_sums(folder, {PREDICTIONS_FILE: sha256, RESULTS_FILE: hashlib.sha256(data).hexdigest()})
    write_aside(path, data)
    return lines


def changed_since_written(folder: str | os.PathLike) -> list[str]:
    """A sentence for each file of a run that is not the one that was written; none of runs of earlier versions."""
    try:
        return differences(Path(folder), read_sums(folder) or {}, "this run's SHA256SUMS")
    except ValueError as error:
        return [str(error)]


def read_results(path: str | os.PathLike) -> ResultFiles:
    """
    Lines of a result file, or of all `results.jsonl` under a folder. What cannot be used is reported, and logged.

    Raises:
        FileNotFoundError: no such path, or no result file under it.
    """
    path = Path(path)
    files = sorted(path.rglob(RESULTS_FILE)) if path.is_dir() else [path]
    if not files or not files[0].is_file():
        raise FileNotFoundError(f"No {RESULTS_FILE} at {path}.")
    found = ResultFiles()
    seen: dict[tuple[str, str], dict] = {}
    for file in files:
        for number, data in enumerate(read_regular(file).split(b"\n"), start=1):
            if not data.strip():
                continue
            line = _decode(data)
            if isinstance(line, str):
                found.faults.append(f"{file}, line {number}: {line}")
                continue
            before = seen.setdefault((line["run"], line["metric"]), line)
            if before is line:
                line["folder"] = str(file.parent)
                found.lines.append(line)
            elif not _same(before["value"], line["value"]):
                found.faults.append(
                    f"{file}, line {number}: run {line['run']} has {line['metric']} {before['value']:g} before and "
                    f"{line['value']:g} here. A run is scored once; the first is kept."
                )
    for fault in found.faults:
        logger.warning(fault)
    return found


def read_sound_results(path: str | os.PathLike) -> ResultFiles:
    """
    As `read_results`, without the runs whose predictions hold an image more than once, and those whose files are not
    the ones that were written: each of them is a fault. Runs whose predictions are elsewhere are taken as they are.
    """
    found = read_results(path)
    wrong = {}
    for folder in dict.fromkeys(line["folder"] for line in found.lines):
        repeated = repeated_images_of(folder)
        faults = [f"{Path(folder) / PREDICTIONS_FILE}: {repeated}"] if repeated else []
        faults += [
            f"{folder}: {fault} The run is left out; make it again, or copy its folder back."
            for fault in changed_since_written(folder)
            if (Path(folder) / PREDICTIONS_FILE).is_file() or not fault.startswith(PREDICTIONS_FILE)
        ]
        for fault in faults:
            wrong[folder] = fault
            found.faults.append(fault)
            logger.warning(fault)
    found.lines = [line for line in found.lines if line["folder"] not in wrong]
    return found


def finished_runs(lines: Iterable[Mapping[str, Any]]) -> set[str]:
    """Keys of runs of which every metric is there; one that a crash cut short is not among them."""
    counts: dict[str, int] = {}
    announced: dict[str, int] = {}
    for line in lines:
        counts[line["run"]] = counts.get(line["run"], 0) + 1
        announced[line["run"]] = line["num_metrics"]
    return {key for key, count in counts.items() if count >= announced[key]}


@functools.cache
def package_versions() -> Mapping[str, str]:
    """Versions that a downstream result depends on. Read once: each line of each run asks."""
    found = {}
    for name in ("adaptor-hf", "torch", "transformers", "timm", "scikit-learn", "numpy"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found


def _encode(lines: Iterable[Mapping[str, Any]]) -> bytes:
    """JSON has no NaN: an unknown number is null."""
    plain = [
        {name: None if isinstance(value, float) and not math.isfinite(value) else value for name, value in line.items()}
        for line in lines
    ]
    return "".join(json.dumps(line, allow_nan=False, ensure_ascii=False) + "\n" for line in plain).encode()


def _decode(data: bytes) -> dict[str, Any] | str:
    """One line, or what is wrong with it."""
    try:
        line = parse_json(data)
    except (ValueError, RecursionError) as error:
        return f"no JSON ({error}): cut short by a crash, or damaged"
    if not isinstance(line, dict):
        return "no JSON object"
    missing = [name for name in ("run", "num_metrics", "metric", *NUMBERS, *REQUIRED) if name not in line]
    if missing:
        return f"no {', '.join(missing)}"
    for name in ("run", "metric", "system", "task", "dataset", "split_hash", "protocol"):
        if not isinstance(line[name], str):
            return f"{name} is {repr(line[name])[:40]}, expected text"
    if isinstance(line["num_metrics"], bool) or not isinstance(line["num_metrics"], int):
        return f"num_metrics is {repr(line['num_metrics'])[:40]}, expected a whole number"
    for name in NUMBERS:
        if line[name] is None:
            line[name] = float("nan")
        elif isinstance(line[name], bool) or not isinstance(line[name], int | float):
            return f"{name} is {repr(line[name])[:40]}, expected a number or null"
        elif abs(line[name]) > sys.float_info.max:
            return f"{name} is no finite number"
    return _selection_fault(line.get("selected_on")) or line


def _same(first: float, second: float) -> bool:
    return first == second or (math.isnan(first) and math.isnan(second))


__all__ = [
    "IDENTITY",
    "OUTCOME",
    "PREDICTIONS_FILE",
    "REQUIRED",
    "RESULTS_FILE",
    "RETRIEVAL_FILE",
    "SELECTED_ON",
    "ResultFiles",
    "changed_since_written",
    "check_fields",
    "finished_runs",
    "package_versions",
    "read_results",
    "read_sound_results",
    "run_key",
    "write_run",
]
