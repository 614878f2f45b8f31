"""In private mode: keyed hashes in place of a table's ids, and no table with columns that identify a person."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from ..privacy.class_names import names_written
from ..privacy.identifying import identifying_columns
from ..privacy.keys import keyed_hash
from ..privacy.mode import ID_COLUMNS, KEPT_COLUMNS, PrivacyArguments, is_private, private_key
from ..privacy.vocabulary import OTHER, listed_word
from .burned_in import count_flags, describe_flags
from .demographics import read_ages, sex_groups
from .missing import is_missing
from .table_files import Source, read_source

if TYPE_CHECKING:
    from datasets import Dataset

logger = logging.getLogger(__name__)


def private_rows(dataset: Dataset, keep: Iterable[str] = ()) -> Dataset:
    """
    A data set with keyed hashes for `image_id`, `patient_id` and `study_id`, and without columns that are neither of
    the column contract nor sex, age or asked for; views and sexes that are on no list are `OTHER`, and names of groups
    as [`names_written`] has them. What DICOM files say of text in the picture goes to the log, as
    counts. Outside private mode the data set itself.

    Args:
        dataset (`datasets.Dataset`): With the columns of `load_pairs`.
        keep (`Iterable[str]`): More columns to keep.
    """
    key = private_key()
    if key is None:
        return dataset
    if said := describe_flags(count_flags(dataset)):
        logger.warning(said)
    kept = {*KEPT_COLUMNS, *keep}
    dataset = dataset.select_columns([name for name in dataset.column_names if name in kept])
    for name, said in {"view": _views, "sex": _sexes, "age": _ages, **dict.fromkeys(keep, _groups)}.items():
        if name in dataset.column_names and pa.types.is_string(dataset.data.schema.field(name).type):
            dataset = _replaced(dataset, name, said(_values(dataset, name)))
    for name in [name for name in ID_COLUMNS if name in dataset.column_names]:
        hashed = [None if value is None else keyed_hash(str(value), key) for value in _values(dataset, name)]
        dataset = _replaced(dataset, name, hashed)
    return dataset


def _values(dataset: Dataset, name: str) -> list:
    return dataset.select_columns([name]).with_format("arrow")[:][name].to_pylist()


def _replaced(dataset: Dataset, name: str, values: list[str | None]) -> Dataset:
    order = dataset.column_names
    return dataset.remove_columns(name).add_column(name, pa.array(values, pa.string())).select_columns(order)


def _views(values: list[str | None]) -> list[str | None]:
    return [listed_word(value, "view") for value in values]


def _sexes(values: list[str | None]) -> list[str | None]:
    """Spellings of a sex stay; another word is `OTHER`."""
    return [value if group in (None, *"FMO") else OTHER
            for value, group in zip(values, sex_groups(values), strict=True)]  # fmt: skip


def _ages(values: list[str | None]) -> list[str | None]:
    """What is no age is `OTHER`, and counts as missing as it did."""
    read = read_ages(values)
    return [value if years is not None or lowest is not None or is_missing(value) else OTHER
            for value, years, lowest in zip(values, read.years, read.lowest, strict=True)]  # fmt: skip


def _groups(values: list[str | None]) -> list[str | None]:
    written = names_written(value for value in values if value is not None)
    return [None if value is None else written[value] for value in values]


def refuse_identifying_columns(
    source: Any, image_column: str, arguments: PrivacyArguments, sep: str | None = None, encoding: str | None = None
) -> None:
    """
    In private mode, refuse a table with columns that look like names or birth dates, unless they were asked for.

    Raises:
        ValueError: naming the number of columns and their places; their names may name someone.
    """
    if not is_private() or arguments.allow_identifying_columns or not isinstance(source, str | os.PathLike | Source):
        return
    table = read_source(source, image_column, sep, encoding).table
    if found := identifying_columns(table):
        places = ", ".join(str(table.column_names.index(name) + 1) for name in found)
        raise ValueError(
            f"{len(found)} of the table's columns look like names, birth dates or addresses (columns {places}, counted "
            "from 1). Take them out of the table, or pass --allow_identifying_columns: they are then read past."
        )


__all__ = ["private_rows", "refuse_identifying_columns"]
