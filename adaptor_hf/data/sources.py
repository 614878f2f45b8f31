"""Several sources of pairs in one table: their names, ids that stay apart, and what they share by accident."""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from ..privacy.mode import is_private
from .catalog import dataset_names, get_dataset, share_images
from .ids import SOURCE, canonical_id
from .splits import check_disjoint

if TYPE_CHECKING:
    from datasets import Dataset

    from .split_rule import SplitRule

logger = logging.getLogger(__name__)

_IDS = ("image_id", "patient_id", "study_id")
_COLUMNS = ("image", *_IDS, "view", "text", "split", "source_row")
# As NAME_metric, a source of this name would be read as another metric.
_METRIC_WORDS = ("image", "text", "mean", "num", "loss", "logit", "image_to_text", "text_to_image")


@dataclass(frozen=True)
class Source:
    """
    One source of pairs, loaded and split by its own rules.

    Args:
        name (`str`): As logs and metrics call it.
        dataset (`datasets.Dataset`): With the columns of `load_pairs` and a split on every row; ids as they are.
        rule (`SplitRule`): How it was split.
        namespaces (`tuple[str, ...]`): What its patient ids belong to, see `id_namespaces`.
    """

    name: str
    dataset: Dataset
    rule: SplitRule
    namespaces: tuple[str, ...]

    @property
    def shaping_patients(self) -> list[str | None]:
        """Patient of each training and validation row, None where unknown."""
        known = "patient_id" in self.dataset.column_names
        patients = self.dataset["patient_id"][:] if known else [None] * len(self.dataset)
        splits = self.dataset["split"][:]
        return [patient for patient, split in zip(patients, splits, strict=True) if split != "test"]


def source_names(places: Sequence[str], kind: str) -> list[str]:
    """
    A name for each source: of a public data set its own, of a table or a cache the last part of its place without
    ending, in private mode its number. Names are unique and of letters, digits, "-" and "_".

    Args:
        places: Names of public data sets, or places of tables or caches.
        kind: `dataset`, `table` or `cache`.

    Raises:
        ValueError: a public data set is named twice.
    """
    if kind == "dataset":
        if len(set(places)) < len(places):
            raise ValueError("--dataset names a data set twice. Each source is given once.")
        return list(places)
    names: list[str] = []
    for number, place in enumerate(places, 1):
        stem = re.split(r"[/\\]", str(place).rstrip("/\\"))[-1]
        stem = re.sub(r"(\.(csv|tsv|txt|jsonl?|parquet|xlsx|gz))+$", "", stem, flags=re.IGNORECASE)
        plain = re.sub(r"[^A-Za-z0-9-]+", "_", stem).strip("_")
        names.append(f"{kind}_{number}" if is_private() or not plain else plain)
    return unique_names(names)


def unique_names(names: Sequence[str]) -> list[str]:
    """The names, with a number behind those that another one has, or that begin the name of a metric."""
    found: list[str] = []
    for name in names:
        number, unique = 1, name
        while unique in found or unique in _METRIC_WORDS:
            number += 1
            unique = f"{name}_{number}"
        found.append(unique)
    return found


def public_label(name: str, number: int) -> str:
    """What a card or a pushed config calls a source: a public data set by name, another one by its number (from 1)."""
    return name if name in dataset_names() else f"source_{number}"


def qualifiers(names: Sequence[str], namespaces: Sequence[Sequence[str]]) -> list[str]:
    """
    Whose patients the ids of each source are: its own, unless an earlier source has ids of the same namespace.

    Args:
        names: Of the sources.
        namespaces: Of each source, see `id_namespaces`.
    """
    found: list[str] = []
    for place, mine in enumerate(namespaces):
        same = (found[other] for other in range(place) if set(namespaces[other]) & set(mine))
        found.append(next(same, names[place]))
    return found


def join_sources(sources: Sequence[Source], ids: str = "canonical") -> Dataset:
    """
    One table of all sources, with the column `source`.

    Ids begin with whose they are (`a/12`): patient 12 of one source is not patient 12 of another, unless both are of
    one namespace. Images are always of their source: an image in two of them is found by its content.

    Args:
        sources: Two or more, each split.
        ids: `canonical` or `exact`, as the split rule has it.

    Returns:
        `datasets.Dataset`: `image`, ids, `view`, `text`, `split`, `source_row` and `source`, one source after another.

    Raises:
        ValueError: images that are read in different ways; one table twice; a patient of two sources of one namespace
            in different splits. Messages have counts.
    """
    import datasets

    names = [source.name for source in sources]
    _check_places(sources)
    _check_reading(sources)
    owners = qualifiers(names, [source.namespaces for source in sources])
    label = datasets.ClassLabel(names=names)
    parts = []
    for code, (source, owner) in enumerate(zip(sources, owners, strict=True)):
        shared = owners.count(owner) > 1
        parts.append(_with_ids(source, code, label, owner, shared and ids == "canonical"))
    joined = datasets.concatenate_datasets(parts)
    if len(set(owners)) < len(owners):
        logger.info("Sources with the same id namespace have the same patients: these are in one split in all of them.")
        check_disjoint(joined, ids="exact")
    for place, first in enumerate(names):
        for second in names[place + 1 :]:
            if share_images(first, second):
                logger.warning(
                    "%s and %s have images in common, as the catalogue knows. Byte copies in several splits are found "
                    "(--duplicates); copies in another format are not: training may hold test images of the other.",
                    first, second,
                )  # fmt: skip
    return joined


def _check_places(sources: Sequence[Source]) -> None:
    seen: dict[str, int] = {}
    for number, source in enumerate(sources, 1):
        for namespace in source.namespaces:
            if namespace.startswith("sha256:") and seen.setdefault(namespace, number) != number:
                raise ValueError(
                    f"Sources {seen[namespace]} and {number} of --train_file are the same table. Give each once; to "
                    "show a source more often, give --dataset_weights."
                )


def _check_reading(sources: Sequence[Source]) -> None:
    readings = [source.dataset.features["image"].reading for source in sources]
    if len(set(readings)) > 1:
        said = ", ".join(
            f"source {number} as {reading.mode}" + (f" ({reading.label})" if reading.label else "")
            for number, reading in enumerate(readings, 1)
        )
        raise ValueError(
            f"The images of the sources are read in different ways: {said}. One cache has one reading: give "
            "--image_mode L or RGB, and the same --voi_lut and --range_percentile for all."
        )


def _with_ids(source: Source, code: int, label, owner: str, canonical: bool) -> Dataset:
    """The columns that training reads, ids with their owner before them, and the source. No image is copied."""
    import datasets

    rows = source.dataset
    plain = rows.select_columns([name for name in _COLUMNS if name in rows.column_names and name != "image"])
    known = plain.with_format("arrow")[:]
    values: dict[str, Any] = {}
    for name in _COLUMNS[1:]:
        if name == "source_row":
            values[name] = known[name] if name in known.column_names else pa.array(np.arange(len(rows)))
        elif name not in known.column_names:
            values[name] = pa.nulls(len(rows), pa.string())
        elif name in _IDS:
            before = source.name if name == "image_id" else owner
            written = canonical_id if canonical and name != "image_id" else str
            ids = [None if value is None else f"{before}/{written(value)}" for value in known[name].to_pylist()]
            values[name] = pa.array(ids, pa.string())
        else:
            values[name] = known[name].cast(pa.string())
    values[SOURCE] = pa.array(np.full(len(rows), code), pa.int64())
    kinds = {"source_row": datasets.Value("int64"), SOURCE: label}
    features = datasets.Features({name: kinds.get(name, datasets.Value("string")) for name in values})
    table = datasets.table.InMemoryTable(pa.table(values))
    beside = datasets.Dataset(table, info=datasets.DatasetInfo(features=features))
    return datasets.concatenate_datasets([rows.select_columns(["image"]), beside], axis=1)


def own_ids(ids: Sequence[str | None]) -> list[str | None]:
    """Ids of a joined table as their sources have them, without whose they are."""
    return [None if value is None else value.partition("/")[2] for value in ids]


def describe_terms(name: str) -> str:
    """Terms of a source as the catalogue states them, for a card."""
    return get_dataset(name).license if name in dataset_names() else "not known here: check your own"


__all__ = [
    "Source",
    "describe_terms",
    "join_sources",
    "own_ids",
    "public_label",
    "qualifiers",
    "source_names",
    "unique_names",
]
