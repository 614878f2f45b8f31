"""What a series of runs found, as a table for the terminal: means over seeds, each with an interval."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from .classification import RunList

HEADLINES = {
    "classification": ("auroc", "auprc", "accuracy", "f1"),
    "few_shot": ("auroc", "accuracy"),
    "zero_shot": ("auroc", "accuracy", "f1"),
    "retrieval": ("image_to_text_recall@1", "image_to_text_recall@10", "text_to_image_recall@10", "mean_recall"),
    "segmentation": ("dice_reference", "dice_positive", "dice_pooled", "auroc_any_mask"),
}
"""Metrics of the terminal's table; all of them are in the result files."""


def summarize(runs: RunList) -> str:
    """Markdown of the runs' headline metrics, and how many runs were skipped or failed."""
    parts = [headline_table(runs.lines)] if runs.lines else []
    if any(str(line["dataset"]).startswith("phantom") for line in runs.lines):
        parts.append("Phantoms: these numbers show that the machinery works, and nothing about patients.")
    if runs.skipped:
        parts.append(f"{runs.skipped} runs were finished before and not made again.")
    parts += [f"Not run: {reason}" for reason in runs.failed]
    return "\n\n".join(parts) or "No run."


def headline_table(lines: Sequence[Mapping[str, Any]]) -> str:
    """One row a system, test set, recipe and fraction: mean and deviation over seeds, and the interval over patients
    (mean of the seeds' intervals)."""
    metrics = HEADLINES.get(lines[0]["task"], ())
    rows: dict[tuple, dict[str, list]] = {}
    for line in lines:
        if line["metric"] in metrics:
            key = (line["test_set"] or line["dataset"], line["fraction"], line["recipe"] or "", line["system"])
            key = (*key, line["protocol"])
            rows.setdefault(key, {}).setdefault(line["metric"], []).append(line)
    shown = [metric for metric in metrics if any(metric in row for row in rows.values())]
    head = ["test set", "fraction", "recipe", "system", "protocol", "seeds", *shown]
    table = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for (test, fraction, recipe, system, protocol), found in rows.items():
        seeds = max(len(of_metric) for of_metric in found.values())
        share = "" if fraction is None else f"{100 * fraction:g} %"
        cells = [test, share, recipe, system, protocol, str(seeds), *(_cell(found.get(metric, [])) for metric in shown)]
        table.append("| " + " | ".join(cells) + " |")
    trivial = [_mean(line["trivial_baseline"] for line in lines if line["metric"] == metric) for metric in shown]
    table.append("| " + " | ".join(["", "", "", "trivial baseline", "", "", *trivial]) + " |")
    over = " and ".join(sorted({line.get("interval_over") or "patients" for line in lines}))
    table += ["", f"[95 % interval over {over}; n/a: none, see interval_note in the result file]"]
    reasons = {
        f"{line['metric']}: {line['interval_note']}"
        for line in lines
        if line["metric"] in shown and line.get("interval_note")
    }
    table += [f"* {reason}" for reason in sorted(reasons)]
    return "\n".join(table)


def _mean(values: Iterable[float]) -> str:
    known = [value for value in values if not np.isnan(value)]
    return f"{np.mean(known):.3f}" if known else ""


def _cell(lines: list[Mapping[str, Any]]) -> str:
    values = [line["value"] for line in lines if not np.isnan(line["value"])]
    if not values:
        return "not defined"
    spread = f" ± {np.std(values, ddof=1):.3f}" if len(values) > 1 else ""
    low, high = (np.mean([line[end] for line in lines]) for end in ("ci_lo", "ci_hi"))
    interval = " [n/a]" if np.isnan(low) else f" [{low:.3f}, {high:.3f}]"
    return f"{np.mean(values):.3f}{spread}{interval}"


__all__ = ["HEADLINES", "headline_table", "summarize"]
