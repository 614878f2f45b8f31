"""`load_public_dataset`: a public data set that lies on disk as it was published, as a `DatasetDict`."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import datasets
import numpy as np

from ..moved import warn_of
from .catalog import LoadedRows, PublicDataset, Request, get_dataset
from .features import RadiographImage
from .files import recorded_inputs
from .fractions import FRACTION_RULES, fraction_mask
from .ids import check_mode
from .labels import LABEL_POLICIES
from .public_boxes import fit_boxes
from .public_cache import cache_folder, read_cached, write_cached
from .public_columns import CHUNK_ROWS, contract_features, contract_table
from .public_report import LoadReport
from .public_rows import assign_split, check_faults, check_files, check_patients, check_task, drop_repeats, row_strata
from .reading import IMAGE_MODES, Reading
from .splits import DEFAULT_SEED, hash_of_split
from .value_range import check_percentile

if TYPE_CHECKING:
    import pyarrow as pa

logger = logging.getLogger(__name__)


def load_public_dataset(
    name: str,
    root: str | os.PathLike,
    task: str | None = None,
    split_scheme: str = "official",
    fraction: float = 1.0,
    fraction_rule: str = "nested",
    label_policy: str = "raw",
    seed: int = DEFAULT_SEED,
    *,
    validation_fraction: float = 0.1,
    test_fraction: float = 0.1,
    max_fault_share: float | None = None,
    num_proc: int | None = None,
    cache_dir: str | os.PathLike | None = None,
    refresh: bool = False,
    voi_lut: bool = False,
    ids: str | None = None,
    image_mode: str = "auto",
    range_percentile: float = 0.0,
    **options: Any,
) -> datasets.DatasetDict:
    """
    Load a public data set from the folder it was downloaded to. Images stay on disk and are read when a row is.

    Rows whose file is missing or has zero bytes, that repeat an earlier row, or that lack what the task needs are left
    out and counted (`describe`); too many faults stop the load. No patient is in two splits, except under a scheme of
    a reference code that is known to leak: that is said when it is chosen. Where a scheme has no validation part, one
    is taken from the training patients.

    The result is kept in the cache of `datasets` and opened again while the tables and the lists of files are
    unchanged.

    Args:
        name: Name of the data set, see `list_datasets`.
        root: Its folder.
        task: "pretraining", "classification", "detection" or "segmentation"; None takes the data set's first.
        split_scheme: "official" (where there is none: by patient), "patient" (whole patients by a hash of their ids,
            `validation_fraction` and `test_fraction` of them), or one that the data set names, such as "mgca".
        fraction: Share of the training rows in (0, 1].
        fraction_rule: How they are chosen: a key of `adaptor_hf.data.fractions.FRACTION_RULES`.
        label_policy: What blank and uncertain labels become: a key of `adaptor_hf.data.labels.LABEL_POLICIES`.
        seed: Of splits by patient and of nested fractions.
        max_fault_share: Share of faulty rows over which the load stops; None takes the data set's, mostly 0.05.
        num_proc: Processes that read many small files; None takes up to 8.
        cache_dir: Where results are kept; None takes the cache of `datasets`.
        refresh: Load anew, whatever is kept.
        voi_lut: Read DICOM files as displayed, see `read_image`; the column `image` carries it.
        ids: What patient ids in several spellings are, as in `load_pairs`; None stops at them.
        image_mode: "L" reads images as grey, "RGB" in colour; "auto" takes what the data set declares.
        range_percentile: Scale DICOM files from this percentile, not from minimum to maximum, see `read_image`.
        **options: The data set's own, see its page in docs/datasets.

    Returns:
        DatasetDict of "train", "validation" and "test", each only if it has rows. Columns: `image` (lazy), `image_id`,
        `patient_id`, `study_id`, `view` (None where unknown), `split`, `source` (file and row), and as the data set
        has them `text`, `sections`, `sentences`; `labels` (ClassLabel, or `MultiLabel`: a float32 list with NaN for
        unknown, `features["labels"].names`); `boxes` (float32 (n, 4), xyxy in pixels of the image) and `box_labels`;
        `mask` (lazy, of the image's size); `sex`, `age`.

    Raises:
        FileNotFoundError: A table is not in `root`, or none of the images is.
        ValueError: An unknown name, task, scheme, rule, policy or option; a table with another header or an impossible
            value; patient ids in several spellings; a path that leads out of `root`; too many faults; no rows. The
            message names file and row.
    """
    return load_with_report(
        name, root, task, split_scheme, fraction, fraction_rule, label_policy, seed,
        validation_fraction=validation_fraction, test_fraction=test_fraction, max_fault_share=max_fault_share,
        num_proc=num_proc, cache_dir=cache_dir, refresh=refresh, voi_lut=voi_lut, ids=ids, image_mode=image_mode,
        range_percentile=range_percentile, **options,
    )[0]  # fmt: skip


def load_with_report(
    name: str,
    root: str | os.PathLike,
    task: str | None = None,
    split_scheme: str = "official",
    fraction: float = 1.0,
    fraction_rule: str = "nested",
    label_policy: str = "raw",
    seed: int = DEFAULT_SEED,
    *,
    validation_fraction: float = 0.1,
    test_fraction: float = 0.1,
    max_fault_share: float | None = None,
    num_proc: int | None = None,
    cache_dir: str | os.PathLike | None = None,
    refresh: bool = False,
    voi_lut: bool = False,
    ids: str | None = None,
    image_mode: str = "auto",
    range_percentile: float = 0.0,
    **options: Any,
) -> tuple[datasets.DatasetDict, dict[str, Any]]:
    """`load_public_dataset` and its report: counts of rows, files, faults, patients and labels, as a dict."""
    dataset = get_dataset(name)
    request = _request(dataset, root, task, split_scheme, label_policy, seed, options, num_proc)
    if fraction_rule not in FRACTION_RULES:
        raise ValueError(f"Unknown fraction rule {fraction_rule!r}. Choose one of: {', '.join(FRACTION_RULES)}.")
    if image_mode not in IMAGE_MODES:
        raise ValueError(f"image_mode must be one of {', '.join(IMAGE_MODES)}, got {image_mode!r}.")
    check_percentile(range_percentile)
    if not 0 < fraction <= 1:
        raise ValueError(f"fraction is a share of the training rows in (0, 1], got {fraction}. For 10 % pass 0.1.")
    if max_fault_share is None:
        max_fault_share = dataset.max_fault_share
    shares = {"validation_fraction": validation_fraction, "test_fraction": test_fraction}
    settings = {
        "split_scheme": request.split_scheme,
        "fraction": fraction,
        "fraction_rule": fraction_rule,
        "label_policy": label_policy,
        "seed": seed,
        "options": request.options,
    }
    key = {"name": name, "root": str(request.root), "task": request.task, "faults": max_fault_share} | settings | shares
    if ids is not None:
        check_mode(ids)
        key["ids"] = ids
    folder = cache_folder(cache_dir, name, key)
    result = None if refresh else read_cached(folder)
    if result is None:
        with recorded_inputs() as inputs:
            report = LoadReport(dataset=name, task=request.task, **settings)
            loaded, strata = _load_rows(dataset, request, report, max_fault_share, shares, label_policy, ids)
            _thin_training(loaded, strata, report)
            report.count(loaded)
            features = contract_features(loaded)
            info = _info(dataset, features, report)
            parts = {split: _tables(loaded, split, features, request.root) for split in report.rows_per_split}
            result = write_cached(folder, parts, info, report.to_dict(), inputs), report.to_dict()
    _say(dataset, result[1])
    parts, report = result
    # The rows are the same either way, and kept once.
    reading = Reading(dataset.image_mode if image_mode == "auto" else image_mode, voi_lut, range_percentile)
    if dataset.image_mode == "RGB" and reading.mode == "L":
        logger.warning("%s: its images are in colour and are read as grey, as asked (image_mode=L).", name)
    if reading == Reading():
        return parts, report
    logger.info("%s: images are read as %s.", name, reading.label)
    return parts.cast_column("image", RadiographImage(**asdict(reading))), report


def describe(dataset: datasets.Dataset | datasets.DatasetDict) -> dict[str, Any]:
    """
    How a data set of `load_public_dataset` was loaded: name, task, split scheme and its hash, seed, fraction, policy,
    and counts of what was left out. No file, path or patient is in it: it may stand beside a result.

    Raises:
        ValueError: The data set does not come from `load_public_dataset`.
    """
    part = next(iter(dataset.values())) if isinstance(dataset, datasets.DatasetDict) else dataset
    try:
        return json.loads(part.info.description)
    except ValueError:
        raise ValueError("This data set does not say how it was loaded: it is not of load_public_dataset.") from None


def _request(
    dataset: PublicDataset,
    root: str | os.PathLike,
    task: str | None,
    split_scheme: str,
    label_policy: str,
    seed: int,
    options: dict[str, Any],
    num_proc: int | None,
) -> Request:
    """The request in full, checked."""
    root = Path(os.path.abspath(os.path.expanduser(root)))
    if not root.is_dir():
        state = "is not a folder" if root.exists() else "does not exist"
        raise FileNotFoundError(f"The root {root} {state}. Expected the folder of {dataset.title}.")
    schemes = tuple(dict.fromkeys((*dataset.split_schemes, "patient")))
    if split_scheme == "official" and "official" not in schemes:
        split_scheme = schemes[0]
    task = task or dataset.tasks[0]
    policies = tuple(dict.fromkeys(("raw", *dataset.label_policies)))
    for what, value, known in (
        ("task", task, dataset.tasks),
        ("split_scheme", split_scheme, schemes),
        ("label_policy", label_policy, policies),
    ):
        if value not in known:
            hint = f" {value!r} is for other data sets." if value in LABEL_POLICIES else ""
            raise ValueError(f"{dataset.name} has no {what} {value!r}. Choose one of: {', '.join(known)}.{hint}")
    if "recipe" in options and "sentences" in dataset.options:
        warn_of("the option recipe", "sentences", stacklevel=4)
        options = {"sentences": options["recipe"]} | {name: options[name] for name in options.keys() - {"recipe"}}
    if unknown := sorted(options.keys() - dataset.options.keys()):
        known = ", ".join(f"{name}={value!r}" for name, value in dataset.options.items()) or "none"
        raise ValueError(f"{dataset.name} has no option {', '.join(unknown)}. Its options and their defaults: {known}.")
    return Request(
        root=root,
        task=task,
        split_scheme=split_scheme,
        options={**dataset.options, **options},
        seed=seed,
        num_proc=num_proc or min(8, os.cpu_count() or 1),
    )


def _load_rows(
    dataset: PublicDataset,
    request: Request,
    report: LoadReport,
    max_fault_share: float,
    shares: dict[str, float],
    label_policy: str,
    ids: str | None,
):
    """Rows that passed all rules, each with a split, and their strata."""
    loaded = dataset.read(request)
    loaded = replace(loaded, rows=loaded.rows.reset_index(drop=True))
    report.table_rows = loaded.table_rows or len(loaded.rows)
    for rule, count in loaded.dropped.items():
        report.drop(rule, count)
    report.fault(len(loaded.faults), loaded.faults)
    report.notes += loaded.notes
    if len(loaded.rows) == 0:
        raise ValueError(f"{dataset.name}: the tables under {request.root} have no rows to load. {loaded.dropped}")
    rows = len(loaded.rows) + len(loaded.faults)
    check_files(loaded, request.root, report)
    drop_repeats(loaded, report)
    check_faults(report, rows, max_fault_share)
    fit_boxes(loaded, request.root, report)
    check_task(loaded, report, label_policy)
    check_patients(loaded, ids)
    assign_split(loaded, dataset, request, report, shares)
    report.split_hash = hash_of_split(*(loaded.rows.get(name) for name in ("image_id", "patient_id", "split")))
    return loaded, row_strata(loaded)


def _thin_training(loaded: LoadedRows, strata, report: LoadReport) -> None:
    training = (loaded.rows["split"] == "train").to_numpy()
    if not training.any() or (report.fraction == 1 and report.fraction_rule != "mgca_balanced"):
        return
    rows = loaded.rows[training]
    kept = fraction_mask(rows, strata[training], report.fraction, report.fraction_rule, report.seed)
    dropped = np.zeros(len(training), bool)
    dropped[training] = ~kept
    report.drop(f"not in the fraction of {report.fraction:g} of the training rows", dropped.sum())
    loaded.rows = loaded.rows[~dropped]


def _tables(loaded: LoadedRows, split: str, features: datasets.Features, root: Path) -> Iterator[pa.Table]:
    rows = loaded.rows[loaded.rows["split"] == split]
    for start in range(0, len(rows), CHUNK_ROWS):
        yield contract_table(rows.iloc[start : start + CHUNK_ROWS], loaded, features, root)


def _info(dataset: PublicDataset, features: datasets.Features, report: LoadReport) -> datasets.DatasetInfo:
    left_out = ("fault_examples", "files_found")
    summary = {name: value for name, value in report.to_dict().items() if name not in left_out}
    return datasets.DatasetInfo(
        description=json.dumps(summary),
        homepage=dataset.homepage,
        license=dataset.license,
        features=features,
        dataset_name=dataset.name,
    )


def _say(dataset: PublicDataset, report: dict[str, Any]) -> None:
    """Log the counts, and a leak as a warning. No text, path or id."""
    counts = ", ".join(f"{name} {count}" for name, count in report["rows_per_split"].items())
    logger.info("%s: %s rows; split %s, hash %s.", dataset.name, counts, report["split_scheme"], report["split_hash"])
    for rule, count in report["dropped"].items():
        logger.info("%s: %d rows left out: %s.", dataset.name, count, rule)
    for note in report["notes"]:
        logger.info("%s: %s", dataset.name, note)
    if report["missing_files"] or report["empty_files"]:
        logger.warning(
            "%s: %d rows without their file, %d with a file of zero bytes. python -m adaptor_hf.data check names some.",
            dataset.name, report["missing_files"], report["empty_files"],
        )  # fmt: skip
    if report["leak"]:
        shared = ", ".join(f"{count} patients in {names}" for names, count in report["overlaps"].items())
        logger.warning(
            "%s: the split %r is known to leak: %s%s Its numbers compare with the reference only.",
            dataset.name, report["split_scheme"], report["leak"], f" Here: {shared}." if shared else "",
        )  # fmt: skip


__all__ = ["describe", "load_public_dataset", "load_with_report"]
