"""Arguments of the downstream script, from the command line and from a YAML or JSON recipe."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from ..data.reading import IMAGE_MODES, Reading
from ..evaluation.tasks import TASKS
from ..privacy.mode import PrivacyArguments, is_private


@dataclass
class DownstreamArguments(PrivacyArguments):
    """What to evaluate, on what, and how often."""

    task: str = field(metadata={"help": f"One of: {', '.join(TASKS)}.", "choices": TASKS})
    model: str | None = field(default=None, metadata={"help": "An Adaptor checkpoint: a folder or a hub id."})
    more_models: list[str] = field(
        default_factory=list, metadata={"help": "More checkpoints, on other towers, evaluated in the same way."}
    )
    compare: bool = field(
        default=False, metadata={"help": "Compare all runs of output_dir in pairs, and write comparison.md."}
    )
    output_dir: str = field(default="outputs/downstream", metadata={"help": "Where runs and their results go."})
    dataset: str | None = field(
        default=None, metadata={"help": "A public data set by name (python -m adaptor_hf.data list)."}
    )
    data_root: str | None = field(default=None, metadata={"help": "Folder of --dataset, as it was downloaded."})
    split_scheme: str | None = field(
        default=None, metadata={"help": "Split of --dataset: official, patient, mgca... Default: as in pre-training."}
    )
    dataset_option: list[str] = field(
        default_factory=list, metadata={"help": "Options of --dataset as name=value; repeatable."}
    )
    table: str | None = field(
        default=None, metadata={"help": "Instead of --dataset: a CSV, TSV, Parquet or JSON-lines file, or a folder."}
    )
    dataset_name: str | None = field(default=None, metadata={"help": "What results call the table."})
    label_column: list[str] = field(
        default_factory=list, metadata={"help": "Of the table: one column of classes, or columns of 0, 1, -1, empty."}
    )
    positive_label: str | None = field(
        default=None, metadata={"help": "The positive one of two classes, where their names leave it open."}
    )
    label_spelling: str | None = field(
        default=None, metadata={"help": "Class names that differ in case or spaces: exact keeps, merge joins them."}
    )
    label_separator: str | None = field(
        default=None, metadata={"help": "What joins several names in a label cell, such as |; none: nothing does."}
    )
    missing_word: list[str] = field(
        default_factory=list, metadata={"help": "More words for a missing value in the table, such as unknown."}
    )
    classes: list[str] = field(default_factory=list, metadata={"help": "Labels to use; default: all."})
    label_policy: str = field(
        default="raw", metadata={"help": "What blank and uncertain labels become: raw, ones, zeros, ignore, mgca, trx."}
    )
    mask_column: str | None = field(default=None, metadata={"help": "Of the table: column of mask files."})
    text_column: str | None = field(default=None, metadata={"help": "Of the table: column of reports."})
    image_column: str = field(default="image", metadata={"help": "Of the table: column of image paths."})
    image_root: str | None = field(default=None, metadata={"help": "Folder that image paths are relative to."})
    voi_lut: bool | None = field(
        default=None,
        metadata={"help": "Read DICOM files as displayed: with their VOI LUT or window. Default: as in the training of "
                  "--model.", "nargs": "?", "const": True},
    )  # fmt: skip
    image_mode: str = field(
        default="auto",
        metadata={"help": "L (grey) or RGB; auto: as in the training of --model.", "choices": list(IMAGE_MODES)},
    )
    patient_column: str | None = field(default=None, metadata={"help": "Of the table: column of patient ids."})
    split_column: str | None = field(default=None, metadata={"help": "Of the table: column of the split."})
    split_alias: list[str] = field(
        default_factory=list, metadata={"help": "Rename splits of the table, for example validation=test."}
    )
    study_column: str | None = field(default=None, metadata={"help": "Of the table: column of study ids."})
    id_column: str | None = field(default=None, metadata={"help": "Of the table: column of image ids."})
    ids: str | None = field(
        default=None,
        metadata={"help": "Ids in several spellings: exact keeps them apart, canonical makes them one. Default: stop.",
                  "choices": ["exact", "canonical"]},
    )  # fmt: skip
    subgroup_column: list[str] = field(
        default_factory=list, metadata={"help": "Of the table: columns kept for subgroups, beside view, sex and age."}
    )
    filter: list[str] = field(default_factory=list, metadata={"help": "Keep rows where column=value; repeatable."})
    validation_fraction: float | None = field(
        default=None, metadata={"help": "Share of patients, where no split is given. Default: as in pre-training."}
    )
    test_fraction: float | None = field(
        default=None, metadata={"help": "Share of patients, where no split is given. Default: as in pre-training."}
    )
    split_seed: int | None = field(
        default=None, metadata={"help": "Of splits by patient. Default: as in pre-training."}
    )
    id_namespace: str | None = field(
        default=None,
        metadata={"help": "Whose patient ids these are, as in pre-training; default: the data set's name."},
    )
    allow_seen: bool = field(
        default=False, metadata={"help": "Test on rows that were in pre-training; every result carries their counts."}
    )
    duplicates: str = field(
        default="refuse",
        metadata={"help": "Training images that are copies of held-out ones: refuse, drop them from training, or keep.",
                  "choices": ["refuse", "drop", "keep"]},
    )  # fmt: skip
    external: list[str] = field(
        default_factory=list,
        metadata={"help": "More test sets: DATASET=ROOT, or NAME=TABLE with the columns of the table; repeatable."},
    )
    recipe: str = field(default="rigorous", metadata={"help": "rigorous, adaptor, mgca, gloria or slip."})
    head: str | None = field(default=None, metadata={"help": "linear or mlp2, instead of the recipe's."})
    fraction: list[float] = field(default_factory=lambda: [1.0], metadata={"help": "Shares of the training rows."})
    seeds: list[int] = field(default_factory=lambda: [0, 1, 2, 3, 4], metadata={"help": "One run each."})
    image_size: int | None = field(
        default=None, metadata={"help": "segmentation: side of the images in pixels; default: the tower's."}
    )
    epochs: int | None = field(
        default=None, metadata={"help": "segmentation and --train_tower: instead of the recipe's."}
    )
    shots: list[int] = field(default_factory=lambda: [1, 2, 4, 8, 16], metadata={"help": "few_shot: images a class."})
    episodes: int = field(default=20, metadata={"help": "few_shot: draws of them."})
    prompts: str | None = field(
        default=None,
        metadata={"help": "zero_shot: chexpert, chexpert_5x200, covidx, phantom, rsna, siim, a JSON file, or SLIP's "
                  "files as labels.json:templates.json:NAME."},
    )  # fmt: skip
    prompts_per_class: int | None = field(
        default=None, metadata={"help": "zero_shot: draw so many prompts a class, anew for each seed; default: all."}
    )
    controls: list[str] = field(
        default_factory=lambda: ["tower", "untrained"],
        metadata={"help": "Beside the Adaptor: tower, untrained, mlp; none leaves them out."},
    )
    train_tower: list[str] = field(
        default_factory=list, metadata={"help": "classification: also finetune (end to end) and lora (through peft)."}
    )
    control_model: list[str] = field(
        default_factory=list,
        metadata={
            "help": "projections=PATH or shuffled=PATH, trained on the same pairs; default: those beside --model."
        },
    )
    vision_tower: str | None = field(
        default=None, metadata={"help": "Another place or preset of the checkpoint's vision tower."}
    )
    text_tower: str | None = field(
        default=None, metadata={"help": "Another place or preset of the checkpoint's text tower."}
    )
    towers_dir: str | None = field(
        default=None,
        metadata={"help": "Look for towers first in this folder, made by `python -m adaptor_hf.towers bundle`."},
    )
    cache_dir: str | None = field(
        default=None, metadata={"help": "Where embeddings are kept. Default: `embeddings` inside output_dir."}
    )
    extraction_batch_size: int | None = field(default=None, metadata={"help": "Images a tower forward."})
    device: str | None = field(default=None, metadata={"help": "cpu, cuda; default: CUDA where there is one."})
    num_resamples: int = field(default=1000, metadata={"help": "Of the bootstrap over patients."})

    do_predict: str | None = field(
        default=None,
        metadata={"help": "classification: a table without labels; its images' scores go to predictions.csv."},
    )
    save_model: bool = field(
        default=False,
        metadata={"help": "classification, segmentation: save the first seed's head with the Adaptor, in `model`."},
    )

    def __post_init__(self):
        if self.task not in TASKS:
            raise ValueError(f"--task is one of {', '.join(TASKS)}, got {self.task!r}.")
        if (self.dataset is None) == (self.table is None):
            raise ValueError("Give --dataset (a public data set) or --table (your own), one of them.")
        if (self.dataset is None) != (self.data_root is None):
            raise ValueError("--dataset is the name of a public data set and --data_root its folder: give both.")
        if self.model is None:
            raise ValueError("--model is the Adaptor checkpoint to evaluate: a folder or a hub id.")
        others = [name for task in TASKS.values() for name in task.own_options]
        if wrong := [name for name in others if getattr(self, name) and name not in TASKS[self.task].own_options]:
            known = [task.name for task in TASKS.values() if wrong[0] in task.own_options]
            raise ValueError(f"--{wrong[0]} is for --task {' or '.join(known)}, not {self.task}.")
        if self.more_models and (given := [name for name in ("do_predict", "save_model") if getattr(self, name)]):
            raise ValueError(f"--{given[0]} would be overwritten by --more_models: give one model a command.")
        if self.controls == ["none"]:
            self.controls = []
        for name in ("external", "control_model"):
            if wrong := [item for item in getattr(self, name) if "=" not in item]:
                raise ValueError(f"--{name} reads NAME=PLACE, got {wrong[0]!r}.")
        wrong = [value for value in self.fraction if not 0 < value <= 1]
        if wrong or not self.fraction:
            raise ValueError(f"--fraction takes shares in (0, 1], got {self.fraction}. For 10 % pass 0.1.")
        if len(set(self.seeds)) != len(self.seeds) or not self.seeds:
            raise ValueError(f"--seeds takes different whole numbers, got {self.seeds}.")

    @property
    def name(self) -> str:
        """What results call the data set: a table's file or folder name where it is not named."""
        own = "private table" if is_private() else Path(self.table or "").name.partition(".")[0]
        return self.dataset_name or self.dataset or own

    @property
    def reading(self) -> Reading:
        """How images are read, once `with_default_reading` has filled in what the options leave to the checkpoint."""
        return Reading(self.image_mode, bool(self.voi_lut))


def parse_arguments(arguments: list[str] | None = None) -> DownstreamArguments:
    """
    Parse the command line. A first argument that ends in .yaml, .yml or .json is a recipe; later options override it.

    Raises:
        OSError: if the recipe cannot be read.
        ValueError: for unknown options or keys, or options that do not go together.
        SystemExit: for a value of the wrong type, as argparse does.
    """
    from transformers import HfArgumentParser

    from ..training.recipe import as_option, read_recipe

    arguments = list(sys.argv[1:] if arguments is None else arguments)
    parser = HfArgumentParser(
        DownstreamArguments, usage="python train_downstream.py [RECIPE.yaml] --OPTION VALUE ... (--help lists them)"
    )
    if arguments and arguments[0].endswith((".yaml", ".yml", ".json")):
        recipe = read_recipe(Path(arguments.pop(0)))
        known = {option.name for option in fields(DownstreamArguments)}
        if unknown := sorted(map(str, recipe.keys() - known)):
            raise ValueError(f"Unknown keys in the recipe: {', '.join(unknown)}. See train_downstream.py --help.")
        arguments = [word for name, value in recipe.items() for word in as_option(name, value)] + arguments
    return parser.parse_args_into_dataclasses(arguments)[0]


def pairs_of(items: list[str]) -> dict[str, str]:
    """`NAME=PLACE` items as a mapping."""
    return {name.strip(): place for name, _, place in (item.partition("=") for item in items)}


def path_arguments(arguments: DownstreamArguments) -> list[str | None]:
    """What among the arguments may be a path, for `start_private_mode`."""
    more = [*pairs_of([*arguments.external, *arguments.control_model]).values(), *arguments.more_models]
    towers = [name if name and Path(name).exists() else None for name in (arguments.vision_tower, arguments.text_tower)]
    return [arguments.model, arguments.table, arguments.data_root, arguments.image_root, arguments.output_dir,
            arguments.cache_dir, arguments.do_predict, *more, *towers]  # fmt: skip


def table_options(arguments: DownstreamArguments) -> dict[str, Any]:
    """What `load_table` is told."""
    same = (
        "mask_column",
        "text_column",
        "image_column",
        "image_root",
        "patient_column",
        "study_column",
        "split_column",
        "id_column",
        "ids",
    )
    options = {name: getattr(arguments, name) for name in same}
    return options | {
        "label_columns": arguments.label_column,
        "extra_columns": arguments.subgroup_column,
        "filters": arguments.filter or None,
        "voi_lut": bool(arguments.voi_lut),
        "image_mode": arguments.image_mode,
        "label_spelling": arguments.label_spelling,
        "label_separator": arguments.label_separator,
        "missing_words": tuple(arguments.missing_word),
    }


__all__ = ["DownstreamArguments", "pairs_of", "parse_arguments", "path_arguments", "table_options"]
