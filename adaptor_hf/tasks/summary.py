"""What a series of runs found, as a table for the terminal: means over seeds, each with an interval."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ..evaluation.baselines import LEGEND, MARK, above_baseline, baseline_rows
from ..evaluation.naming import CHOSEN_ON_TEST, CHOSEN_ON_TEST_NOTE, VALUES, checkpoint_label
from ..evaluation.notes import notes_of_lines
from ..evaluation.overlap import overlap_sentences
from ..evaluation.tasks import headline_of
from ..markdown import sentence, table_row, table_rule
from .runs import RunList


def summarize(runs: RunList) -> str:
    """Markdown of the runs' headline metrics with what a reader must know of them; runs that were skipped or failed."""
    parts = [headline_table(runs.lines), VALUES, LEGEND] if runs.lines else []
    if any(line.get("selected_on") == "test" for line in runs.lines):
        parts.append(CHOSEN_ON_TEST_NOTE)
    parts += [f"Note: {sentence(note)}" for note in notes_of_lines(runs.lines)]
    parts += map(sentence, overlap_sentences(runs.lines))
    parts += [sentence(positive_sentence(runs.lines))] if positive_sentence(runs.lines) else []
    if any(str(line["dataset"]).startswith("phantom") for line in runs.lines):
        parts.append("Phantoms: these numbers show that the machinery works, and nothing about patients.")
    if runs.skipped:
        parts.append(f"{runs.skipped} runs were finished before and not made again.")
    parts += [f"Not run: {sentence(reason)}" for reason in runs.failed]
    return "\n\n".join(parts) or "No run."


def positive_sentence(lines: Sequence[Mapping[str, Any]]) -> str:
    """What the scores speak for, where that is one class; "" elsewhere."""
    names = dict.fromkeys(line["positive_class"] for line in lines if line.get("positive_class") is not None)
    return f"Positive class: {', '.join(names)}." if names else ""


def headline_table(lines: Sequence[Mapping[str, Any]]) -> str:
    """
    One row a system, test set, protocol, readout and fraction: mean and deviation over seeds, and the interval over
    patients (mean of the seeds' intervals), with a mark where it is not above the best trivial baseline. Below, each
    test set's baselines.
    """
    metrics = headline_of(lines[0]["task"])
    rows: dict[tuple, dict[str, list]] = {}
    for line in lines:
        if line["metric"] in metrics:
            test = line["test_set"] or line["dataset"]
            # Two checkpoints' matched heads differ in width: one control, and a name each.
            system = (line.get("module"), line["system"])
            key = (test, line["fraction"], line["recipe"] or "", system, line["protocol"], _checkpoint(line))
            rows.setdefault(key, {}).setdefault(line["metric"], []).append(line)
    shown = [metric for metric in metrics if any(metric in row for row in rows.values())]
    head = ["test set", "fraction", "protocol", "system", "readout", "checkpoint", "seeds", *shown]
    table = [table_row(head), table_rule(len(head))]
    for (test, fraction, protocol, (_, system), readout, checkpoint), found in rows.items():
        seeds = max(len(of_metric) for of_metric in found.values())
        share = "" if fraction is None else f"{100 * fraction:g} %"
        cells = [test, share, protocol, system, readout, checkpoint, str(seeds)]
        cells += [_cell(found.get(metric, [])) for metric in shown]
        table.append(table_row(cells))
    for test in dict.fromkeys(key[0] for key in rows):
        of_test = [line for line in lines if (line["test_set"] or line["dataset"]) == test]
        for label, share, cells in baseline_rows(of_test, shown):
            table.append(table_row([test, share, "", label, "", "", "", *cells]))
    over = " and ".join(sorted({line.get("interval_over") or "patients" for line in lines}))
    table += ["", f"Intervals are over {over}; n/a: there is none, for the reason below or in the result file."]
    reasons = {
        f"{line['metric']}: {line['interval_note']}"
        for line in lines
        if line["metric"] in shown and line.get("interval_note")
    }
    table += [f"* {sentence(reason)}" for reason in sorted(reasons)]
    return "\n".join(table)


def _checkpoint(line: Mapping[str, Any]) -> str:
    marked = CHOSEN_ON_TEST if line.get("selected_on") == "test" else ""
    return ", ".join(part for part in (checkpoint_label(line), marked) if part)


def _cell(lines: list[Mapping[str, Any]]) -> str:
    values = [line["value"] for line in lines if not np.isnan(line["value"])]
    if not values:
        return "not defined"
    spread = f" ± {np.std(values, ddof=1):.3f}" if len(values) > 1 else ""
    low, high = (np.mean([line[end] for line in lines]) for end in ("ci_lo", "ci_hi"))
    interval = " [n/a]" if np.isnan(low) else f" [{low:.3f}, {high:.3f}]"
    baseline = float(np.mean([line["trivial_baseline"] for line in lines]))
    mark = "" if above_baseline(lines[0]["metric"], low, high, baseline) else f" {MARK}"
    return f"{np.mean(values):.3f}{spread}{interval}{mark}"


__all__ = ["headline_table", "positive_sentence", "summarize"]
