"""Result lines of several seeds as one cell, and tables as Markdown and CSV (LaTeX: `latex`)."""

import io
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ..files import write_csv_to
from ..markdown import plain, sentence, table_row, table_rule
from .baselines import above_baseline
from .naming import mark_targets, row_label
from .results import IDENTITY, OUTCOME
from .statistics import seed_interval

ROW_FIELDS = tuple(name for name in IDENTITY if name != "seed")
"""What tells one kind of run from another; runs that differ in the seed alone are of one kind."""

SHOWN = ("ci_method", "interval_over", "positive_class")
"""More of a line that tables say, where it is there."""


@dataclass
class Cell:
    """
    One metric of one kind of run, over its seeds.

    Args:
        fields (`dict`): What the runs share.
        metric (`str`): Its name.
        values (`list[float]`): One a seed.
        value (`float`): Their mean.
        ci_lo, ci_hi (`float`): Mean ends of the seeds' intervals over patients.
        seed_std (`float`): Their standard deviation (n - 1): what "±" is everywhere; NaN at one seed.
        seed_lo, seed_hi (`float`): Interval of the mean over seeds by Student's t; NaN at one seed.
        trivial_baseline (`float`): The best trivial baseline, mean over seeds.
        n_test, n_patients (`int`): Of each run; no patients where none is known.
        notes (`list[str]`): What a reader must know of the metric.
        run_notes (`list[str]`): What a reader must know of the runs.
        trivial_name (`str`): Which baseline is the best, over seeds.
        lines (`list[Mapping]`): The result lines, one a seed.
    """

    fields: dict[str, Any]
    metric: str
    values: list[float]
    value: float
    ci_lo: float
    ci_hi: float
    seed_std: float
    seed_lo: float
    seed_hi: float
    trivial_baseline: float
    n_test: int
    n_patients: int | None
    notes: list[str] = field(default_factory=list)
    run_notes: list[str] = field(default_factory=list)
    trivial_name: str = ""
    lines: list[Mapping[str, Any]] = field(default_factory=list, repr=False)

    @property
    def beats_trivial(self) -> bool:
        """Whether the interval is on the better side of the best trivial baseline, as of `above_baseline`."""
        return above_baseline(self.metric, self.ci_lo, self.ci_hi, self.trivial_baseline)


def aggregate(lines: Iterable[Mapping[str, Any]]) -> list[Cell]:
    """
    Lines that differ only in the seed, as one cell. Other splits and other checkpoints stay apart.

    Args:
        lines (`Iterable[Mapping]`): As of `read_results`.
    """
    groups: dict[tuple, list[Mapping[str, Any]]] = {}
    for line in lines:
        key = (*(line.get(name) for name in ROW_FIELDS), line["metric"])
        groups.setdefault(key, []).append(line)
    cells = [_cell(members) for members in groups.values()]
    mark_targets([cell.fields for cell in cells])
    return cells


def _cell(members: Sequence[Mapping[str, Any]]) -> Cell:
    members = sorted(members, key=lambda line: str(line.get("seed")))
    values = [float(line["value"]) for line in members]
    known = [value for value in values if not math.isnan(value)]
    mean, seed_lo, seed_hi = seed_interval(known) if known else (math.nan,) * 3
    notes = sorted({line[name] for line in members for name in ("note", "interval_note") if line.get(name)})
    if len(known) < len(values):
        notes.append(f"{len(values) - len(known)} of {len(values)} seeds have no value.")
    distinct = len({line.get("predictions_sha256") for line in members})
    if distinct < len(members):
        notes.append(f"{len(members)} seeds gave {distinct} distinct predictions: the ± is too small.")
    shared = {name: members[0].get(name) for name in (*ROW_FIELDS, *OUTCOME, *SHOWN)}
    for name in (*OUTCOME, *SHOWN):
        if any(line.get(name) != shared[name] for line in members):
            shared[name] = "varies"
    # Folders of one checkpoint, and lines of a version without names: its first name will do.
    shared["checkpoint_name"] = next((line["checkpoint_name"] for line in members if line.get("checkpoint_name")), None)
    if any(line.get("selected_on") == "test" for line in members):
        shared["selected_on"] = "test"
    # Without an interval there is no method.
    shared["ci_method"] = next((line["ci_method"] for line in members if line.get("ci_method")), None)
    shared |= {"n_test": int(members[0].get("n_test") or 0), "n_patients": members[0].get("n_patients")}
    return Cell(
        fields=shared,
        metric=members[0]["metric"],
        values=values,
        value=mean,
        ci_lo=float(np.mean([line["ci_lo"] for line in members])),
        ci_hi=float(np.mean([line["ci_hi"] for line in members])),
        seed_std=float(np.std(known, ddof=1)) if len(known) > 1 else math.nan,
        seed_lo=seed_lo,
        seed_hi=seed_hi,
        trivial_baseline=float(np.mean([line["trivial_baseline"] for line in members])),
        n_test=shared["n_test"],
        n_patients=shared["n_patients"],
        notes=notes,
        run_notes=sorted({note for line in members for note in line.get("run_notes") or ()}),
        trivial_name=" or ".join(sorted({line.get("trivial_name") or "" for line in members} - {""})),
        lines=members,
    )


@dataclass
class Table:
    """
    A table of text.

    Args:
        name, title (`str`): Of its files, and above it.
        columns (`list[str]`), rows (`list[list[str]]`): Names of the columns, and as many cells a row.
        notes (`list[str]`): Below it.
        headline (`list[int]`, *optional*): Columns of values that LaTeX shows; all but the first by default.
        short (`list[str]`, *optional*): LaTeX's names of the rows.
        parts (`list[str]`, *optional*): Part of the LaTeX table that each row stands in, by its heading.
        bold (`set[tuple[int, int]]`): Row and column of what LaTeX sets in bold.
        latex_notes (`list[str]`, *optional*): Instead of `notes` in LaTeX.
    """

    name: str
    title: str
    columns: list[str]
    rows: list[list[str]]
    notes: list[str] = field(default_factory=list)
    headline: list[int] | None = None
    short: list[str] | None = None
    parts: list[str] | None = None
    bold: set[tuple[int, int]] = field(default_factory=set)
    latex_notes: list[str] | None = None

    def markdown(self) -> str:
        """With its title as a heading."""
        lines = [
            f"## {plain(self.title)}",
            "",
            table_row(self.columns),
            table_rule(len(self.columns)),
            *map(table_row, self.rows),
            "",
        ]
        return "\n".join([*lines, *(f"* {sentence(note)}" for note in self.notes)]).rstrip() + "\n"

    def csv(self) -> str:
        """Columns and rows, without title and notes."""
        text = io.StringIO()
        write_csv_to(text, self.columns, self.rows)
        return text.getvalue()


def lovt_csv(cells: Iterable[Cell]) -> dict[str, str]:
    """
    LoVT's layout of results: a file a task, a row a model, and for each metric all runs, mean, std (n-1), their number
    and 1.96 std / sqrt(n). The last is LoVT's, for comparison with its files; at five runs it is too narrow.

    Returns:
        `dict[str, str]`: File name to text.
    """
    files: dict[str, dict[str, dict[str, str]]] = {}
    for cell in cells:
        if "/" in cell.metric:
            continue
        parts = [cell.fields.get(name) for name in ("dataset", "test_set", "task", "protocol", "fraction")]
        task = "_".join(f"{part:g}" if isinstance(part, float) else str(part) for part in parts if part is not None)
        file = "downstream_" + "".join(c if c.isalnum() or c in "._-" else "-" for c in task) + ".csv"
        row = files.setdefault(file, {}).setdefault(f"{row_label(cell.fields)}, split {cell.fields['split_hash']}", {})
        std = float(np.std(cell.values, ddof=1)) if len(cell.values) > 1 else math.nan
        name = f"{cell.fields['task']}_test/{cell.metric}"
        row[f"{name}_run_results"] = ";".join(f"{value:.6g}" for value in cell.values)
        numbers = {"mean": cell.value, "std": std, "num_runs": len(cell.values)}
        numbers["95_interval"] = 1.96 * std / math.sqrt(len(cell.values))
        row |= {f"{name}_{key}": f"{number:.6g}" for key, number in numbers.items()}
    texts = {}
    for file, rows in files.items():
        columns = list(dict.fromkeys(column for row in rows.values() for column in row))
        body = [[label, *(row.get(column, "") for column in columns)] for label, row in rows.items()]
        texts[file] = Table(file, file, ["name", *columns], body).csv()
    return texts


def table_titles(dataset: str, test_set: str | None, task: str) -> tuple[str, str]:
    """Of what is measured on one data set: as a part of a file's name, and in words."""
    name = "_".join("".join(c if c.isalnum() else "-" for c in str(part)) for part in (dataset, test_set, task) if part)
    where = dataset if test_set in (None, dataset) else f"{dataset}, tested on {test_set}"
    return name, f"{where}: {task}"


__all__ = ["ROW_FIELDS", "Cell", "Table", "aggregate", "lovt_csv", "table_titles"]
