"""No test on training rows: what of a test part was in the pre-training of the models that are tested on it."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from ..data.duplicates import copies_across, describe_copies
from ..data.training_rows import TRAINING_ROWS_FILE, Seen, find_training_rows, id_namespaces
from ..embeddings.contents import content_digests
from ..evaluation.controls import saw_pairs
from ..evaluation.overlap import counted
from .provenance import disjoint_sets

if TYPE_CHECKING:
    from datasets import Dataset

logger = logging.getLogger(__name__)

TOWER_SYSTEMS = ("vision tower", "text tower")
"""Of `seen_rows`: a trained tower, on which every system stands, also those that no pair has shaped."""


def seen_rows(
    test: Dataset,
    models: Mapping[str, str],
    *,
    name: str,
    table: Any = None,
    namespace: str | None = None,
    cache_dir: Any = None,
    allow: bool = False,
    check: str = "touched",
) -> dict[str, Seen]:
    """
    How much of a test part was in the pre-training of each model.

    Args:
        test (`datasets.Dataset`): With `image` and `patient_id`, as the table has it, never hashed.
        models (`Mapping[str, str]`): Key of a system, such as `adaptor`, to the folder or hub id of its checkpoint; of
            `TOWER_SYSTEMS` to the folder of a trained tower.
        name (`str`): Of the data set, for messages and, without `namespace`, for what its patient ids belong to.
        table (*optional*): Where the rows come from, see `id_namespaces`.
        namespace (`str`, *optional*): What the patient ids belong to.
        cache_dir (*optional*): Of embeddings: what is known there of the images' files is not read again.
        check (`str`, defaults to `"touched"`): What is compared with digests there, as of `open_cache`.
        allow (`bool`): Go on where rows were seen; the counts are in the result lines.

    Returns:
        `dict[str, Seen]`: Of each system.

    Raises:
        ValueError: rows were seen, and `allow` does not say to go on. The message has counts, no ids.
    """
    found, images = {}, None
    patients = test["patient_id"][:] if "patient_id" in test.column_names else [None] * len(test)
    for system, model in models.items():
        rows = find_training_rows(model)
        if rows is None:
            what = "trained tower" if system in TOWER_SYSTEMS else "checkpoint"
            why = f"the {what} has no {TRAINING_ROWS_FILE}, as those of a hub and of older versions"
            found[system] = Seen(None, None, len(set(patients)), len(test), why)
            continue
        if images is None:
            images = content_digests(test, cache_dir, check=check)
        mine = id_namespaces(namespace or name, table)
        # Each named set that it was trained on must be disjoint: one of several says nothing of the others.
        named = [theirs for theirs in rows.namespaces if not theirs.startswith("sha256:")]
        disjoint = bool(named) and all(disjoint_sets(theirs, name) for theirs in named)
        found[system] = rows.compare(patients, images, mine, disjoint=disjoint)
    for reason in {seen.reason for seen in found.values() if seen.status == "unknown" and seen.reason}:
        logger.warning("Whether %s overlaps with pre-training is not known: %s.", name, reason)
    bad = {system: seen for system, seen in found.items() if seen.status == "found"}
    if bad:
        said = "; ".join(f"{system}: {_counts(seen)}" for system, seen in bad.items())
        message = f"Rows of the test part of {name} were in pre-training ({said}). Their scores would be too good."
        if not allow:
            raise ValueError(
                f"{message} Test on what pre-training held out: leave out --split_seed, --test_fraction and "
                "--validation_fraction, so that the checkpoint's rule holds, or give the --split_column of the "
                "pre-training. If patient ids of two places only look alike, give each its --id_namespace in both "
                "scripts. With --allow_seen the task is run all the same, and every result carries the counts."
            )
        logger.warning("%s --allow_seen: every result carries the counts.", message)
    return found


def overlap_fields(seen: Mapping[str, Seen] | None, system: str) -> dict[str, Any]:
    """
    What a result line says of the overlap; what is trained here from the Adaptor has the Adaptor's. All systems are on
    the same towers, and have seen what a trained one has.
    """
    unknown = Seen(None, None)
    parts = [one for name, one in (seen or {}).items() if name in TOWER_SYSTEMS]
    if saw_pairs(system):
        parts.append((seen or {}).get(system, (seen or {}).get("adaptor", unknown)))
    if not parts:
        return Seen(0, 0).fields()
    return Seen(_most(one.patients for one in parts), _most(one.images for one in parts)).fields()


def _most(counts: Iterable[int | None]) -> int | None:
    """The largest count; unknown where nothing was found and one is not known."""
    counts = list(counts)
    found = max(count or 0 for count in counts)
    return found if found or None not in counts else None


def check_copies(
    parts: Mapping[str, Dataset],
    cache_dir: Any,
    action: str = "refuse",
    *,
    known_leak: str | None = None,
    check: str = "touched",
) -> np.ndarray:
    """
    Check that no image of a training part is a byte copy of a validation or test image, under whatever id.

    Args:
        parts (`Mapping[str, Dataset]`): By split.
        cache_dir, check: As in `seen_rows`.
        action (`str`): `refuse`, `drop` (leave the training rows among them out) or `keep` (say it and go on).
        known_leak (`str`, *optional*): The split is a reference's that is known to leak: copies are said, and stay.

    Returns:
        `np.ndarray` of shape `(n,)`, bool: training rows to keep.

    Raises:
        ValueError: there are copies and `action` is `refuse`. The message has counts and rows.
    """
    digests = np.concatenate([content_digests(rows, cache_dir, check=check) for rows in parts.values()])
    splits = [part for part, rows in parts.items() for _ in range(len(rows))]
    copies = copies_across(digests, splits)
    keep = np.ones(len(parts["train"]), bool) if "train" in parts else np.ones(0, bool)
    if not copies.contents:
        return keep
    numbers = [number for rows in parts.values() for number in (rows["source_row"][:] if "source_row" in
               rows.column_names else range(len(rows)))]  # fmt: skip
    said = describe_copies(copies, numbers, splits)
    if known_leak or action == "keep":
        why = f"The split is known to leak: {known_leak}" if known_leak else "They stay: results are too good."
        logger.warning("%s %s", said, why)
        return keep
    if action == "refuse":
        raise ValueError(
            f"{said} Held-out results would be too good. Correct the table (python -m adaptor_hf.data check --table "
            "finds them), give the copies the same patient id, or pass --duplicates drop to leave them out of training."
        )
    logger.warning("%s %d training rows are left out.", said, copies.training.sum())
    return ~copies.training[np.array(splits) == "train"]


def _counts(seen: Seen) -> str:
    patients = counted(seen.patients, f"of {seen.of_patients} patients") if seen.of_patients else "no patient ids"
    return f"{patients}, {counted(seen.images, f'of {seen.of_images} images')}"


__all__ = ["check_copies", "overlap_fields", "seen_rows"]
