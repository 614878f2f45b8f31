"""Rules on the rows that a loader found: files that are there, no repeats, what the task needs, a split each."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from .archives import container
from .boxes import box_fault
from .catalog import ROW_TASKS, LoadedRows, PublicDataset, Request
from .files import list_files, outside_root
from .ids import check_ids
from .label_columns import check_class_names
from .labels import apply_policy, label_strata
from .public_report import FAULT_EXAMPLES, LoadReport
from .splits import SPLITS, split_groups
from .stratified import patient_groups

if TYPE_CHECKING:
    import pandas as pd


def check_files(loaded: LoadedRows, root: Path, report: LoadReport) -> None:
    """
    Drop rows whose image or mask file is missing or has zero bytes, found by one scan of the folders they name.

    Raises:
        ValueError: A path leads out of the root.
        FileNotFoundError: Not one of the images is there.
    """
    rows = loaded.rows
    stored = rows["image"].map(lambda value: isinstance(value, dict)).to_numpy(dtype=bool)
    nothing = rows["image"].isna().to_numpy()
    report.drop("no image", nothing.sum())
    paths = rows["image"].where(~stored & ~nothing)
    masks = _mask_files(rows)
    files = [paths.dropna(), masks]
    for column in files:
        column[:] = _containers(column)
        outside = outside_root(column)
        if outside.any():
            place = outside.to_numpy().argmax()
            raise ValueError(
                f"{_source(rows, column.index[place])}: the path {column.iloc[place]!r} leads out of the data set's "
                "folder. Expected a path relative to the root, without '..'."
            )
    names = [name for column in files for name in column.unique()]
    folders = sorted({name.partition("/")[0] if "/" in name else "." for name in names})
    suffixes = {os.path.splitext(name)[1].lower() for name in names}
    index = list_files(root, ["."] if "." in folders else folders, None if "" in suffixes else sorted(suffixes))
    report.files_found = len(index)
    faulty = np.zeros(len(rows), bool)
    for column, what in zip(files, ("image", "mask"), strict=True):
        sizes = column.map(index.sizes)
        for bad, state in ((sizes.isna(), "missing"), (sizes == 0, "empty")):
            if bad.all() and len(bad) and what == "image":
                raise FileNotFoundError(
                    f"None of the {len(column)} image files is {'there' if state == 'missing' else 'more than 0 bytes'}"
                    f" under {root}. The first is {column.iloc[0]}. Is this the right root, and is the download "
                    "complete and unpacked?"
                )
            wrong = column[bad]
            positions = rows.index.get_indexer(wrong.index.unique())
            new = positions[~faulty[positions]]
            faulty[new] = True
            report.missing_files += len(new) * (state == "missing")
            report.empty_files += len(new) * (state == "empty")
            expected = "found no such file" if state == "missing" else "found 0 bytes"
            report.fault(
                len(new),
                [
                    f"{_source(rows, label)}: expected the {what} {name}, {expected}"
                    for label, name in wrong.iloc[:FAULT_EXAMPLES].items()
                ],
            )
    report.drop("file missing or of zero bytes", (faulty & ~nothing).sum())
    loaded.rows = rows[~faulty & ~nothing]


def check_faults(report: LoadReport, rows: int, max_fault_share: float) -> None:
    """
    Stop a load with too many faults.

    Raises:
        ValueError: More than `max_fault_share` of the rows are faulty. The message has counts and examples.
    """
    if report.faults <= max_fault_share * rows:
        return
    examples = "".join(f"\n  {example}" for example in report.fault_examples)
    raise ValueError(
        f"{report.dataset}: {report.faults} of {rows} rows are faulty ({report.missing_files} files missing, "
        f"{report.empty_files} of zero bytes, {report.faults - report.missing_files - report.empty_files} others), "
        f"over the share of {max_fault_share:g} that is tolerated. Is the download complete? To load what is there, "
        f"pass max_fault_share={min(1.0, np.ceil(100 * report.faults / rows) / 100):g} or more. Examples:{examples}"
    )


def drop_repeats(loaded: LoadedRows, report: LoadReport) -> None:
    """
    Drop rows that repeat an earlier one, and all rows of an image whose class labels contradict each other.

    For classification an image counts once: of rows that agree in the labels the first stays, whatever else they say.
    If that is the patient's id, the ids of an image are those of one patient, and become the first of them.
    """
    rows = loaded.rows
    if len(rows) == 0:
        return
    keys = [name for name in ("image", "image_id", "split") if name in rows]
    simple = rows[keys].astype(str) if rows["image"].map(lambda value: isinstance(value, dict)).any() else rows[keys]
    repeated = simple.duplicated(keep=False)
    if not repeated.any():
        return
    values = [name for name in rows if name not in ("source", *keys)]
    cells = rows.loc[repeated, values].map(str)
    exact = cells.assign(**simple[repeated]).duplicated()
    dropped = exact.index[exact]
    report.drop("repeats an earlier row", len(dropped))
    if report.task == "classification":
        left = cells[~exact].assign(**simple[repeated])
        left = left[left.duplicated(keys, keep=False)]
        labels = [name for name in (loaded.label_names or ["labels"]) if name in left]
        clash = (left.groupby(keys, dropna=False)[labels].transform("nunique") > 1).any(axis=1)
        clashing, agreeing = left.index[clash], left[~clash]
        report.drop("labels of one image contradict each other", len(clashing))
        if len(clashing):
            report.fault(
                len(clashing),
                [f"{_source(rows, label)}: the image has other labels elsewhere" for label in clashing],
            )
        again = agreeing.index[agreeing.duplicated(keys)]
        report.drop("the image has these labels in an earlier row", len(again))
        if "patient_id" in agreeing:
            rows = _one_patient_an_image(rows, agreeing.groupby(keys, dropna=False).groups.values(), report)
        dropped = dropped.append([clashing, again])
    loaded.rows = rows.drop(dropped)


def _one_patient_an_image(rows: pd.DataFrame, images: Iterable[pd.Index], report: LoadReport) -> pd.DataFrame:
    """Give the ids that one image is listed under, row labels an image, the name of the first of them everywhere."""
    first: dict = {}

    def name_of(patient):
        while patient in first:
            patient = first[patient]
        return patient

    for labels in images:
        names = list(dict.fromkeys(name_of(patient) for patient in rows.loc[labels, "patient_id"].dropna()))
        first |= dict.fromkeys(names[1:], names[0] if names else None)
    if not first:
        return rows
    report.notes.append(
        f"{len(first)} patient ids are another id of a patient: one image is listed under both. Each patient has one "
        "id here, so that a split keeps the images of a patient together."
    )
    return rows.assign(patient_id=rows["patient_id"].map(name_of))


def check_task(loaded: LoadedRows, report: LoadReport, policy: str) -> None:
    """
    Apply the label policy and drop rows without what the task needs.

    Raises:
        ValueError: The loader gave no such column, a policy on classes, a malformed box, or no row is left.
    """
    import pandas as pd

    rows, need = loaded.rows, ROW_TASKS[report.task]
    if loaded.label_names is not None:
        # The loader may share the frame with others.
        rows = rows.copy(deep=False)
        rows[loaded.label_names] = apply_policy(rows[loaded.label_names], policy)
        known = rows[loaded.label_names].notna().any(axis=1)
    elif loaded.class_names is not None:
        known = rows["labels"].notna()
    else:
        known = None
    if loaded.label_names is None and policy != "raw":
        raise ValueError(f"{report.dataset} has no uncertain labels: label_policy {policy!r} would have no effect.")
    check_class_names(loaded.label_names or loaded.class_names or (), report.dataset)
    if need == "labels":
        if known is None:
            raise ValueError(f"{report.dataset}: the loader gave no labels for classification.")
        kept = known
    elif need in rows:
        kept = rows[need].notna()
    else:
        kept = pd.Series(loaded.shared["sentences"].is_valid().to_numpy()[rows["shared"]], index=rows.index)
    if "boxes" in rows:
        _check_boxes(rows)
    report.drop({"labels": "no label", "text": "no text", "boxes": "not annotated", "mask": "not annotated"}[need],
                (~kept).sum())  # fmt: skip
    loaded.rows = rows[kept]
    if len(loaded.rows) == 0:
        raise ValueError(
            f"{report.dataset}: no row is left for {report.task}. {report.table_rows} rows in the tables; left out: "
            f"{report.dropped}."
        )


def check_patients(loaded: LoadedRows, ids: str | None) -> None:
    """
    Check that no patient's id is written in two ways.

    Raises:
        ValueError: One is, and `ids` does not say what that means; or a spreadsheet has rounded ids.
    """
    if "patient_id" not in loaded.rows:
        return
    given = [value if isinstance(value, str) else None for value in loaded.rows["patient_id"]]
    checked = check_ids(given, what="patient_id, rows counted after those left out", mode=ids)
    if checked != given:
        loaded.rows = loaded.rows.assign(patient_id=checked)


def row_strata(loaded: LoadedRows) -> pd.Series:
    """What fractions are stratified by: the loader's `stratum`, the class, the rarest label, or any box."""
    import pandas as pd

    rows = loaded.rows
    if "stratum" in rows:
        return rows["stratum"].fillna("").astype(str)
    if loaded.class_names is not None:
        return rows["labels"].map(lambda code: "" if code is None or code != code else loaded.class_names[int(code)])
    if loaded.label_names is not None:
        return label_strata(rows[loaded.label_names])
    if "boxes" in rows:
        return rows["boxes"].map(lambda boxes: "boxes" if boxes is not None and len(boxes) else "")
    return pd.Series("", index=rows.index, dtype=object)


def assign_split(
    loaded: LoadedRows, dataset: PublicDataset, request: Request, report: LoadReport, shares: dict
) -> None:
    """
    A split for each row, and the counts of patients in several of them.

    Raises:
        ValueError: Patients are in several splits of a scheme that is not known to leak.
    """
    rows = loaded.rows.copy(deep=False)
    if request.split_scheme == "patient":
        # Not stratified: it would hang on the rows, and two tasks on one data set have other rows.
        rows["split"] = split_groups(patient_groups(rows).tolist(), **shares, seed=request.seed)
    else:
        strange = set(rows["split"].dropna()) - set(SPLITS)
        if strange:
            raise ValueError(f"{dataset.name}: unknown splits {sorted(strange)}, expected {', '.join(SPLITS)}.")
        report.drop(f"in no part of the split {request.split_scheme!r}", rows["split"].isna().sum())
        rows = rows[rows["split"].notna()].copy(deep=False)
        _carve_validation(rows, request, report, shares["validation_fraction"])
    loaded.rows = rows
    report.leak = dataset.leaks.get(request.split_scheme)
    report.rows_without_patient = int(rows["patient_id"].isna().sum()) if "patient_id" in rows else len(rows)
    if report.rows_without_patient:
        report.notes.append(
            f"{report.rows_without_patient} of {len(rows)} rows have no patient id: overlap of their splits cannot be "
            "checked."
        )
    report.overlaps = patient_overlaps(rows)
    if report.overlaps and report.leak is None:
        counts = ", ".join(f"{count} in {names}" for names, count in report.overlaps.items())
        raise ValueError(
            f"{dataset.name}: patients are in several parts of the split {request.split_scheme!r}: {counts}. Held-out "
            "results would be too good. Are the tables those of the release? split_scheme='patient' splits anew."
        )


def patient_overlaps(rows: pd.DataFrame) -> dict[str, int]:
    """Number of patients in both of two splits, for the pairs of splits that share any."""
    if "patient_id" not in rows:
        return {}
    patients = {name: set(part["patient_id"].dropna()) for name, part in rows.groupby("split")}
    pairs = [(a, b) for place, a in enumerate(SPLITS) for b in SPLITS[place + 1 :] if a in patients and b in patients]
    shared = {f"{a} and {b}": len(patients[a] & patients[b]) for a, b in pairs}
    return {names: count for names, count in shared.items() if count}


def _carve_validation(rows: pd.DataFrame, request: Request, report: LoadReport, share: float) -> None:
    """Take a validation part from the training patients of a split that has none."""
    training = (rows["split"] == "train").to_numpy()
    if (rows["split"] == "validation").any() or not training.any() or not share:
        return
    groups = patient_groups(rows[training]).tolist()
    taken = np.array(split_groups(groups, validation_fraction=share, test_fraction=0.0, seed=request.seed))
    rows.loc[training, "split"] = taken
    report.notes.append(
        f"The split {request.split_scheme!r} has no validation part: {int((taken == 'validation').sum())} training "
        f"rows became one, by patient ({share:g} of the patients, seed {request.seed})."
    )


def _check_boxes(rows: pd.DataFrame) -> None:
    for label, boxes in rows["boxes"].items():
        if boxes is None:
            continue
        boxes = np.asarray(boxes, dtype=np.float64).reshape(-1, 4) if not len(boxes) else np.asarray(boxes, np.float64)
        if boxes.ndim != 2 or boxes.shape[1] != 4:
            raise ValueError(f"{_source(rows, label)}: boxes of shape {boxes.shape}, expected (n, 4).")
        for box in boxes:
            if fault := box_fault(box):
                raise ValueError(f"{_source(rows, label)}: {fault}")
        numbers = rows.at[label, "box_labels"] if "box_labels" in rows else None
        if numbers is not None and len(numbers) != len(boxes):
            raise ValueError(f"{_source(rows, label)}: {len(boxes)} boxes and {len(numbers)} box labels.")


def _mask_files(rows: pd.DataFrame) -> pd.Series:
    """Paths of mask files, with the label of their row; of several candidates all."""
    import pandas as pd

    if "mask" not in rows:
        return pd.Series([], dtype=object)
    from .masks import mask_paths

    return rows["mask"].map(mask_paths).explode().dropna()


def _containers(paths: pd.Series) -> pd.Series:
    """The file of each path: itself, or the archive that it is in."""
    inside = paths.str.contains("::", regex=False).to_numpy(dtype=bool) if len(paths) else np.zeros(0, bool)
    return paths.where(~inside, paths.map(container)) if inside.any() else paths


def _source(rows: pd.DataFrame, label) -> str:
    where = rows.at[label, "source"] if "source" in rows else None
    return where if isinstance(where, str) else f"row {label}"


__all__ = [
    "assign_split",
    "check_faults",
    "check_files",
    "check_task",
    "drop_repeats",
    "patient_overlaps",
    "row_strata",
]
