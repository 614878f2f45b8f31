"""
Result files as pages: the paper's tables with published rows beside ours, and tables of all metrics with intervals.

Phantom results get a page of their own: they show that the machinery works and never stand beside patients.
"""

import json
import math
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from ..files import write_aside
from ..markdown import plain, sentence
from .baselines import LEGEND as MARK_LEGEND
from .baselines import MARK, baseline_rows, is_one_sided, lower_is_better
from .groups import subgroup_tables
from .latex import latex_table
from .naming import (
    CHOSEN_ON_TEST,
    CHOSEN_ON_TEST_NOTE,
    VALUES,
    checkpoint_label,
    row_label,
    row_parts,
    rows_in_words,
    shared_parts,
)
from .notes import duplicate_notes
from .overlap import overlap_cell, overlap_sentences
from .results import ResultFiles, read_sound_results
from .tables import Cell, Table, aggregate, lovt_csv, table_titles
from .tasks import headline_of

PUBLISHED_FILE = Path(__file__).with_name("published.json")
VISION, TEXT = ("resnet-ae", "dinov2-s", "dinov2-b"), ("bert", "biobert", "clinicalbert", "pubmedbert", "cxrbert")
METRIC_NAMES = {"auroc": "AUROC", "accuracy": "accuracy", "dice_reference": "Dice (empty counts 1)"}
DATASET_NAMES = {"rsna": "RSNA", "covidx": "COVIDx", "siim": "SIIM", "chexpert": "CheXpert"}
PHANTOM = (
    "**Phantom data: drawn by a program, no patients. These numbers show that the machinery works, and nothing else.**"
)
OURS = "ours"
LEGEND = [VALUES, MARK_LEGEND]
BOLD = (
    "Bold: the highest value (of errors and ranks the lowest) of its column among rows of one part and split, where "
    "its interval is better than the best trivial baseline. Others, with intervals that overlap, need not differ."
)
PUBLISHED_NOTE = (
    "Published rows are quoted: other splits, heads and ways of choosing, no interval. A difference to them is no "
    "finding. Published segmentation values count an empty prediction on an empty image 1 and are means of batches."
)


def published() -> dict[str, Any]:
    """The published values that stand beside ours, in per cent."""
    return json.loads(PUBLISHED_FILE.read_text(encoding="utf-8"))


def is_phantom(dataset: str) -> bool:
    """Whether a data set is the generated one."""
    return dataset.lower().startswith("phantom")


def paper_tables(cells: Iterable[Cell]) -> list[Table]:
    """
    The paper's Table 1 (vision tower x text tower x fraction, one table a task), 2 (classification) and 3
    (segmentation), with published rows beside ours. Phantom cells are left out.
    """
    cells = [cell for cell in cells if not is_phantom(cell.fields["dataset"])]
    known = published()
    tables = [_tower_table(task, rows, cells, known) for task, rows in known["towers"].items()]
    tables.append(_method_table("table2", "Table 2. Classification", "classification", cells, known))
    tables.append(_method_table("table3", "Table 3. Segmentation", "segmentation", cells, known))
    return tables


def metric_tables(cells: Iterable[Cell], metrics: Sequence[str] = ()) -> list[Table]:
    """
    One table a data set, task and test set: each row a kind of run at a fraction, each metric with its interval.

    Args:
        cells (`Iterable[Cell]`): As of `aggregate`.
        metrics (`Sequence[str]`): What the LaTeX tables show; by default the headline metrics of each task.

    Raises:
        ValueError: a metric that no cell has.
    """
    cells = list(cells)
    known = dict.fromkeys(cell.metric for cell in cells if "/" not in cell.metric)
    if missing := [metric for metric in metrics if metric not in known]:
        raise ValueError(f"No result has the metric {', '.join(missing)}. There are: {', '.join(known) or 'none'}.")
    groups: dict[tuple, list[Cell]] = {}
    for cell in cells:
        if "/" not in cell.metric:
            key = tuple(cell.fields.get(name) for name in ("dataset", "test_set", "task"))
            groups.setdefault(key, []).append(cell)
    return [_metric_table(key, members, metrics) for key, members in sorted(groups.items(), key=str)]


def write_report(
    results: str | os.PathLike, output_dir: str | os.PathLike, *, figures: bool = True, metrics: Sequence[str] = ()
) -> list[Path]:
    """
    Read result files and write the report.

    Args:
        results (`str` or `PathLike`): A folder with runs, or one result file.
        output_dir (`str` or `PathLike`): For `report.md` and, of phantom results, `phantom.md`; beside them `tables/`
            with every table as Markdown, LaTeX and CSV, `lovt/` in LoVT's layout, and `figures/`.
        figures (`bool`, defaults to `True`): Needs matplotlib.
        metrics (`Sequence[str]`): As in `metric_tables`.

    Returns:
        `list[Path]`: What was written, pages first.

    Raises:
        FileNotFoundError: no result file.
        ValueError: a metric that no result has.
    """
    found = read_sound_results(results)
    # A page may be passed on: it names files within the folder that was read, and no place on this machine.
    root = Path(results) if Path(results).is_dir() else Path(results).parent
    found.faults = [fault.replace(f"{root}{os.sep}", "") for fault in found.faults]
    if missing := [name for name in metrics if found.lines and not any(name == line["metric"] for line in found.lines)]:
        raise ValueError(f"No result has the metric {', '.join(missing)}. There are: {', '.join(_metrics(found))}.")
    folder = Path(output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for phantom in (False, True):
        lines = [line for line in found.lines if is_phantom(line["dataset"]) == phantom]
        if not lines and (phantom or found.lines):
            continue
        cells = aggregate(lines)
        part = folder / "phantom" if phantom else folder
        here = [metric for metric in metrics if any(cell.metric == metric for cell in cells)]
        tables = [
            *([] if phantom else _used(paper_tables(cells))),
            *metric_tables(cells, here),
            *subgroup_tables(lines),
        ]
        drawn, left_out = [], []
        if figures:
            from .report_figures import draw_all

            drawn, left_out = draw_all(lines, cells, part / "figures", None if phantom else published())
        page = folder / ("phantom.md" if phantom else "report.md")
        write_aside(page, _page(tables, found, drawn, left_out, phantom, folder))
        written.insert(0, page)
        for table in tables:
            for ending, text in (("md", table.markdown()), ("tex", latex_table(table)), ("csv", table.csv())):
                written.append(_write(part / "tables" / f"{table.name}.{ending}", text))
        written += [_write(part / "lovt" / name, text) for name, text in lovt_csv(cells).items()]
        written += drawn
    return written


def _used(tables: list[Table]) -> list[Table]:
    """Those of the paper's tables that hold a row of ours: a page of quotations alone tells nothing."""
    return [table for table in tables if any(f"({OURS}" in row[0] for row in table.rows)]


def _tower_table(task: str, rows: dict, cells: list[Cell], known: dict) -> Table:
    dataset, metric = task.split("/")
    fractions = known["fractions"]
    columns = ["text tower", *(f"{vision} {fraction * 100:g} %" for vision in VISION for fraction in fractions)]
    body, notes = [], [PUBLISHED_NOTE]
    for text in TEXT:
        values = [value for vision in VISION for value in rows[text][vision]]
        body.append([f"{text} (published)", *(f"{value:.1f}" for value in values)])
    groups: dict[str, list[Cell]] = {}
    for cell in cells:
        fields = cell.fields
        if _matches(cell, dataset, metric) and str(fields.get("module") or "adaptor").lower() == "adaptor":
            parts = [OURS, fields["system"], fields["protocol"], fields.get("recipe"), _split_of(cell)]
            label = f"{fields.get('text_tower')} ({', '.join(str(part) for part in parts if part)})"
            groups.setdefault(label, []).append(cell)
    ours: dict[str, dict] = {}
    for label, members in groups.items():
        places = [(cell.fields.get("vision_tower"), cell.fields.get("fraction")) for cell in members]
        # One row for all vision towers, unless a place would hold two numbers: then each run has its own.
        twice = len(set(places)) < len(places)
        for place, cell in zip(places, members, strict=True):
            own = [
                f"{cell.fields['input_size']} px" if cell.fields.get("input_size") else "",
                checkpoint_label(cell.fields),
            ]
            own.append(CHOSEN_ON_TEST if cell.fields.get("selected_on") == "test" else "")
            name = ", ".join([label[:-1], *filter(None, own)]) + ")" if twice else label
            ours.setdefault(name, {})[place] = cell
        if not twice and (named := [cell for cell in members if checkpoint_label(cell.fields)]):
            listed = dict.fromkeys(f"{cell.fields['vision_tower']} {checkpoint_label(cell.fields)}" for cell in named)
            notes.append(f"{label}: checkpoints {', '.join(listed)}.")
        notes += [f"{label}: {CHOSEN_ON_TEST_NOTE}"] * any(cell.fields.get("selected_on") == "test" for cell in members)
    for label, found in ours.items():
        values = [_percent(found.get((vision, fraction))) for vision in VISION for fraction in fractions]
        if any(values):
            body.append([label, *values])
    if ours:
        notes += LEGEND
    if task in known["all_empty"]:
        notes.append(
            f"An all-empty mask scores {known['all_empty'][task]} here by the published splits: many published cells "
            "are that number."
        )
    if task == "covidx/accuracy":
        notes.append("The majority class is 50.0 % of the published test set; all classes differ in source.")
    title = f"Table 1. {DATASET_NAMES[dataset]}, {METRIC_NAMES[metric]}, per cent"
    return Table(f"table1_{dataset}_{metric}", title, columns, body, notes)


def _method_table(name: str, title: str, section: str, cells: list[Cell], known: dict) -> Table:
    tasks = list(dict.fromkeys(task for entry in known[section] for task in entry["results"]))
    columns = ["method"]
    for task in tasks:
        dataset, metric = task.split("/")
        columns += [f"{DATASET_NAMES[dataset]} {METRIC_NAMES[metric]} {f * 100:g} %" for f in known["fractions"]]
    body, notes = [], [PUBLISHED_NOTE, *LEGEND]
    if any(
        _matches(cell, *task.split("/")) and cell.fields.get("selected_on") == "test"
        for cell in cells
        for task in tasks
    ):
        notes.append(CHOSEN_ON_TEST_NOTE)
    for entry in known[section]:
        values = [entry["results"].get(task, [None] * 3) for task in tasks]
        cells_of = ["" if value is None else f"{value:.1f}" for part in values for value in part]
        body.append([f"{entry['method']} (published)", *cells_of])
        if "note" in entry:
            notes.append(f"{entry['method']}: {entry['note']}")
    if section == "segmentation":
        values = [str(known["all_empty"][task]) for task in tasks for _ in known["fractions"]]
        body.append(["all-empty mask (computed from the published splits)", *values])
    rows: dict[str, dict] = {}
    for cell in cells:
        for task in tasks:
            if _matches(cell, *task.split("/")):
                label = _split_label(cell)
                rows.setdefault(label, {})[task, cell.fields.get("fraction")] = cell
    for label, found in rows.items():
        values = [_percent(found.get((task, fraction))) for task in tasks for fraction in known["fractions"]]
        if any(values):
            body.append([f"{label} ({OURS})", *values])
    return Table(name, f"{title}, per cent", columns, body, notes)


def _metric_table(key: tuple, cells: list[Cell], chosen: Sequence[str]) -> Table:
    task = key[2]
    metrics = list(dict.fromkeys(cell.metric for cell in cells))
    columns = [
        "run",
        "training data",
        *metrics,
        "seeds",
        "images (patients)",
        "head parameters",
        "tower saw it",
        "pre-training saw",
    ]
    rows: dict[tuple, dict[str, Cell]] = {}
    for cell in cells:
        rows.setdefault((_split_label(cell), cell.fields.get("fraction")), {})[cell.metric] = cell
    ordered = sorted(rows.items(), key=lambda row: (row[0][1] or 0, row[0][0]))
    body, notes = [], _legend(cells)
    if any(cell.n_patients is None for cell in cells):
        notes.append("Rows without a number of patients: none is known, and their intervals are over images.")
    for (label, fraction), found in ordered:
        first = next(iter(found.values()))
        body.append(
            [
                label,
                "" if fraction is None else f"{float(fraction) * 100:g} %",
                *(_number(found.get(metric)) for metric in metrics),
                str(len(first.values)),
                str(first.n_test) if first.n_patients is None else f"{first.n_test} ({first.n_patients})",
                "" if first.fields.get("head_params") is None else str(first.fields["head_params"]),
                str(first.fields.get("tower_saw_dataset") or "unknown"),
                overlap_cell(first.fields),
            ]
        )
        notes += [
            f"{label}: {note}" for note in dict.fromkeys(note for cell in found.values() for note in cell.run_notes)
        ]
    notes += _grouped({label: list(found.values()) for (label, _), found in ordered})
    lines = [line for cell in cells for line in cell.lines]
    notes += duplicate_notes(lines)
    body += [[label, share, *trivial, *[""] * 5] for label, share, trivial in baseline_rows(lines, metrics)]
    name, title = table_titles(*key)
    table = Table(f"metrics_{name}", title, columns, body, notes)
    _prepare_latex(table, [found for _, found in ordered], metrics, chosen or headline_of(task))
    return table


def _grouped(rows: dict[str, list[Cell]]) -> list[str]:
    """Notes of cells, each sentence once with the metrics that it is about, and with the rows unless these are all."""
    about: dict[str, dict[str, list[str]]] = {}
    for label, cells in rows.items():
        for cell in cells:
            for note in cell.notes:
                about.setdefault(note, {}).setdefault(label, []).append(cell.metric)
    said = []
    for note, of_rows in about.items():
        metrics = {label: ", ".join(names) for label, names in of_rows.items()}
        if len(metrics) == len(rows) and len(set(metrics.values())) == 1:
            said.append(f"{next(iter(metrics.values()))}: {note}")
        else:
            said += [f"{label}, {names}: {note}" for label, names in metrics.items()]
    return said


def _legend(cells: list[Cell]) -> list[str]:
    """What values, intervals and marks mean, and what rows were tested and chosen on, of these cells."""

    def named(name: str) -> list[str]:
        return sorted({str(cell.fields[name]) for cell in cells if cell.fields.get(name) is not None})

    notes = [VALUES]
    if methods := named("ci_method"):
        notes.append(f"Intervals: {'; '.join(methods)}.")
    notes.append(MARK_LEGEND)
    notes.append(f"Tested on {'; '.join(sorted({rows_in_words(cell.fields) for cell in cells}))}.")
    notes.append(f"Epoch, learning rate and thresholds chosen on: {', '.join(named('selected_on')) or 'not stated'}.")
    if positive := named("positive_class"):
        notes.append(f"Positive class: {', '.join(positive)}.")
    notes += overlap_sentences([line for cell in cells for line in cell.lines])
    return notes + [CHOSEN_ON_TEST_NOTE] * ("test" in named("selected_on"))


def _prepare_latex(table: Table, rows: list[dict[str, Cell]], metrics: list[str], chosen: Sequence[str]) -> None:
    """Headline columns, short names of rows, parts by training data, and the best of each in bold. Changes `table`."""
    offset = 2
    shown = [metric for metric in chosen if metric in metrics] or metrics
    table.headline = [offset + metrics.index(metric) for metric in shown]
    named = [row_parts(first.fields) | {"split": str(first.fields["split_hash"])} for first in map(_first, rows)]
    shared = shared_parts(named)
    table.short = [", ".join(part for name, part in row.items() if name not in shared) for row in named]
    baselines = table.rows[len(rows) :]
    table.short += [row[0] for row in baselines]
    shares = [_first(row).fields.get("fraction") for row in rows]
    several = len(set(shares)) > 1
    parts = ["" if share is None else f"{share * 100:g} % of the training rows" for share in shares]
    table.parts = [*parts, *[""] * len(baselines)] if several else None
    for metric, column in zip(shown, table.headline, strict=True):
        table.bold |= {(row, column) for row in _best([found.get(metric) for found in rows], shares)}
    notes = list(table.notes[: len(_legend([cell for row in rows for cell in row.values()]))])
    seeds = sorted({len(_first(row).values) for row in rows})
    told = [f"{name} {part}" for name, part in shared.items()]
    if not several and parts[0]:
        told.append(parts[0])
    told.append(f"seeds a row: {', '.join(map(str, seeds))}")
    notes.append(f"All rows: {'; '.join(told)}.")
    if table.bold:
        notes.append(BOLD)
    marked = [f"{short}, {cell.metric}: {note}" for short, row in zip(table.short, rows, strict=False)
              for name, cell in row.items() if name in shown for note in cell.notes]  # fmt: skip
    table.latex_notes = notes + marked


def _first(row: dict[str, Cell]) -> Cell:
    return next(iter(row.values()))


def _best(cells: list[Cell | None], shares: list) -> set[int]:
    """Rows of the best printed value of one share, split and target; none alone, and none that shows nothing."""
    groups: dict[tuple, list[int]] = {}
    for row, cell in enumerate(cells):
        fair = cell is not None and cell.fields.get("selected_on") != "test"
        if fair and not math.isnan(cell.value) and cell.fields.get("pretraining_overlap") != "found":
            groups.setdefault((shares[row], cell.fields["split_hash"], cell.fields.get("targets_hash")), []).append(row)
    found = set()
    for rows in groups.values():
        name = cells[rows[0]].metric.partition("/")[0]
        if len(rows) > 1 and not is_one_sided(name):
            best = (min if lower_is_better(name) else max)(rows, key=lambda row: cells[row].value)
            same = [row for row in rows if f"{cells[row].value:.3f}" == f"{cells[best].value:.3f}"]
            if not math.isnan(cells[best].ci_lo) and cells[best].beats_trivial:
                found.update(same)
    return found


def _metrics(found: ResultFiles) -> list[str]:
    return list(dict.fromkeys(line["metric"] for line in found.lines if "/" not in line["metric"]))


def _split_label(cell: Cell) -> str:
    return f"{row_label(cell.fields)}, {_split_of(cell)}"


def _split_of(cell: Cell) -> str:
    split = f"split {cell.fields['split_hash']}"
    test_set, dataset = cell.fields.get("test_set"), cell.fields["dataset"]
    return split if test_set in (None, dataset) else f"trained on {dataset}, {split}"


def _matches(cell: Cell, dataset: str, metric: str) -> bool:
    where = str(cell.fields.get("test_set") or cell.fields["dataset"]).lower()
    return where == dataset and cell.metric == metric


def _percent(cell: Cell | None) -> str:
    return "" if cell is None else _formatted(cell, 100, 1)


def _number(cell: Cell | None) -> str:
    return "" if cell is None else _formatted(cell, 1, 1 if "median_rank" in cell.metric else 3)


def _formatted(cell: Cell, scale: float, digits: int) -> str:
    if math.isnan(cell.value):
        return "not defined"
    text = f"{cell.value * scale:.{digits}f}"
    if not math.isnan(cell.seed_std):
        text += f" ± {cell.seed_std * scale:.{digits}f}"
    if not math.isnan(cell.ci_lo):
        text += f" [{cell.ci_lo * scale:.{digits}f}, {cell.ci_hi * scale:.{digits}f}]"
    else:
        text += " [n/a]"
    return text if cell.beats_trivial else f"{text} {MARK}"


def _page(
    tables: list[Table], found: ResultFiles, drawn: list[Path], left_out: list[str], phantom: bool, folder: Path
) -> str:
    parts = ["# Phantom results" if phantom else "# Results"]
    if phantom:
        parts.append(PHANTOM)
    parts.append(VALUES)
    if found.faults:
        listed = "\n".join(f"* {sentence(fault)}" for fault in found.faults)
        parts.append(f"**Lines that could not be used ({len(found.faults)}):**\n\n{listed}")
    parts += [table.markdown() for table in tables]
    if not tables:
        parts.append("No result could be read.")
    shown = [path for path in drawn if path.suffix == ".png"]
    parts += [f"![{plain(path.stem)}]({quote(path.relative_to(folder).as_posix())})" for path in shown]
    if left_out:
        parts.append(
            "Not drawn, because nothing is shown to be learned:\n\n"
            + "\n".join(f"* {sentence(one)}" for one in left_out)
        )
    return "\n\n".join(part.rstrip() for part in parts) + "\n"


def _write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_aside(path, text)
    return path


__all__ = ["is_phantom", "metric_tables", "paper_tables", "published", "write_report"]
