"""Finished runs by group and by study: gaps between sexes, ages, views or any column, and one score a study."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..data.demographics import Ages, age_years, is_age_column, is_sex_column, read_ages, sex_groups
from ..data.missing import is_missing
from .classification import SINGLE
from .naming import CHOSEN_ON_TEST, CHOSEN_ON_TEST_NOTE, row_label
from .predictions import PREDICTIONS_FILE, Predictions, load_predictions
from .scoring import score_predictions
from .subgroups import AGE_EDGES, Subgroups, age_bands, aggregate_rows, subgroup_metrics
from .tables import ROW_FIELDS, Table, table_titles
from .tasks import tasks_with
from .weighted import weighted_auroc

MAX_GROUPS = 20
_NO_GROUPS = ("image_id", "patient_id", "study_id", "target", "score")
_NOTES = [
    "AUROC of each group, mean over seeds, 95 % intervals over patients.",
    "Gap: best group minus worst, with these two held fixed. They were picked from these very rows: of two groups the "
    "interval is an ordinary one, of many the largest gap is large by chance as well.",
]


def group_columns(predictions: Predictions) -> dict[str, list]:
    """
    Columns of predictions that make groups: ages as bands, sexes as F, M and O whatever their spelling, and any other
    column of 2 to 20 values, unknown ones aside.
    """
    found = {}
    for name, values in predictions.columns.items():
        if name in _NO_GROUPS or values.ndim != 1:
            continue
        groups = _groups(name, values.tolist())
        if 2 <= len({str(value).strip() for value in groups if not is_missing(value)}) <= MAX_GROUPS:
            found[name] = groups
    return found


def group_notes(predictions: Predictions) -> list[str]:
    """A sentence a column of ages whose values are not all numbers of years: what became of the others."""
    notes = []
    for name, values in predictions.columns.items():
        if values.ndim == 1 and (ages := _ages(name, values.tolist())) is not None:
            said = ages.notes(f"those from {AGE_EDGES[-1]} on are in the band {AGE_EDGES[-1]}+, the others unknown")
            notes += [f"{name}: {note}" for note in said]
    return notes


def _groups(name: str, values: list) -> list:
    if (ages := _ages(name, values)) is not None:
        # Of an age without upper end only the top band is sure.
        tops = [low if low is not None and low >= AGE_EDGES[-1] else None for low in ages.lowest]
        return age_bands([top if years is None else years for years, top in zip(ages.years, tops, strict=True)])
    return sex_groups(values) if is_sex_column(name) else values


def _ages(name: str, values: list) -> Ages | None:
    """Ages of a column that its name and most of its values make one; bands such as "40-59" stay groups."""
    if not is_age_column(name):
        return None
    ages = read_ages(values)
    known = len(values) - sum(map(is_missing, values))
    return ages if 2 * sum(age is not None for age in ages.years) >= known else None


def seed_subgroups(predictions: Sequence[Predictions], column: str, label: int = 0) -> Subgroups:
    """
    AUROC of one label within the groups of a column, mean over runs of several seeds.

    Args:
        predictions (`Sequence[Predictions]`): Of classification, one a seed, on the same test images.
        column (`str`): One that `group_columns` gives.
        label (`int`, defaults to 0): Column of the scores; of exclusive classes, that class against the others.

    Raises:
        ValueError: other images in one of the runs, or a column that makes no groups.
    """
    first = predictions[0]
    groups = group_columns(first)
    if column not in groups:
        raise ValueError(f"The column {column!r} makes no groups here. There are: {', '.join(groups) or 'none'}.")
    if any(one.columns["image_id"].tolist() != first.columns["image_id"].tolist() for one in predictions):
        raise ValueError("The runs are not of the same test images in the same order.")
    scores = np.stack([_two_dimensional(one.columns["score"])[:, label] for one in predictions], axis=1)
    target = first.columns["target"]
    if _exclusive(first):
        target = (target == label).astype(np.float64)
    truth = _two_dimensional(target)[:, label if target.ndim == 2 else 0]

    def mean_auroc(rows: np.ndarray, labels: np.ndarray, weights: np.ndarray) -> np.ndarray:
        chosen = scores[rows.astype(np.int64)]
        return np.mean([weighted_auroc(values, labels, weights) for values in chosen.T], axis=0)

    return subgroup_metrics(
        np.arange(len(first)), truth, groups[column], first.patients, metric=mean_auroc,
        num_resamples=first.settings["num_resamples"], seed=first.settings["bootstrap_seed"],
    )  # fmt: skip


def subgroup_tables(lines: Iterable[Mapping[str, Any]], columns: Sequence[str] = ()) -> list[Table]:
    """
    One table a data set, task and test set: a row a kind of run, label and column. Of runs at several fractions, those
    at the largest one. Few-shot runs are left out.

    Args:
        lines (`Iterable[Mapping]`): As of `read_results`, with the folders of their runs.
        columns (`Sequence[str]`): Of the predictions; all that make groups by default.

    Raises:
        ValueError: a column that no run has.
    """
    tables: dict[tuple, list[list[str]]] = {}
    notes: dict[tuple, dict[str, None]] = {}
    known: set[str] = set()
    for runs in _kinds(lines).values():
        # A seed that was chosen on the test split marks them all.
        fields = max((line for _, line in runs), key=lambda line: line.get("selected_on") == "test")
        loaded = [load_predictions(folder) for folder, _ in runs]
        there = group_columns(loaded[0])
        known |= there.keys()
        key = tuple(fields.get(name) for name in ("dataset", "test_set", "task"))
        rows = tables.setdefault(key, [])
        notes.setdefault(key, {}).update(dict.fromkeys(group_notes(loaded[0])))
        for column in (name for name in there if name in columns or not columns):
            for number, label in enumerate(_label_names(loaded[0])):
                found = seed_subgroups(loaded, column, number)
                name = f"{row_label(fields)}, split {fields['split_hash']}"
                rows.append([name, str(len(loaded)), label, column, *_cells(found)])
    if missing := [name for name in columns if name not in known]:
        raise ValueError(f"No run has groups by {', '.join(missing)}. There are: {', '.join(sorted(known)) or 'none'}.")
    head = ["run", "seeds", "label", "column", "groups", "gap", "worst"]
    made = []
    for key, rows in sorted(tables.items(), key=str):
        if rows:
            name, title = table_titles(*key)
            said = [*_NOTES, *notes[key]] + [CHOSEN_ON_TEST_NOTE] * any(CHOSEN_ON_TEST in row[0] for row in rows)
            made.append(Table(f"subgroups_{name}", f"{title} by group", head, rows, said))
    return made


def study_predictions(predictions: Predictions, *, how: str = "mean") -> Predictions:
    """
    Predictions of studies from those of their images. Thresholds stay those that were chosen for images.

    Args:
        predictions ([`Predictions`]): Of classification, with a column `study_id`.
        how (`str`, defaults to `"mean"`): `"mean"` or `"max"` of the scores.

    Raises:
        ValueError: no studies are known, or images of a study differ in label or patient.
    """
    if predictions.kind != "classification" or "study_id" not in predictions.columns:
        raise ValueError("Only classification of images with a study_id can be scored by study.")
    columns = predictions.columns
    ids = columns["study_id"]
    scores, labels, names = aggregate_rows(columns["score"], columns["target"], ids, how=how)
    places = {str(study): row for row, study in reversed(list(enumerate(ids.tolist())))}
    first = np.array([places[str(name)] for name in names])
    patients = columns["patient_id"]
    if wrong := [row for row, study in enumerate(ids.tolist()) if patients[row] != patients[places[str(study)]]]:
        raise ValueError(f"{len(wrong)} images have a study of another patient, the first in row {wrong[0]}.")
    kept = {"image_id": names.astype(object), "patient_id": patients[first], "target": labels, "score": scores}
    return Predictions("classification", kept, dict(predictions.settings))


def study_lines(lines: Iterable[Mapping[str, Any]], *, how: str = "mean") -> list[dict[str, Any]]:
    """
    Result lines by study of all classification runs whose images have studies; they are not written anywhere.

    Raises:
        ValueError: no such run, or as of `study_predictions`.
    """
    found = []
    for folder, line in _first_lines(lines).items():
        predictions = load_predictions(folder)
        if predictions.kind == "classification" and "study_id" in predictions.columns:
            studies = study_predictions(predictions, how=how)
            counts = {
                "n_test": len(studies),
                "n_patients": studies.num_patients,
                "interval_over": studies.interval_over,
            }
            found += [dict(line) | counts | vars(score) for score in score_predictions(studies)]
    if not found:
        raise ValueError("No classification run has a column study_id: nothing can be scored by study.")
    return found


def _kinds(lines: Iterable[Mapping[str, Any]]) -> dict[tuple, list[tuple[Path, Mapping[str, Any]]]]:
    """Folders of the classification runs of a kind, and a line of each, by seed; of fractions the largest."""
    kinds: dict[tuple, list] = {}
    for folder, line in _first_lines(lines).items():
        if line["task"] in tasks_with(by_image=True):
            kind = tuple((name, line.get(name)) for name in ROW_FIELDS if name != "fraction")
            kinds.setdefault(kind, []).append((line.get("fraction") or 0, line["seed"], folder, line))
    largest = {kind: max(fraction for fraction, *_ in runs) for kind, runs in kinds.items()}
    return {
        kind: [(folder, line) for fraction, _, folder, line in sorted(runs, key=lambda run: run[:2]) if fraction == top]
        for (kind, runs), top in zip(kinds.items(), largest.values(), strict=True)
    }


def _first_lines(lines: Iterable[Mapping[str, Any]]) -> dict[Path, Mapping[str, Any]]:
    """A line of each run that has its predictions, by folder."""
    found: dict[Path, Mapping[str, Any]] = {}
    for line in lines:
        folder = Path(line["folder"])
        if folder not in found and (folder / PREDICTIONS_FILE).is_file():
            found[folder] = line
    return found


def _cells(found: Subgroups) -> list[str]:
    groups = []
    for group in found.groups:
        value = "not defined" if np.isnan(group.value) else f"{group.value:.3f}"
        if not np.isnan(group.ci_lo):
            value += f" [{group.ci_lo:.3f}, {group.ci_hi:.3f}]"
        groups.append(f"{group.name} {value} (n {group.rows}, {group.positives} positive)")
    gap = "" if np.isnan(found.gap) else f"{found.gap:.3f} [{found.gap_lo:.3f}, {found.gap_hi:.3f}]"
    return ["; ".join(groups), gap, found.worst or ""]


def _label_names(predictions: Predictions) -> list[str]:
    count = _two_dimensional(predictions.columns["score"]).shape[1]
    return [str(name) for name in predictions.settings.get("class_names") or range(count)][:count]


def _exclusive(predictions: Predictions) -> bool:
    scores = predictions.columns["score"]
    return predictions.settings["problem_type"] == SINGLE and scores.ndim == 2 and scores.shape[1] > 1


def _two_dimensional(values: np.ndarray) -> np.ndarray:
    return values[:, None] if values.ndim == 1 else values


_number = age_years

__all__ = ["group_columns", "group_notes", "seed_subgroups", "study_lines", "study_predictions", "subgroup_tables"]
