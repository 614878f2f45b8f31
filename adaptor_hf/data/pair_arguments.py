"""Options of pre-training that say which pairs it takes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import Field, dataclass, fields, replace

from ..options.fields import HIDDEN, OPEN, PATH, default_of, option
from ..privacy.mode import check_private_columns
from .places import several
from .split_rule import SplitRule
from .stored_arguments import StoredArguments, kept_of_images, kept_of_texts
from .table_arguments import EMBEDDINGS, PUBLIC, SPLIT, TABLE, TableArguments

_OF_A_TABLE = ("image_column", "text_column", "image_root", "patient_column", "study_column", "id_column",
               "view_column", "split_column", "split_alias", "filter", "missing_word")  # fmt: skip
_OF_A_CACHE = ("cache", "check", "dataset_name", "duplicates", "id_namespace")
_OF_A_DATASET = ("split_scheme", "dataset_option")
# What options of both scripts are here where they were not given: there is no checkpoint that says.
_RULE = SplitRule()
DEFAULTS = {
    "split_scheme": "official", "text_column": "text", "voi_lut": False, "range_percentile": 0.0,
    "split_seed": _RULE.seed,
    "validation_fraction": _RULE.validation_fraction, "test_fraction": _RULE.test_fraction,
}  # fmt: skip


@dataclass
class DataArguments(TableArguments, StoredArguments):
    """
    Which pairs, which part of them, and where their embeddings are kept.

    `dataset`, `train_file` and `cache` may name several sources: then they are lists, and `data_root` is one folder for
    all or a list of one for each. What names one is that itself.
    """

    dataset: list[str] | None = option(
        None, "A public data set by name (python -m adaptor_hf.data list), instead of a table; or several.",
        group=PUBLIC, privacy=OPEN, metavar="NAME",
    )  # fmt: skip
    data_root: list[str] | None = option(
        None, "Folder of --dataset, as it was downloaded: one for all, or one each.", group=PUBLIC, privacy=PATH,
        metavar="FOLDER",
    )  # fmt: skip
    train_file: list[str] | None = option(
        None, "Pairs: a CSV, TSV, Parquet or JSON-lines file, an imagefolder, a `datasets` folder, a hub id; or "
        "several.", group=TABLE, privacy=PATH,
    )  # fmt: skip
    cache: list[str] | None = option(
        None, "A ready embedding cache to train on, instead of --train_file and towers; or several of one key.",
        group=EMBEDDINGS, privacy=PATH, metavar="FOLDER",
    )  # fmt: skip
    view_column: str | None = option(
        None, "Column of the view, such as PA.", group=TABLE, privacy=HIDDEN, metavar="COLUMN"
    )
    train_fraction: float = option(1.0, "Share of training patients to use (nested, seeded).", group=SPLIT)
    max_text_length: int = option(112, "Tokens after which a report is cut (paper: 112).", group=EMBEDDINGS)
    image_store: str | None = option(
        None, "Folder that keeps resized images: the next tower need not decode.", group=EMBEDDINGS, privacy=PATH,
        advanced=True, metavar="FOLDER",
    )  # fmt: skip
    image_store_size: int = option(
        256, "Shorter side of the stored images, in pixels.", group=EMBEDDINGS, advanced=True
    )
    max_fault_fraction: float = option(
        0.05, "Share of bad rows that is left out of a cache; more stop it.", group=EMBEDDINGS, advanced=True
    )
    rebuild: bool = option(
        False, "Embed all of these rows anew, also those that are in the cache.", group=EMBEDDINGS, advanced=True
    )

    def __post_init__(self):
        for name in ("dataset", "data_root", "train_file", "cache"):
            given = getattr(self, name)
            if isinstance(given, Sequence) and not isinstance(given, str) and len(given) < 2:
                setattr(self, name, given[0] if given else None)
        roots = several(self.data_root)
        if len(roots) > 1 and len(roots) != len(several(self.dataset)):
            raise ValueError(
                "--data_root is one folder for all of --dataset, or one for each of them in its order: got "
                f"{len(roots)} for {len(several(self.dataset))}."
            )
        if sum(source is not None for source in (self.train_file, self.dataset, self.cache)) != 1:
            raise ValueError(
                "Give --train_file (a table of pairs), --dataset (a public data set) or --cache (ready embeddings), "
                "one of them."
            )
        if not 0 <= self.max_fault_fraction <= 1:
            raise ValueError(f"--max_fault_fraction {self.max_fault_fraction}: expected a share from 0 to 1.")
        TableArguments.__post_init__(self)
        StoredArguments.__post_init__(self)
        for name, value in DEFAULTS.items():
            if getattr(self, name) is None:
                setattr(self, name, value)
        without_effect = _OF_A_TABLE if self.dataset is not None else _OF_A_DATASET
        if set_ := [o.name for o in fields(self) if o.name in without_effect and self._is_set(o)]:
            source = "with" if self.dataset is not None else "without"
            raise ValueError(f"{', '.join(set_)} would have no effect {source} --dataset. Leave it out.")
        self.dataset_name = self.dataset_name or " + ".join(several(self.dataset)) or None
        of_a_table = [option for option in fields(self) if option.name not in _OF_A_CACHE]
        if self.cache is not None and (set_ := [o.name for o in of_a_table if self._is_set(o)]):
            raise ValueError(f"--cache is trained on as it is: {', '.join(set_)} would have no effect. Leave it out.")

    @property
    def num_sources(self) -> int:
        """How many sources are named; a cache that is named may hold several."""
        return len(several(self.dataset) or several(self.train_file) or several(self.cache))

    def _is_set(self, option: Field) -> bool:
        return getattr(self, option.name) != DEFAULTS.get(option.name, default_of(option))


def check_private_pairs(arguments: DataArguments) -> None:
    """
    Check that a private run keeps nothing that it must not keep.

    Raises:
        ValueError: naming the option.
    """
    if arguments.image_store is not None:
        raise ValueError("--private keeps no copies of images: leave out --image_store.")
    check_private_columns(kept_of_images(arguments), kept_of_texts(arguments))


def source_arguments(arguments: DataArguments) -> dict[str, DataArguments]:
    """
    The arguments of each source alone, by its name, see `source_names`. What is said of tables or of public data sets
    holds for all of them; `--dataset_option NAME.option=value` for the one that is named.

    Raises:
        ValueError: a public data set twice.
    """
    from .sources import source_names

    kind = "dataset" if arguments.dataset is not None else "table"
    places = several(arguments.dataset) or several(arguments.train_file)
    names = source_names(places, kind)
    if len(places) == 1:
        return {names[0]: arguments}
    found = {}
    for number, (name, place) in enumerate(zip(names, places, strict=True)):
        if kind == "table":
            # The name that a card has for all of them is no name of one's ids.
            found[name] = replace(arguments, train_file=place, dataset_name=None)
            # None where texts are not read, which the default would undo.
            found[name].text_column = arguments.text_column
            continue
        roots = several(arguments.data_root)
        others = tuple(f"{other}." for other in names if other != name)
        options = [word.removeprefix(f"{name}.") for word in arguments.dataset_option if not word.startswith(others)]
        root = roots[number if len(roots) > 1 else 0]
        found[name] = replace(arguments, dataset=place, data_root=root, dataset_name=None, dataset_option=options)
    return found


__all__ = ["DEFAULTS", "DataArguments", "check_private_pairs", "source_arguments"]
