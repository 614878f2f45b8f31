"""
Result files as pages: the paper's tables with published rows beside ours, and tables of all metrics with intervals.

Phantom results get a page of their own: they show that the machinery works and never stand beside patients.
"""

import json
import math
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from .groups import subgroup_tables
from .results import ResultFiles, read_results
from .tables import Cell, Table, aggregate, lovt_csv, row_label

PUBLISHED_FILE = Path(__file__).with_name("published.json")
VISION, TEXT = ("resnet-ae", "dinov2-s", "dinov2-b"), ("bert", "biobert", "clinicalbert", "pubmedbert", "cxrbert")
METRIC_NAMES = {"auroc": "AUROC", "accuracy": "accuracy", "dice_reference": "Dice (empty counts 1)"}
DATASET_NAMES = {"rsna": "RSNA", "covidx": "COVIDx", "siim": "SIIM", "chexpert": "CheXpert"}
PHANTOM = (
    "**Phantom data: drawn by a program, no patients. These numbers show that the machinery works, and nothing else.**"
)
OURS = "ours"
LEGEND = [
    "Intervals: 95 %, over patients, or over images where the table says so; of several seeds, the mean of their ends. "
    "n/a: there is none, for the reason below.",
    "† The interval does not lie on the better side of the trivial baseline: nothing is shown to be learned.",
]
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


def metric_tables(cells: Iterable[Cell]) -> list[Table]:
    """One table a data set, task and test set: each row a kind of run at a fraction, each metric with its interval."""
    groups: dict[tuple, list[Cell]] = {}
    for cell in cells:
        if "/" not in cell.metric:
            key = tuple(cell.fields.get(name) for name in ("dataset", "test_set", "task"))
            groups.setdefault(key, []).append(cell)
    return [_metric_table(key, members) for key, members in sorted(groups.items(), key=str)]


def write_report(results: str | os.PathLike, output_dir: str | os.PathLike, *, figures: bool = True) -> list[Path]:
    """
    Read result files and write the report.

    Args:
        results (`str` or `PathLike`): A folder with runs, or one result file.
        output_dir (`str` or `PathLike`): For `report.md` and, of phantom results, `phantom.md`; beside them `tables/`
            with every table as Markdown, LaTeX and CSV, `lovt/` in LoVT's layout, and `figures/`.
        figures (`bool`, defaults to `True`): Needs matplotlib.

    Returns:
        `list[Path]`: What was written, pages first.

    Raises:
        FileNotFoundError: no result file.
    """
    found = read_results(results)
    folder = Path(output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for phantom in (False, True):
        lines = [line for line in found.lines if is_phantom(line["dataset"]) == phantom]
        if not lines and (phantom or found.lines):
            continue
        cells = aggregate(lines)
        part = folder / "phantom" if phantom else folder
        tables = [*([] if phantom else _used(paper_tables(cells))), *metric_tables(cells), *subgroup_tables(lines)]
        drawn = _draw(lines, cells, part / "figures", with_published=not phantom) if figures else []
        page = folder / ("phantom.md" if phantom else "report.md")
        page.write_text(_page(tables, found, drawn, phantom, folder), encoding="utf-8")
        written.insert(0, page)
        for table in tables:
            for ending, text in (("md", table.markdown()), ("tex", table.latex()), ("csv", table.csv())):
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
    ours: dict[str, dict] = {}
    for cell in cells:
        fields = cell.fields
        if _matches(cell, dataset, metric) and str(fields.get("module") or "adaptor").lower() == "adaptor":
            parts = [OURS, fields["system"], fields["protocol"], fields.get("recipe"), _split_of(cell)]
            label = f"{fields.get('text_tower')} ({', '.join(str(part) for part in parts if part)})"
            key, number = (fields.get("vision_tower"), fields.get("fraction")), 1
            # Two input sizes, say: each gets a row, none is dropped.
            while key in ours.get(label if number == 1 else f"{label} {number}", {}):
                number += 1
            ours.setdefault(label if number == 1 else f"{label} {number}", {})[key] = cell
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


def _metric_table(key: tuple, cells: list[Cell]) -> Table:
    dataset, test_set, task = key
    metrics = list(dict.fromkeys(cell.metric for cell in cells))
    columns = ["run", "training data", *metrics, "seeds", "images (patients)", "head parameters", "tower saw it"]
    rows: dict[tuple, dict[str, Cell]] = {}
    for cell in cells:
        rows.setdefault((_split_label(cell), cell.fields.get("fraction")), {})[cell.metric] = cell
    body, notes = [], list(LEGEND)
    if any(cell.n_patients is None for cell in cells):
        notes.append("Rows without a number of patients: none is known, and their intervals are over images.")
    for (label, fraction), found in sorted(rows.items(), key=lambda row: (row[0][1] or 0, row[0][0])):
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
            ]
        )
        notes += [f"{label}, {cell.metric}: {note}" for cell in found.values() for note in cell.notes]
    trivial = {}
    for cell in cells:
        if not math.isnan(cell.trivial_baseline):
            trivial.setdefault(cell.metric, set()).add(round(cell.trivial_baseline, 3))
    spans = [f"{min(found):.3f}" + (f" to {max(found):.3f}" if len(found) > 1 else "") for found in trivial.values()]
    text = dict(zip(trivial, spans, strict=True))
    body.append(["trivial baseline", "", *(text.get(metric, "") for metric in metrics), *[""] * 4])
    where = dataset if test_set in (None, dataset) else f"{dataset}, tested on {test_set}"
    name = "_".join("".join(c if c.isalnum() else "-" for c in str(part)) for part in key if part)
    return Table(f"metrics_{name}", f"{where}: {task}", columns, body, notes)


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
    if not math.isnan(cell.ci_lo):
        text += f" [{cell.ci_lo * scale:.{digits}f}, {cell.ci_hi * scale:.{digits}f}]"
    else:
        text += " [n/a]"
    if not math.isnan(cell.seed_hi):
        text += f" ±{(cell.seed_hi - cell.value) * scale:.{digits}f}"
    return text if cell.beats_trivial else f"{text} †"


def _page(tables: list[Table], found: ResultFiles, drawn: list[Path], phantom: bool, folder: Path) -> str:
    parts = ["# Phantom results" if phantom else "# Results"]
    if phantom:
        parts.append(PHANTOM)
    parts.append(
        "Each value: mean over seeds [95 % interval over patients, or images] ±half of the 95 % t-interval over seeds."
    )
    if found.faults:
        listed = "\n".join(f"* {fault}" for fault in found.faults)
        parts.append(f"**Lines that could not be used ({len(found.faults)}):**\n\n{listed}")
    parts += [table.markdown() for table in tables]
    if not tables:
        parts.append("No result could be read.")
    parts += [f"![{path.stem}]({path.relative_to(folder).as_posix()})" for path in drawn]
    return "\n\n".join(part.rstrip() for part in parts) + "\n"


def _draw(lines: list[dict], cells: list[Cell], folder: Path, *, with_published: bool) -> list[Path]:
    from .figures import draw_parameters, draw_reliability
    from .predictions import load_predictions

    folder.mkdir(parents=True, exist_ok=True)
    drawn = draw_parameters(cells, folder, published() if with_published else None)
    # One seed a kind of run, at its largest fraction: more curves cannot be told apart.
    chosen: dict[tuple, dict[str, Any]] = {}
    for line in lines:
        if line["task"] == "classification" and line["metric"] == "ece" and not math.isnan(line["value"]):
            where = str(line["test_set"] or line["dataset"])
            best = chosen.setdefault((where, row_label(line)), line)
            if (line["fraction"] or 0, -line["seed"]) > (best["fraction"] or 0, -best["seed"]):
                chosen[where, row_label(line)] = line
    curves: dict[str, dict[str, Any]] = {}
    for (where, label), line in sorted(chosen.items()):
        if (Path(line["folder"]) / "predictions.parquet").is_file():
            share = f", {100 * line['fraction']:g} %" if line["fraction"] else ""
            curves.setdefault(where, {})[f"{label}{share}, seed {line['seed']}"] = load_predictions(line["folder"])
    for where, of_set in curves.items():
        name = "".join(c if c.isalnum() else "-" for c in where)
        drawn.append(draw_reliability(of_set, folder / f"reliability_{name}.png"))
    return drawn


def _write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


__all__ = ["is_phantom", "metric_tables", "paper_tables", "published", "write_report"]
