"""The figures of a report: which runs are drawn, and what is left out because nothing is shown to be learned."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from .classification import SINGLE
from .curves import Curve, draw_curves
from .figures import draw_parameters, draw_reliability, file_name
from .naming import mark_targets, row_parts, rows_in_words, shared_parts
from .predictions import PREDICTIONS_FILE, Predictions, load_predictions
from .tables import ROW_FIELDS, Cell
from .tasks import tasks_with


def draw_all(
    lines: Sequence[Mapping[str, Any]], cells: Sequence[Cell], folder: Path, published: Mapping[str, Any] | None
) -> tuple[list[Path], list[str]]:
    """
    Draw parameters against performance, reliability, and the ROC and precision-recall curves of each label.

    A figure is left out where no run in it is better than its trivial baseline, by its whole interval: curves and
    reliability by the AUROC of what is drawn, parameters by the metric of the figure. No interval shows nothing.

    Args:
        lines (`Sequence[Mapping]`): As of `read_results`.
        cells (`Sequence[Cell]`): Of these.
        folder (`Path`): For the figures.
        published (`Mapping`, *optional*): Values that stand beside ours.

    Returns:
        `tuple[list[Path], list[str]]`: What was written, and a sentence for each figure that was left out.
    """
    folder.mkdir(parents=True, exist_ok=True)
    drawn, left_out = draw_parameters(cells, folder, published)
    by_run: dict[str, dict[str, Mapping[str, Any]]] = {}
    lines = [dict(line) for line in lines]
    mark_targets(lines)
    for line in lines:
        by_run.setdefault(line["run"], {})[line["metric"]] = line
    for key, runs in _groups(by_run.values()).items():
        where, split, task = key
        loaded = [load_predictions(_any(run)["folder"]) for run in runs]
        names = short_names([_any(run) for run in runs])
        drawn_of = {(_share(_any(run)), f"seed {_any(run)['seed']}") for run in runs}
        shared = "".join(f", {part}" for part in next(iter(drawn_of)) if part) if len(drawn_of) == 1 else ""
        stem = file_name(f"{where}_{split}_{task}")
        calibrated = [number for number, run in enumerate(runs) if not math.isnan(run["ece"]["value"])] if all(
            "ece" in run for run in runs) else []  # fmt: skip
        if calibrated:
            if any(learned(runs[number].get("auroc")) for number in calibrated):
                title = f"{where}, {task}, split {split}{shared}\n{rows_in_words(_any(runs[0]))}"
                drawn += draw_reliability({names[number]: loaded[number] for number in calibrated},
                                          folder / f"reliability_{stem}.png", title)  # fmt: skip
            else:
                left_out.append(f"reliability on {where}, {task}, split {split}: no run's AUROC is above chance.")
        for label, name, metric in _labels(loaded[0]):
            areas = [run.get(f"auroc{metric}") for run in runs]
            what = f"{name} on {where}, {task}, split {split}"
            if not any(map(learned, areas)):
                left_out.append(f"curves of {what}: no run's AUROC has an interval above 0.5.")
                continue
            curves = [
                Curve(name_of, *_of_label(one, label), _value(area), _value(run.get(f"auprc{metric}")))
                for name_of, one, run, area in zip(names, loaded, runs, areas, strict=True)
            ]
            known = ~np.isnan(curves[0].truth)
            patients = len(np.unique(loaded[0].patients[known]))
            count = {"n_test": int(known.sum()), "n_patients": patients}
            count["interval_over"] = _any(runs[0]).get("interval_over")
            title = f"{what}{shared}\n{rows_in_words(count)}, {int(curves[0].truth[known].sum())} positive"
            drawn += draw_curves(curves, title, folder / f"curves_{stem}_{file_name(name)}")
    return drawn, left_out


def learned(line: Mapping[str, Any] | None) -> bool:
    """Whether the whole interval of a line is above its trivial baseline; of a metric that is better when higher."""
    return line is not None and line["ci_lo"] > line["trivial_baseline"]


def short_names(lines: Sequence[Mapping[str, Any]]) -> list[str]:
    """Names of runs that say only what differs between them, fraction and seed last."""
    parts = [row_parts(line) | {"fraction": _share(line), "seed": f"seed {line['seed']}"} for line in lines]
    shared = shared_parts(parts)
    return [", ".join(part for name, part in one.items() if part and name not in shared) for one in parts]


def _share(line: Mapping[str, Any]) -> str:
    return f"{100 * line['fraction']:g} % of the training rows" if line.get("fraction") else ""


def _groups(runs: Iterable[dict[str, Mapping[str, Any]]]) -> dict[tuple, list[dict[str, Mapping[str, Any]]]]:
    """
    Runs by test set, split with targets where there are several, and task: of each kind the first seed at its largest
    fraction, Adaptors first.
    """
    chosen: dict[tuple, dict[str, Mapping[str, Any]]] = {}
    for run in runs:
        line = _any(run)
        if line["task"] in tasks_with(by_image=True) and (Path(line["folder"]) / PREDICTIONS_FILE).is_file():
            kind = tuple(line.get(name) for name in ROW_FIELDS if name != "fraction")
            if kind not in chosen or _rank(line) > _rank(_any(chosen[kind])):
                chosen[kind] = run
    groups: dict[tuple, list] = {}
    for run in chosen.values():
        line = _any(run)
        named = [line["split_hash"], *([line["targets"]] if line.get("targets") else [])]
        key = (str(line.get("test_set") or line["dataset"]), ", ".join(named), line["task"])
        groups.setdefault(key, []).append(run)
    return {key: sorted(groups[key], key=_place) for key in sorted(groups)}


def _rank(line: Mapping[str, Any]) -> tuple:
    return line.get("fraction") or 0, -line["seed"]


def _place(run: Mapping[str, Mapping[str, Any]]) -> tuple:
    line = _any(run)
    return line.get("module") != "adaptor", *(str(line.get(name)) for name in ROW_FIELDS)


def _any(run: Mapping[str, Mapping[str, Any]]) -> Mapping[str, Any]:
    return next(iter(run.values()))


def _labels(predictions: Predictions) -> list[tuple[int, str, str]]:
    """Column, name and ending of the metrics' names of each label."""
    scores = predictions.columns["score"]
    count = scores.shape[1] if scores.ndim == 2 else 1
    names = [str(name) for name in predictions.settings.get("class_names") or range(count)]
    if count == 1:
        return [
            (0, str(predictions.settings.get("positive_class") or (names[-1] if names != ["0"] else "positive")), "")
        ]
    return [(number, name, f"/{name}") for number, name in enumerate(names)]


def _of_label(predictions: Predictions, label: int) -> tuple[np.ndarray, np.ndarray]:
    scores, target = predictions.columns["score"], predictions.columns["target"]
    if scores.ndim == 2 and scores.shape[1] > 1 and predictions.settings["problem_type"] == SINGLE:
        return scores[:, label], (target == label).astype(np.float64)
    scores, target = (values.reshape(len(predictions), -1).astype(np.float64) for values in (scores, target))
    return scores[:, label], target[:, label]


def _value(line: Mapping[str, Any] | None) -> str:
    if line is None or math.isnan(line["value"]):
        return "not defined"
    interval = "(no interval)" if math.isnan(line["ci_lo"]) else f"[{line['ci_lo']:.3f}, {line['ci_hi']:.3f}]"
    return f"{line['value']:.3f} {interval}"


__all__ = ["draw_all", "learned", "short_names"]
