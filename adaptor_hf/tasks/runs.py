"""A series of runs: those that are finished are read, the others are made, and what could not be made is said."""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..folder_lock import only_writer

if TYPE_CHECKING:
    import pandas as pd

logger = logging.getLogger(__name__)


@dataclass
class RunList:
    """
    What a series of runs did.

    Args:
        lines (`list[dict]`): Result lines of all runs, those that were there before among them.
        skipped (`int`): Runs that were finished before.
        failed (`list[str]`): Runs that could not be made, and why.
    """

    lines: list[dict[str, Any]] = field(default_factory=list)
    skipped: int = 0
    failed: list[str] = field(default_factory=list)

    def add(self, other: RunList) -> None:
        """Also what another series did."""
        self.lines += other.lines
        self.skipped += other.skipped
        self.failed += other.failed


def subgroup_columns(rows: pd.DataFrame) -> dict[str, list]:
    """Columns of a part's rows that predictions keep for subgroups: those with a value anywhere, but ids."""
    columns = {name: rows[name].tolist() for name in rows if name not in ("image_id", "patient_id")}
    return {name: values for name, values in columns.items() if any(value is not None for value in values)}


def finished_lines(folder: Path) -> list[dict[str, Any]] | None:
    """
    Result lines of a finished run; None where it is to be made. A damaged result file is set aside under another name,
    said in the log, and its run is made again.
    """
    from ..evaluation.results import RESULTS_FILE

    path = folder / RESULTS_FILE
    if not path.is_file():
        return None
    lines, changed = _lines_and_changes(folder)
    if lines is not None:
        return lines
    aside = path.with_name(f"{RESULTS_FILE}.damaged")
    os.replace(path, aside)
    why = f" ({' '.join(changed)})" if changed else ""
    logger.warning("%s is damaged%s: it is kept as %s, and the run is made again.", path, why, aside.name)
    return None


def _lines_and_changes(folder: Path) -> tuple[list[dict[str, Any]] | None, list[str]]:
    """Lines of a finished run as it was written, or None, and what was changed since."""
    from ..evaluation.results import RESULTS_FILE, changed_since_written, finished_runs, read_results

    path = folder / RESULTS_FILE
    if not path.is_file():
        return None, []
    lines, changed = read_results(path).lines, changed_since_written(folder)
    return (lines if finished_runs(lines) and not changed else None), changed


@contextmanager
def runs_to_make(found: RunList, folders: Mapping[str, Path]) -> Iterator[list[str]]:
    """
    Names of the runs that are not finished, for the block to make. Another process that is to make one of them too, in
    this folder, waits until the block ends and then reads what it made. Lines of finished runs go to `found`.

    Args:
        folders (`Mapping[str, Path]`): Of each run, by name.
    """
    with ExitStack() as locks:
        # Sorted: two processes that waited for each other would wait for ever. Nothing is moved before they are ours.
        for folder in sorted(folder for folder in folders.values() if _lines_and_changes(folder)[0] is None):
            locks.enter_context(only_writer(folder, what="process", strict=False, timeout=math.inf))
        missing = []
        for name, folder in folders.items():
            if (lines := finished_lines(folder)) is None:
                missing.append(name)
            else:
                found.lines += lines
                found.skipped += 1
        yield missing


def finish_run(
    found: RunList,
    output_dir: Path,
    fields: dict[str, Any],
    score: Callable[[], Any],
    outcome: dict[str, Any],
    notes: Sequence[str] = (),
) -> None:
    """
    Make a run, unless it is finished: `score()` gives its `Predictions`. Changes `found`.

    Args:
        fields (`dict`): What tells the run from others; see `adaptor_hf.evaluation.results`.
        outcome (`dict`): The rest of what its lines say; `score` may add to it.
        notes (`Sequence[str]`): Sentences for every reader of the results.
    """
    from ..evaluation.results import run_key, write_run

    key = run_key(fields)
    folder = output_dir / "runs" / key
    with runs_to_make(found, {key: folder}) as missing:
        if missing:
            predictions = score()
            if notes:
                predictions.settings["data_notes"] = list(notes)
            found.lines += write_run(folder, predictions, fields | outcome)


__all__ = ["RunList", "finish_run", "finished_lines", "runs_to_make", "subgroup_columns"]
