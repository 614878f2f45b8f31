"""What a loader of a public data set declares, is asked and returns; and the list of all, read from the files."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from importlib import import_module
from pathlib import Path
from pkgutil import iter_modules
from typing import TYPE_CHECKING, Any, Literal

from ..files import parse_json

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa

ROW_TASKS = {"pretraining": "text", "classification": "labels", "detection": "boxes", "segmentation": "mask"}
"""What rows are loaded for, and the column that they must have for it."""


@dataclass(frozen=True)
class Request:
    """What a loader is asked for. It reads tables and texts; no image is opened."""

    root: Path
    """Folder of the data set, absolute."""
    task: str
    """One of the data set's tasks."""
    split_scheme: str
    """One of the data set's split schemes. A loader fills `split` for it, except for "patient"."""
    options: dict[str, Any] = field(default_factory=dict)
    """The data set's own options, all of them, defaults filled in."""
    seed: int = 0
    num_proc: int = 1
    """Processes that a loader with many small files (reports) may read them with."""


@dataclass
class LoadedRows:
    """
    What a loader found: a row per image (pairs, labels, boxes) with the columns of the data contract.

    `rows` has `image` (path relative to the root, "/" as separator; or the struct {"path", "bytes"}) and any of
    `image_id`, `patient_id`, `study_id`, `view`, `text`, `sections` (dict of str), `sentences` (list of str), `split`
    ("train", "validation", "test" or None), `boxes` (float (n, 4) array, xyxy, pixels of the original image),
    `box_labels` (list of int), `mask` (see `adaptor_hf.data.masks`), all text as str with None where missing, and
    `sex`, `age` (years, float) where the tables have them. Labels are either one column `labels` with class numbers
    (then `class_names` is given; of two the second is
    the positive class) or one float column a name of `label_names`, values 1, 0, -1 (uncertain) or NaN.
    `stratum` (str) is what splits and fractions are stratified by where that is not the labels or the boxes; for
    `fraction_rule="mgca_balanced"` it is "" or "negative" for negative rows. A row that stands in two parts of a
    reference split is given twice, with different `split`. Columns may be of `pandas.ArrowDtype`.
    `source` says where a row came from, "file:row" with 1-based data rows, for messages.
    """

    rows: pd.DataFrame
    class_names: list[str] | None = None
    label_names: list[str] | None = None
    box_class_names: list[str] | None = None
    box_frame: tuple[int, int] | None = None
    """Width and height of the images that `boxes` refer to, where all images of the release have the same. Then boxes
    are brought to the size of resized copies."""
    table_rows: int = 0
    """Rows read from the tables, before any rule."""
    dropped: dict[str, int] = field(default_factory=dict)
    """Rows left out, by rule."""
    faults: list[str] = field(default_factory=list)
    """Tolerated faults, one sentence each, naming file and row. Too many of them stop the load."""
    shared: pa.Table | None = None
    """Columns `sections` and `sentences` that several rows share, such as the report of all views of a study: a row
    each, and `rows["shared"]` is its number. In place of these columns and `text`, the joined sentences, where rows are
    very many."""
    notes: list[str] = field(default_factory=list)
    """What the user should know of this copy: a mirror's layout, a file that is absent but optional."""


@dataclass(frozen=True)
class PublicDataset:
    """A data set that `load_public_dataset` loads from disk: one of the `DATASETS` of a file in `data/public`."""

    name: str
    title: str
    tasks: tuple[str, ...]
    """Of `ROW_TASKS`; the first is the default."""
    expected_files: str
    """The tree as users have it, a line a file."""
    license: str
    homepage: str
    tested: str
    """How far the loader was tested: "fixture", "real sample" or "real set"."""
    read: Callable[[Request], LoadedRows] = field(repr=False)
    restricted: bool = True
    """Whether its terms need credentials, forbid sharing, or allow research or non-commercial use only: then the push
    of a model that was trained on it asks first. True until a declaration states that they do not."""
    same_images: tuple[str, ...] = ()
    """Other data sets of the catalogue whose images are in this one, all or some. Stated on one side; `share_images`
    holds both ways."""
    patients_of: str | None = None
    """The data set of the catalogue whose patients it has, under the same ids: then those of both are compared."""
    pretraining_name: str | None = None
    """What the `pretraining_data` of towers call it. None: whether a tower saw it cannot be known from there."""
    split_schemes: tuple[str, ...] = ("patient",)
    """The first is what `split_scheme="official"` means where the data set has no official split."""
    options: dict[str, Any] = field(default_factory=dict)
    """Options of `load_public_dataset` for this data set, with their defaults."""
    option_help: dict[str, str] = field(default_factory=dict)
    split_notes: dict[str, str] = field(default_factory=dict)
    """By split scheme: what it is, with counts."""
    leaks: dict[str, str] = field(default_factory=dict)
    """By split scheme: what is known to leak between its parts. Printed when it is chosen; overlap is then allowed."""
    label_policies: tuple[str, ...] = ("raw",)
    image_mode: Literal["L", "RGB"] = "L"
    """How its images are read (`Reading`) where the caller does not say: "RGB" where colour carries meaning."""
    max_fault_share: float = 0.05
    """Share of faulty rows (missing files, mostly) over which a load stops, unless the caller names another."""
    traps: tuple[str, ...] = ()
    """What goes wrong with this data set elsewhere, a sentence each, for its page of the documentation."""


def dataset_names() -> tuple[str, ...]:
    """Names of all data sets, sorted."""
    return tuple(_declared())


def get_dataset(name: str) -> PublicDataset:
    """
    The declaration of a data set.

    Raises:
        ValueError: if there is no such data set; the message lists the names.
    """
    declared = _declared()
    if name not in declared:
        close = difflib.get_close_matches(name, declared, n=1)
        meant = f" Did you mean {close[0]}?" if close else ""
        raise ValueError(f"Unknown data set {name!r}.{meant} Choose one of: {', '.join(declared)}.")
    return declared[name]


def list_datasets() -> list[PublicDataset]:
    """All data sets that `load_public_dataset` loads: name, tasks, files, licence, where to get it, how tested."""
    return list(_declared().values())


def with_same_images(name: str) -> dict[str, PublicDataset]:
    """A data set and those of the catalogue whose images are in it, by name; nothing if there is no such data set."""
    if name not in _declared():
        return {}
    return {one: get_dataset(one) for one in (name, *get_dataset(name).same_images)}


def share_images(first: str, second: str) -> bool:
    """Whether two data sets of the catalogue have images in common: one has those of the other, or both of a third."""
    return bool(with_same_images(first).keys() & with_same_images(second).keys())


def _declared() -> dict[str, PublicDataset]:
    """All declarations by name. The files are looked for when first asked, so that a new file is all that it takes."""
    return _declared_in(f"{__package__}.public", *import_module(f"{__package__}.public").__path__)


@cache
def _declared_in(package: str, *folders: str) -> dict[str, PublicDataset]:
    declared, places = {}, {}
    for place in sorted(f"{package}.{module.name}" for module in iter_modules(folders)):
        module = import_module(place)
        if not hasattr(module, "DATASETS"):
            raise ValueError(
                f"{place} has no DATASETS. A file beside the data sets declares one: helpers lie elsewhere."
            )
        for dataset in module.DATASETS:
            if dataset.name in declared:
                raise ValueError(
                    f"Two data sets are called {dataset.name!r}: in {places[dataset.name]} and in {place}. Rename one."
                )
            declared[dataset.name], places[dataset.name] = dataset, place
    return dict(sorted(declared.items()))


def parse_options(words: list[str]) -> dict[str, object]:
    """
    Options of a data set from "name=value" words; true, false, numbers and null are read as such.

    Raises:
        ValueError: A word has no "=".
    """
    options = {}
    for word in words:
        name, equals, value = word.partition("=")
        if not equals or not name:
            raise ValueError(f"An option is name=value, got {word!r}.")
        try:
            options[name] = parse_json(value)
        except ValueError:
            options[name] = value
    return options


__all__ = [
    "ROW_TASKS",
    "LoadedRows",
    "PublicDataset",
    "Request",
    "dataset_names",
    "get_dataset",
    "list_datasets",
    "parse_options",
    "share_images",
    "with_same_images",
]
