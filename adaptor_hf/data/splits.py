"""Splits by patient: assign them, thin the training part, name a split by its hash, and check that none overlap."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterable, Sequence
from itertools import repeat
from typing import TYPE_CHECKING

from .ids import canonical_id, check_mode

if TYPE_CHECKING:
    from datasets import Dataset

logger = logging.getLogger(__name__)

SPLITS = ("train", "validation", "test")
"""Names of splits in the order in which they must not be empty."""

DEFAULT_SEED = 42
"""Of every split by patient, in both scripts, commands and functions, unless another is given."""

SPLIT_ALIASES = {
    "train": "train",
    "training": "train",
    "val": "validation",
    "valid": "validation",
    "validate": "validation",
    "validation": "validation",
    "dev": "validation",
    "test": "test",
    "testing": "test",
}
"""Spellings of split names, in lower case. The one list of them: tables, folders, data sets and caches read it."""


def canonical_split(name: str | None) -> str | None:
    """
    The split that a name stands for, in any case and with spaces around it; None for no name.

    Raises:
        ValueError: The name is unknown.
    """
    if name is None or not (plain := str(name).strip().lower()):
        return None
    if plain not in SPLIT_ALIASES:
        raise ValueError(unknown_split([str(name)]))
    return SPLIT_ALIASES[plain]


def unknown_split(names: Iterable[str | None], where: str = "") -> str:
    """
    What is said wherever a split's name is unknown.

    Args:
        names: The names; None for an empty cell.
        where: Where they stand, such as " in data rows 1, 2".
    """
    shown = ", ".join("(empty)" if name is None else repr(name) for name in list(names)[:5])
    return (
        f"unknown split {shown}{where}. Expected train, validation (val, valid, validate, dev) or test, on every row "
        "or on none. Correct the column, leave those rows out (--filter), or name another --split_column."
    )


def assign_splits(
    dataset: Dataset,
    *,
    validation_fraction: float = 0.1,
    test_fraction: float = 0.1,
    seed: int = DEFAULT_SEED,
    ids: str | None = None,
) -> Dataset:
    """Fill the column `split` by patient, unless the data set brings its own split.

    A patient's split follows from a hash of its id and the seed alone, so it stays the same when rows are added, in any
    row order, on any machine, and in another table that writes the id otherwise (`0000012` and `12`, see
    `adaptor_hf.data.ids.canonical_id`). The shares are therefore shares of patients, and approximate. A row without
    patient goes by its study, and without study by its image; then leakage cannot be excluded, and a warning says so.
    Where the hash leaves a split empty that has a share, it gets one patient of another split: train comes first,
    validation second (from two patients on), test third (from three on).

    Args:
        dataset: With the columns of `load_pairs`.
        validation_fraction: Share of patients in "validation", in [0, 1).
        test_fraction: Share of patients in "test"; the two together stay under 1.
        seed: Another seed is another split.
        ids: "exact" takes every spelling of an id for another patient; None and "canonical" do not.

    Returns:
        The data set itself if every row has a split already, else one with a full column `split`.

    Raises:
        ValueError: Impossible fractions, no rows, a split on some rows only, or an unknown `ids`.
    """
    import pyarrow as pa

    check_shares(validation_fraction, test_fraction)
    if len(dataset) == 0:
        raise ValueError("Cannot split a data set without rows.")
    given = _column(dataset, "split")
    missing = sum(value is None for value in given)
    if not missing:
        return dataset
    if missing < len(given):
        raise ValueError(
            f"{missing} of {len(given)} rows have no split. Fill the split column, or leave it out to split by patient."
        )
    shares = {"validation_fraction": validation_fraction, "test_fraction": test_fraction}
    splits = split_groups(_groups(dataset, ids), **shares, seed=seed)
    return _with_column(dataset, "split", pa.array(splits, pa.string()))


def split_groups(groups: Sequence[str], *, validation_fraction: float, test_fraction: float, seed: int) -> list[str]:
    """The split of each row by a hash of its group's name, as `assign_splits` describes it.

    Args:
        groups: Of each row, what may not be torn apart.

    Raises:
        ValueError: Impossible fractions.
    """
    check_shares(validation_fraction, test_fraction)
    place = {group: uniform("split", seed, group) for group in set(groups)}
    split_of = {
        group: "test" if u < test_fraction else "validation" if u < test_fraction + validation_fraction else "train"
        for group, u in place.items()
    }
    shares = {"train": 1, "validation": validation_fraction, "test": test_fraction}
    _fill_empty_splits(split_of, place, [split for split in SPLITS if shares[split] > 0])
    return [split_of[group] for group in groups]


def split_training_rows(dataset: Dataset, validation_fraction: float, seed: int, ids: str | None = None) -> Dataset:
    """Move a share of the training patients to validation; other rows keep their split."""
    import pyarrow as pa

    splits = _column(dataset, "split")
    rows = [row for row, split in enumerate(splits) if split == "train"]
    groups = _groups(dataset.select(rows), ids)
    moved = split_groups(groups, validation_fraction=validation_fraction, test_fraction=0.0, seed=seed)
    for row, split in zip(rows, moved, strict=True):
        splits[row] = split
    return _with_column(dataset, "split", pa.array(splits, pa.string()))


def rename_splits(dataset: Dataset, aliases: Sequence[str]) -> Dataset:
    """Apply `old=new` renames to the column `split`.

    Raises:
        ValueError: An alias is malformed, or names a split that no row has.
    """
    import pyarrow as pa

    if not aliases:
        return dataset
    renames = {}
    for alias in aliases:
        old, separator, new = alias.partition("=")
        if not separator or not old.strip() or not new.strip():
            raise ValueError(f"--split_alias reads old=new, such as validation=test, got {alias!r}.")
        renames[canonical_split(old)] = canonical_split(new)
    values = _column(dataset, "split")
    if missing := sorted(renames.keys() - set(values)):
        raise ValueError(f"--split_alias names splits that no row has: {', '.join(missing)}.")
    return _with_column(dataset, "split", pa.array([renames.get(value, value) for value in values], pa.string()))


def patient_fraction(dataset: Dataset, fraction: float, seed: int = DEFAULT_SEED, ids: str | None = None) -> Dataset:
    """Keep a share of the training patients with all their rows; validation and test rows stay.

    Nested: with one seed, the rows of 1 % are among those of 10 %, and those among 30 %. The number of patients is
    `round(fraction * patients)`, at least one. If no row has a split, every row counts as training.

    Args:
        dataset: With the columns of `load_pairs`.
        fraction: Share of training patients in (0, 1]; 1 returns the data set itself.
        seed: Another seed is another choice of patients.
        ids: As in `assign_splits`.

    Raises:
        ValueError: `fraction` is not in (0, 1], or there are no training rows.
    """
    if not 0 < fraction <= 1:
        raise ValueError(f"fraction is a share of the training patients in (0, 1], got {fraction}. For 30 % pass 0.3.")
    if fraction == 1:
        return dataset
    splits, groups = _column(dataset, "split"), _groups(dataset, ids)
    unsplit = all(split is None for split in splits)
    training = {group for group, split in zip(groups, splits, strict=True) if unsplit or split == "train"}
    if not training:
        raise ValueError("The data set has no training rows to take a fraction of.")
    ranked = sorted(training, key=lambda group: (uniform("fraction", seed, group), group))
    kept = set(ranked[: max(1, round(fraction * len(ranked)))])
    rows = [
        row
        for row, (group, split) in enumerate(zip(groups, splits, strict=True))
        if group in kept or not (unsplit or split == "train")
    ]
    return dataset.select(rows)


def split_hash(dataset: Dataset) -> str:
    """Name of a split: 12 hex digits over the sorted pairs of image id (else patient id) and split.

    The same for any row order, and different when a row moves to another split, comes in or goes. Results carry it, so
    that two numbers can be told to come from the same rows.
    """
    return hash_of_split(*(_column(dataset, name) for name in ("image_id", "patient_id", "split")))


def hash_of_split(image_ids: Iterable, patient_ids: Iterable | None, splits: Iterable) -> str:
    """`split_hash` of columns of text; None where there is no patient."""
    digest = hashlib.sha256()
    columns = (image_ids, repeat(None) if patient_ids is None else patient_ids, splits)
    pairs = (f"{image or patient or ''}\x1f{split or ''}\x1e" for image, patient, split in zip(*columns, strict=False))
    for pair in sorted(pairs):
        digest.update(pair.encode())
    return digest.hexdigest()[:12]


def check_disjoint(
    dataset: Dataset, *, allow_overlap: bool = False, ids: str | None = None
) -> dict[tuple[str, str], int]:
    """Check that no patient is in two splits.

    An error by default: a patient on both sides makes every held-out number too good, and a warning is read after the
    number is published. Some published splits do overlap; to reproduce one on purpose, `allow_overlap=True` warns
    with the same counts. Rows without patient cannot be checked; a warning counts them.

    Args:
        dataset: With the columns of `load_pairs`.
        allow_overlap: Warn instead.
        ids: As in `assign_splits`.

    Returns:
        Number of shared patients for each pair of splits that has any, such as {("train", "test"): 3}.

    Raises:
        ValueError: Patients in several splits. The message has counts, never ids.
    """
    check_mode(ids)
    patients: dict[str, set[str]] = {split: set() for split in SPLITS}
    unknown = 0
    for patient, split in zip(_column(dataset, "patient_id"), _column(dataset, "split"), strict=True):
        if patient is None:
            unknown += 1
        elif split is not None:
            patients.setdefault(split, set()).add(_name(patient, ids))
    names = list(patients)
    shared = {
        (first, second): len(patients[first] & patients[second])
        for i, first in enumerate(names)
        for second in names[i + 1 :]
        if patients[first] & patients[second]
    }
    if unknown:
        logger.warning("%d of %d rows have no patient id: overlap of splits is not checked.", unknown, len(dataset))
    if shared:
        counts = ", ".join(f"{count} in both {first} and {second}" for (first, second), count in shared.items())
        message = f"Patients are in several splits: {counts}. Held-out results would be too good."
        if not allow_overlap:
            raise ValueError(
                f"{message} Correct the split column, or name none: rows are then split by patient (take the column "
                "out of the table if it is called split)."
            )
        logger.warning("%s", message)
    return shared


def check_shares(validation_fraction: float, test_fraction: float) -> None:
    """
    Raises:
        ValueError: The shares of patients are impossible.
    """
    if not (0 <= validation_fraction < 1 and 0 <= test_fraction < 1 and validation_fraction + test_fraction < 1):
        raise ValueError(
            "validation_fraction and test_fraction are shares of patients in [0, 1) with a sum under 1, got "
            f"{validation_fraction} and {test_fraction}."
        )


def _name(value: str, ids: str | None) -> str:
    return value if ids == "exact" else canonical_id(value)


def _groups(dataset: Dataset, ids: str | None = None) -> list[str]:
    """What may not be torn apart: a row's patient, else its study, else its image."""
    check_mode(ids)
    columns = [_column(dataset, name) for name in ("patient_id", "study_id", "image_id")]
    groups, without_patient = [], 0
    for row, (patient, study, image) in enumerate(zip(*columns, strict=True)):
        # The kind is part of the name: patient 7 and study 7 are not one group.
        if patient is not None:
            groups.append(f"patient:{_name(patient, ids)}")
            continue
        without_patient += 1
        kind, name = ("study", study) if study is not None else ("image", image if image is not None else str(row))
        groups.append(f"{kind}:{_name(name, ids)}")
    if without_patient:
        logger.warning(
            "%d of %d rows have no patient id and are grouped by study or image: one patient may be in several splits, "
            "leakage cannot be excluded. Name the patient column if there is one.",
            without_patient,
            len(groups),
        )
    return groups


def _fill_empty_splits(split_of: dict[str, str], place: dict[str, float], wanted: list[str]) -> None:
    """Give each empty split, as far as the groups go, the first group of the fullest other one. Changes `split_of`."""
    wanted = wanted[: len(split_of)]
    for split in wanted:
        members: dict[str, list[str]] = {}
        for group, name in split_of.items():
            members.setdefault(name, []).append(group)
        if split in members:
            continue
        # A split beyond the number of groups has no claim to its members.
        donor = max(members, key=lambda name: (name not in wanted, len(members[name]), name))
        split_of[min(members[donor], key=lambda group: (place[group], group))] = split


def uniform(purpose: str, seed: int, group: str) -> float:
    """Number in [0, 1) that depends on these three alone, on every machine."""
    digest = hashlib.blake2b(f"{purpose}:{seed}:{group}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") / 2**64


def _column(dataset: Dataset, name: str) -> list:
    """Values of a column, without decoding images; all None if there is no such column."""
    if name not in dataset.column_names:
        return [None] * len(dataset)
    return dataset.select_columns([name]).with_format("arrow")[:][name].to_pylist()


def _with_column(dataset: Dataset, name: str, values) -> Dataset:
    """The data set with a column replaced, at its old position."""
    order = dataset.column_names if name in dataset.column_names else [*dataset.column_names, name]
    if name in dataset.column_names:
        dataset = dataset.remove_columns(name)
    return dataset.add_column(name, values).select_columns(order)
