"""What a loader of a public data set declares, is asked and returns; and the list of all of them."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa

TASKS = ("pretraining", "classification", "detection", "segmentation")
"""What rows are loaded for, and so which column they must have: text, labels, boxes, mask."""

MODULES: dict[str, str] = {
    "cbis_ddsm": "cbis_ddsm",
    "cc12m": "conceptual_captions",
    "cc3m": "conceptual_captions",
    "chexpert": "chexpert",
    "chexpert_5x200": "chexpert_5x200",
    "coco_captions": "coco_captions",
    "covid_rural": "covid_rural",
    "covidx": "covidx",
    "mimic_cxr": "mimic_cxr",
    "montgomery": "shenzhen_montgomery",
    "nih_chestxray14": "nih_chestxray14",
    "object_cxr": "object_cxr",
    "openi": "openi",
    "redcaps": "redcaps",
    "roco": "roco",
    "roco_v2": "roco",
    "rsna": "rsna",
    "shenzhen": "shenzhen_montgomery",
    "siim": "siim",
    "slip_catalog": "slip_catalog",
    "yfcc15m": "yfcc15m",
}
"""Name of a data set and its module under `adaptor_hf.data.public`; modules are imported when asked for."""


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
    """A data set that `load_public_dataset` loads from disk."""

    name: str
    title: str
    tasks: tuple[str, ...]
    """Of `TASKS`; the first is the default."""
    expected_files: str
    """The tree as users have it, a line a file."""
    license: str
    homepage: str
    tested: str
    """How far the loader was tested: "fixture", "real sample" or "real set"."""
    read: Callable[[Request], LoadedRows] = field(repr=False)
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


def get_dataset(name: str) -> PublicDataset:
    """
    The declaration of a data set.

    Raises:
        ValueError: if there is no such data set; the message lists the names.
    """
    if name not in MODULES:
        raise ValueError(f"Unknown data set {name!r}. Choose one of: {', '.join(sorted(MODULES))}.")
    module = import_module(f"adaptor_hf.data.public.{MODULES[name]}")
    return next(dataset for dataset in module.DATASETS if dataset.name == name)


def list_datasets() -> list[PublicDataset]:
    """All data sets that `load_public_dataset` loads: name, tasks, files, licence, where to get it, how tested."""
    return [get_dataset(name) for name in sorted(MODULES)]


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
            options[name] = json.loads(value)
        except ValueError:
            options[name] = value
    return options


__all__ = ["TASKS", "LoadedRows", "PublicDataset", "Request", "get_dataset", "list_datasets", "parse_options"]
