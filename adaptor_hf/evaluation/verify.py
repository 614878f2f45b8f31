"""`verify RUN`: every number of a run, computed again from its predictions and compared with what it wrote."""

import math
import os
from pathlib import Path
from typing import Any

from ..file_records import READ_ERRORS
from ..files import file_sha256
from .baselines import baselines_of
from .notes import run_notes
from .predictions import PREDICTIONS_FILE, load_predictions
from .results import IDENTITY, NUMBERS, OUTCOME, RESULTS_FILE, changed_since_written, read_results, run_key
from .scoring import score_predictions

# Sums in another order, on another machine, differ in the last digits.
TOLERANCE = 1e-7


def verify_run(folder: str | os.PathLike) -> list[str]:
    """
    Differences between a run's result lines and its predictions; none means that every number follows from them.

    Args:
        folder (`str` or `PathLike`): With `predictions.parquet` and `results.jsonl`.

    Returns:
        `list[str]`: One sentence a difference.

    Raises:
        FileNotFoundError: one of the files is missing.
        ValueError: the predictions cannot be read.
    """
    folder = Path(folder)
    results = read_results(folder / RESULTS_FILE)
    predictions = load_predictions(folder)
    found = [*changed_since_written(folder), *results.faults]
    scored = score_predictions(predictions)
    notes = run_notes(predictions, scored)
    scores = {score.metric: vars(score) for score in scored}
    rows = {"n_test": len(predictions), "n_patients": predictions.num_patients}
    sha256 = file_sha256(folder / PREDICTIONS_FILE)
    if any(line.get("predictions_sha256") != sha256 for line in results.lines):
        found.append(f"{PREDICTIONS_FILE} is not the file that was scored: its SHA-256 is another one.")
    for key, lines in _by_run(results.lines).items():
        missing = sorted(set(scores) - {line["metric"] for line in lines})
        if missing:
            found.append(f"run {key}: no line for {', '.join(missing)}.")
        for line in lines:
            try:
                found += _compare(line, scores.get(line["metric"]), rows)
            except READ_ERRORS as error:
                found.append(f"run {key}, {line['metric']}: cannot be compared: {type(error).__name__}: {error}")
        # Lines of a version before 0.4 have neither notes of a run nor several baselines.
        if any(line.get("run_notes", notes) != notes for line in lines):
            found.append(f"run {key}: its notes are not those that the predictions give.")
    return found


def verify_tree(path: str | os.PathLike) -> dict[str, list[str]]:
    """
    [`verify_run`] of every run under a folder, by the run's folder; a run that cannot be read has that as difference.

    Raises:
        FileNotFoundError: there is no result file.
    """
    folders = sorted(file.parent for file in Path(path).rglob(RESULTS_FILE))
    if not folders:
        raise FileNotFoundError(f"No {RESULTS_FILE} at {path}.")
    found = {}
    for folder in folders:
        try:
            found[str(folder)] = verify_run(folder)
        except READ_ERRORS as error:
            found[str(folder)] = [f"cannot be compared: {type(error).__name__}: {error}"]
    return found


def _by_run(lines: list[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    runs: dict[str, list] = {}
    for line in lines:
        runs.setdefault(line["run"], []).append(line)
    return runs


def _compare(line: dict[str, Any], score: dict[str, Any] | None, rows: dict[str, int]) -> list[str]:
    where = f"run {line['run']}, {line['metric']}"
    if score is None:
        return [f"{where}: the predictions give no such metric."]
    found = [
        f"{where}: {name} is {line[name]:.6g}, the predictions give {score[name]:.6g}."
        for name in NUMBERS
        if not _close(line[name], score[name])
    ]
    if "trivial_baselines" in line:
        found += _compare_baselines(where, baselines_of(line), score["trivial_baselines"])
    found += [
        f"{where}: {name} is {line.get(name)}, the predictions have {value}."
        for name, value in rows.items()
        if line.get(name) != value
    ]
    try:
        key = run_key({name: line.get(name) for name in (*IDENTITY, *OUTCOME)})
    except ValueError as error:
        return [*found, f"{where}: {error}"]
    if key != line["run"]:
        found.append(f"{where}: the fields of the run give the key {key}; one of them was changed.")
    return found


def _close(first: float, second: float) -> bool:
    both_unknown = math.isnan(first) and math.isnan(second)
    return both_unknown or math.isclose(first, second, rel_tol=TOLERANCE, abs_tol=TOLERANCE)


def _compare_baselines(where: str, written: dict, computed: dict) -> list[str]:
    if written.keys() != computed.keys():
        return [f"{where}: the trivial baselines are {', '.join(written) or 'none'}, expected {', '.join(computed)}."]
    return [
        f"{where}: {part} of the baseline {name!r} is {written[name].get(part)}, the predictions give {value:.6g}."
        for name, numbers in computed.items()
        for part, value in numbers.items()
        if written[name].get(part) is None or not _close(written[name][part], value)
    ]


__all__ = ["verify_run", "verify_tree"]
