"""Options of both scripts: where the rows come from, how they are read and split, and which towers embed them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ..options.fields import HIDDEN, NAME_OR_PATH, OPEN, PATH, option
from .content_keys import CHECKS
from .duplicates import ACTIONS
from .ids import MODES
from .reading import IMAGE_MODES
from .split_rule import SplitRule

TABLE, SPLIT, PUBLIC, EMBEDDINGS = "table", "split", "public data set", "embeddings"


@dataclass(kw_only=True)
class TableArguments:
    """A table of the user, or a public data set, and its split. What is None is left to the script, which says."""

    dataset: str | None = option(
        None, "A public data set by name (python -m adaptor_hf.data list), instead of a table.", group=PUBLIC,
        privacy=OPEN, metavar="NAME",
    )  # fmt: skip
    data_root: str | None = option(
        None, "Folder of --dataset, as it was downloaded.", group=PUBLIC, privacy=PATH, metavar="FOLDER"
    )
    split_scheme: str | None = option(
        None, "Split of --dataset: official, patient, mgca...",
        group=PUBLIC, privacy=OPEN, metavar="NAME",
    )  # fmt: skip
    dataset_option: list[str] = option(
        [], "Options of --dataset, such as sentences=mgca; repeatable.", group=PUBLIC, privacy=HIDDEN, advanced=True,
        metavar="NAME=VALUE",
    )  # fmt: skip
    image_column: str = option("image", "Column of image paths.", group=TABLE, privacy=HIDDEN, metavar="COLUMN")
    text_column: str | None = option(None, "Column of reports.", group=TABLE, privacy=HIDDEN, metavar="COLUMN")
    image_root: str | None = option(
        None, "Folder that image paths are relative to.", group=TABLE, privacy=PATH, metavar="FOLDER"
    )
    patient_column: str | None = option(
        None, "Column of patient ids: splits go by it.", group=TABLE, privacy=HIDDEN, metavar="COLUMN"
    )
    study_column: str | None = option(None, "Column of study ids.", group=TABLE, privacy=HIDDEN, metavar="COLUMN")
    id_column: str | None = option(
        None, "Column of image ids; default: the image's path.", group=TABLE, privacy=HIDDEN, advanced=True,
        metavar="COLUMN",
    )  # fmt: skip
    split_column: str | None = option(
        None, "Column of the split: train, validation, test.", group=TABLE, privacy=HIDDEN, metavar="COLUMN"
    )
    filter: list[str] = option([], "Keep these rows; repeatable.", group=TABLE, privacy=HIDDEN, metavar="COLUMN=VALUE")
    delimiter: str | None = option(
        None, "Separator of the table's cells: comma, semicolon, tab, bar or a character; default: as found.",
        group=TABLE, privacy=OPEN, metavar="NAME",
    )  # fmt: skip
    encoding: str | None = option(
        None, "Of the table, such as windows-1252. Default: UTF-8, or UTF-16 with a mark.", group=TABLE, privacy=OPEN,
        advanced=True, metavar="NAME",
    )  # fmt: skip
    missing_word: list[str] = option(
        [], "More words for a missing value in the table, such as unknown.", group=TABLE, privacy=OPEN, advanced=True,
        metavar="WORD",
    )  # fmt: skip
    ids: str | None = option(
        None, "Ids in several spellings: exact keeps them apart, canonical makes them one. Default: stop.",
        group=TABLE, advanced=True, choices=list(MODES),
    )  # fmt: skip
    image_mode: str = option(
        "auto", "L (grey) or RGB. auto: of a public data set what it declares, of a table what some of its files show; "
        "downstream as in the training of --model.", group=TABLE, advanced=True, choices=list(IMAGE_MODES),
    )  # fmt: skip
    voi_lut: bool | None = option(
        None, "Read DICOM files as displayed: with their VOI LUT or window (docs/data.md).",
        group=TABLE, nargs="?", const=True,
    )  # fmt: skip
    range_percentile: float | None = option(
        None, "Scale deep files from this percentile to 100 minus it, such as 0.5, not from minimum to maximum.",
        group=TABLE, advanced=True,
    )  # fmt: skip
    dataset_name: str | None = option(
        None, "What results and cards call the data.", group=TABLE, privacy=OPEN, metavar="NAME"
    )
    id_namespace: str | None = option(
        None, "Whose patient ids these are, such as my-hospital; default: the data set's name.", group=TABLE,
        privacy=HIDDEN, advanced=True, metavar="NAME",
    )  # fmt: skip
    split_alias: list[str] = option(
        [], "Rename splits, for example validation=test where a table's val part is held out.", group=SPLIT,
        privacy=HIDDEN, advanced=True, metavar="OLD=NEW",
    )  # fmt: skip
    validation_fraction: float | None = option(None, "Share of patients, where no split is given.", group=SPLIT)
    test_fraction: float | None = option(None, "Share of patients, where no split is given.", group=SPLIT)
    split_seed: int | None = option(None, "Of splits by patient.", group=SPLIT, advanced=True)
    duplicates: str = option(
        "refuse", "Training images that are copies of held-out ones: refuse, drop them from training, or keep.",
        group=SPLIT, advanced=True, choices=list(ACTIONS),
    )  # fmt: skip
    cache_dir: str | None = option(
        None, "Where embeddings are kept. Default: `embeddings` beside output_dir, for train_downstream.py in it.",
        group=EMBEDDINGS, privacy=PATH, metavar="FOLDER",
    )  # fmt: skip
    check: str = option(
        "touched", "Compare cached embeddings with their digests: those that are used, full: all of the cache's files, "
        "or off.", group=EMBEDDINGS, advanced=True, choices=list(CHECKS),
    )  # fmt: skip
    extraction_batch_size: int | None = option(
        None, "Images or texts a tower forward. Default: 64 on a GPU, 4 on the CPU.", group=EMBEDDINGS, advanced=True
    )

    def __post_init__(self):
        if (self.dataset is None) != (self.data_root is None):
            raise ValueError("--dataset is the name of a public data set and --data_root its folder: give both.")


@dataclass(kw_only=True)
class TowerArguments:
    """The towers, by preset, place or name."""

    vision_tower: str | None = option(
        None, "Preset (dinov2-b, lite0...), hub id, folder, timm:NAME, xrv:NAME, or random:NAME.",
        group=EMBEDDINGS, privacy=NAME_OR_PATH, advanced=True, metavar="TOWER",
    )  # fmt: skip
    text_tower: str | None = option(
        None, "Preset (biobert, minilm...), hub id, folder, or random:NAME.", group=EMBEDDINGS,
        privacy=NAME_OR_PATH, advanced=True, metavar="TOWER",
    )  # fmt: skip
    text_tokenizer: str | None = option(
        None, "Folder or hub id of the tokenizer of a random: text tower.", group=EMBEDDINGS,
        privacy=NAME_OR_PATH, advanced=True, metavar="FOLDER",
    )  # fmt: skip
    init_seed: int | None = option(
        None, "Of random: towers. Default: in pre-training --seed, later that of the checkpoint's own tower, else 0.",
        group=EMBEDDINGS, advanced=True,
    )  # fmt: skip
    towers_dir: str | None = option(
        None, "Look for towers first in this folder, made by `python -m adaptor_hf.towers bundle`.", group=EMBEDDINGS,
        privacy=PATH, advanced=True, metavar="FOLDER",
    )  # fmt: skip


def table_options(arguments: TableArguments) -> dict[str, Any]:
    """How a table is read: what `load_pairs`, and so `load_table`, is told."""
    same = ("image_column", "text_column", "image_root", "patient_column", "study_column", "split_column", "id_column",
            "ids", "image_mode", "encoding")  # fmt: skip
    return {name: getattr(arguments, name) for name in same} | {
        "sep": arguments.delimiter,
        "filters": arguments.filter or None,
        "voi_lut": bool(arguments.voi_lut),
        "range_percentile": arguments.range_percentile or 0.0,
        "missing_words": tuple(arguments.missing_word),
    }


def public_options(arguments: TableArguments, rule: SplitRule) -> dict[str, Any]:
    """How a public data set is split and read: what `load_public_dataset` is told."""
    return {
        "seed": rule.seed,
        "validation_fraction": rule.validation_fraction,
        "test_fraction": rule.test_fraction,
        "voi_lut": bool(arguments.voi_lut),
        "range_percentile": arguments.range_percentile or 0.0,
        "image_mode": arguments.image_mode,
        "ids": arguments.ids,
    }


__all__ = ["TableArguments", "TowerArguments", "public_options", "table_options"]
