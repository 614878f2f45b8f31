"""Result lines of several seeds as one cell, and tables as Markdown, LaTeX and CSV."""

import csv
import io
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from .results import IDENTITY, OUTCOME
from .statistics import seed_interval

# A trivial predictor is perfect in one of each pair: precision and recall, sensitivity and specificity, and so on.
ONE_SIDED = ("precision", "recall", "specificity", "ece", "sensitivity_any_mask", "false_alarm_rate")
ROW_FIELDS = tuple(name for name in IDENTITY if name not in ("seed", "checkpoint"))


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
        seed_lo, seed_hi (`float`): Interval of the mean over seeds by Student's t; NaN at one seed.
        trivial_baseline (`float`): Mean over seeds.
        n_test, n_patients (`int`): Of each run; None where no patient is known.
        notes (`list[str]`): What a reader must know.
    """

    fields: dict[str, Any]
    metric: str
    values: list[float]
    value: float
    ci_lo: float
    ci_hi: float
    seed_lo: float
    seed_hi: float
    trivial_baseline: float
    n_test: int
    n_patients: int | None
    notes: list[str] = field(default_factory=list)

    @property
    def beats_trivial(self) -> bool:
        """Whether the interval is on the better side of the trivial baseline, where beating that means something."""
        name = self.metric.split("/")[0]
        if math.isnan(self.ci_lo) or math.isnan(self.trivial_baseline) or name in ONE_SIDED:
            return True
        return self.ci_hi < self.trivial_baseline if name == "brier" else self.ci_lo > self.trivial_baseline


def aggregate(lines: Iterable[Mapping[str, Any]]) -> list[Cell]:
    """
    Lines that differ only in the seed, as one cell. Other splits, and two checkpoints at one seed, stay apart.

    Args:
        lines (`Iterable[Mapping]`): As of `read_results`.
    """
    groups: dict[tuple, list[Mapping[str, Any]]] = {}
    for line in lines:
        key = (*(line.get(name) for name in ROW_FIELDS), line["metric"])
        groups.setdefault(key, []).append(line)
    cells = []
    for members in groups.values():
        seeds = [line.get("seed") for line in members]
        if len(set(seeds)) < len(seeds):
            by_checkpoint: dict[Any, list] = {}
            for line in members:
                by_checkpoint.setdefault(line.get("checkpoint"), []).append(line)
            cells += [_cell(part) for part in by_checkpoint.values()]
        else:
            cells.append(_cell(members))
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
        notes.append(f"{len(members)} seeds gave {distinct} distinct predictions: its ± is too small.")
    shared = {name: members[0].get(name) for name in (*ROW_FIELDS, *OUTCOME)}
    for name in OUTCOME:
        if any(line.get(name) != shared[name] for line in members):
            shared[name] = "varies"
    if len({line.get("checkpoint") for line in members}) == 1:
        shared["checkpoint"] = members[0].get("checkpoint")
    return Cell(
        fields=shared,
        metric=members[0]["metric"],
        values=values,
        value=mean,
        ci_lo=float(np.mean([line["ci_lo"] for line in members])),
        ci_hi=float(np.mean([line["ci_hi"] for line in members])),
        seed_lo=seed_lo,
        seed_hi=seed_hi,
        trivial_baseline=float(np.mean([line["trivial_baseline"] for line in members])),
        n_test=int(members[0].get("n_test") or 0),
        n_patients=members[0].get("n_patients"),
        notes=notes,
    )


@dataclass
class Table:
    """A table of text: `columns` names, `rows` of as many cells, `notes` below it."""

    name: str
    title: str
    columns: list[str]
    rows: list[list[str]]
    notes: list[str] = field(default_factory=list)

    def markdown(self) -> str:
        """With its title as a heading."""
        lines = [f"## {self.title}", ""]
        lines += ["| " + " | ".join(_one_line(cell) for cell in row) + " |" for row in [self.columns]]
        lines += ["|" + "---|" * len(self.columns)]
        lines += ["| " + " | ".join(_one_line(cell) for cell in row) + " |" for row in self.rows]
        return "\n".join([*lines, "", *(f"* {note}" for note in self.notes)]).rstrip() + "\n"

    def latex(self) -> str:
        """For the package booktabs."""
        rows = [" & ".join(_latex(cell) for cell in row) + r" \\" for row in [self.columns, *self.rows]]
        return "\n".join(
            [
                r"\begin{table}",
                rf"\caption{{{_latex(self.title)}.{''.join(' ' + _latex(note) for note in self.notes)}}}",
                rf"\label{{tab:{self.name.replace('_', '-')}}}",
                rf"\begin{{tabular}}{{{'l' * len(self.columns)}}}",
                r"\toprule",
                rows[0],
                r"\midrule",
                *rows[1:],
                r"\bottomrule",
                r"\end{tabular}",
                r"\end{table}",
                "",
            ]
        )

    def csv(self) -> str:
        """Columns and rows, without title and notes."""
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerows([self.columns, *self.rows])
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
        parts = [cell.fields.get(name) for name in ("dataset", "task", "protocol", "fraction")]
        task = "_".join(f"{part:g}" if isinstance(part, float) else str(part) for part in parts if part is not None)
        file = "downstream_" + "".join(c if c.isalnum() or c in "._-" else "-" for c in task) + ".csv"
        row = files.setdefault(file, {}).setdefault(row_label(cell.fields), {})
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


def row_label(fields: Mapping[str, Any]) -> str:
    """A row's name: system, module where that says more, towers, and what else tells it from its neighbours."""
    towers = "+".join(str(fields[name]) for name in ("vision_tower", "text_tower") if fields.get(name))
    module = fields.get("module")
    parts = [str(fields["system"])]
    parts += [str(module)] if module and str(module).lower() not in str(fields["system"]).lower() else []
    parts += [towers] if towers else []
    parts += [str(fields[name]) for name in ("protocol", "recipe") if fields.get(name)]
    parts += [f"{fields['input_size']} px"] if fields.get("input_size") else []
    if fields.get("checkpoint"):
        parts.append(str(fields["checkpoint"])[:8])
    return ", ".join(parts)


def _one_line(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def _latex(text: str) -> str:
    replaced = {"\\": r"\textbackslash{}", "±": r"$\pm$", "†": r"$\dagger$", "~": r"\textasciitilde{}"}
    replaced |= {"^": r"\textasciicircum{}"} | {c: "\\" + c for c in "&%$#_{}"}
    return "".join(replaced.get(c, c) for c in text)


__all__ = ["Cell", "Table", "aggregate", "lovt_csv", "row_label"]
