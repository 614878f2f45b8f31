"""Options of pre-training that say which pairs it takes."""

from __future__ import annotations

from dataclasses import Field, dataclass, fields

from ..options.fields import HIDDEN, PATH, default_of, option
from .split_rule import SplitRule
from .stored_arguments import StoredArguments
from .table_arguments import EMBEDDINGS, SPLIT, TABLE, TableArguments

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
    """Which pairs, which part of them, and where their embeddings are kept."""

    train_file: str | None = option(
        None, "Pairs: a CSV, TSV, Parquet or JSON-lines file, an imagefolder, a `datasets` folder, a hub id.",
        group=TABLE, privacy=PATH,
    )  # fmt: skip
    cache: str | None = option(
        None, "A ready embedding cache to train on, instead of --train_file and towers.", group=EMBEDDINGS,
        privacy=PATH, metavar="FOLDER",
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
    rebuild: bool = option(
        False, "Embed all of these rows anew, also those that are in the cache.", group=EMBEDDINGS, advanced=True
    )

    def __post_init__(self):
        if sum(source is not None for source in (self.train_file, self.dataset, self.cache)) != 1:
            raise ValueError(
                "Give --train_file (a table of pairs), --dataset (a public data set) or --cache (ready embeddings), "
                "one of them."
            )
        TableArguments.__post_init__(self)
        StoredArguments.__post_init__(self)
        for name, value in DEFAULTS.items():
            if getattr(self, name) is None:
                setattr(self, name, value)
        without_effect = _OF_A_TABLE if self.dataset is not None else _OF_A_DATASET
        if set_ := [o.name for o in fields(self) if o.name in without_effect and self._is_set(o)]:
            source = "with" if self.dataset is not None else "without"
            raise ValueError(f"{', '.join(set_)} would have no effect {source} --dataset. Leave it out.")
        self.dataset_name = self.dataset_name or self.dataset
        of_a_table = [option for option in fields(self) if option.name not in _OF_A_CACHE]
        if self.cache is not None and (set_ := [o.name for o in of_a_table if self._is_set(o)]):
            raise ValueError(f"--cache is trained on as it is: {', '.join(set_)} would have no effect. Leave it out.")

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


__all__ = ["DEFAULTS", "DataArguments", "check_private_pairs"]
