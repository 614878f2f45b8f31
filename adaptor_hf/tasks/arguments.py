"""Arguments of the downstream script, from the command line and from a YAML or JSON recipe."""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..configs import read_words
from ..configuration_adaptor import AdaptorConfig
from ..data.labels import LABEL_POLICIES
from ..data.reading import Reading
from ..data.table_arguments import (
    EMBEDDINGS,
    PUBLIC,
    SPLIT,
    TABLE,
    TableArguments,
    TowerArguments,
)
from ..data.table_arguments import table_options as reading_options
from ..evaluation.controls import CONTROLS, controls_made
from ..evaluation.tasks import TASKS
from ..moved import warn_of
from ..options.command import started_as
from ..options.fields import HIDDEN, NAMED_PATH, OPEN, PATH, option, path_values
from ..options.parser import OptionParser
from ..options.recipe import split_recipe
from ..privacy.mode import PRIVACY, PrivacyArguments, is_private
from ..random_specs_adaptor import PREFIX, is_random, is_same_network
from ..tower_specs_adaptor import partial_spec
from ..towers.references import tower_reference, weights_asked_for
from .prompts import list_prompt_sets
from .protocols import PROTOCOLS, get_protocol, get_segmentation_protocol

METHOD_OF_BLOCKS = "blocks"
"""Of the controls, the one whose option is a number."""
LABELS, EVALUATION, RUN = "labels", "evaluation", "run"


def _methods() -> str:
    """What `--train_tower` takes, with names; of the last blocks a number is given."""
    return ", ".join(
        f"{'N' if key == METHOD_OF_BLOCKS else key} ({CONTROLS[key].name})" for key in controls_made("fine-tuned")
    )


@dataclass
class DownstreamArguments(TableArguments, TowerArguments, PrivacyArguments):
    """What to evaluate, on what, and how often."""

    task: str = option(help="What is evaluated.", group=EVALUATION, choices=TASKS)
    model: str | None = option(
        None, "An Adaptor checkpoint: a folder or a hub id.", group=EVALUATION, privacy=PATH, metavar="MODEL"
    )
    more_models: list[str] = option(
        [], "More checkpoints, on other towers, evaluated in the same way.", group=EVALUATION, privacy=PATH,
        advanced=True, metavar="MODEL",
    )  # fmt: skip
    compare: bool = option(False, "Compare all runs of output_dir in pairs, and write comparison.md.", group=EVALUATION)
    output_dir: str = option(
        "outputs/downstream", "Where runs and their results go.", group=RUN, privacy=PATH, metavar="FOLDER"
    )
    table: str | None = option(
        None, "A CSV, TSV, Parquet or JSON-lines file, or a folder; instead of --dataset.", group=TABLE, privacy=PATH
    )
    label_column: list[str] = option(
        [], "Of the table: one column of classes, or columns of 0, 1, -1, empty.", group=LABELS, privacy=HIDDEN,
        metavar="COLUMN",
    )  # fmt: skip
    positive_label: str | None = option(
        None, "The positive one of two classes, where their names leave it open.", group=LABELS, privacy=HIDDEN,
        metavar="CLASS",
    )  # fmt: skip
    label_spelling: str | None = option(
        None, "Class names that differ in case or spaces: exact keeps, merge joins them.", group=LABELS, privacy=HIDDEN,
        advanced=True, metavar="HOW",
    )  # fmt: skip
    label_separator: str | None = option(
        None, "What joins several names in a label cell, such as |; none: nothing does.", group=LABELS, privacy=HIDDEN,
        advanced=True,
    )  # fmt: skip
    classes: list[str] = option([], "Labels to use; default: all.", group=LABELS, privacy=HIDDEN, metavar="CLASS")
    label_policy: str = option(
        "raw", f"What blank and uncertain labels become: {', '.join(LABEL_POLICIES)}.", group=LABELS,
        privacy=OPEN, metavar="POLICY",
    )  # fmt: skip
    mask_column: str | None = option(
        None, "Of the table: column of mask files.", group=LABELS, privacy=HIDDEN, metavar="COLUMN"
    )
    mask_values: str = option(
        "binary", "What is inside a mask file: its upper value; half: the upper half; nonzero: all above 0.",
        group=LABELS, advanced=True, choices=["binary", "half", "nonzero"],
    )  # fmt: skip
    mask_size: str = option(
        "scaled", "Masks of another size: scaled copies of the image's shape, or stretch any.", group=LABELS,
        advanced=True, choices=["scaled", "stretch"],
    )  # fmt: skip
    subgroup_column: list[str] = option(
        [], "Of the table: columns kept for subgroups, beside view, sex and age.", group=LABELS, privacy=HIDDEN,
        advanced=True, metavar="COLUMN",
    )  # fmt: skip
    allow_seen: bool = option(
        False, "Test on rows that were in pre-training; every result carries their counts.", group=EVALUATION,
        advanced=True,
    )  # fmt: skip
    external: list[str] = option(
        [], "More test sets: DATASET=ROOT, or NAME=TABLE with the columns of the table; repeatable.", group=EVALUATION,
        privacy=NAMED_PATH, metavar="NAME=PLACE",
    )  # fmt: skip
    protocol: str = option(
        "rigorous", f"How heads are trained: {', '.join(PROTOCOLS)}.", group=EVALUATION, privacy=OPEN, metavar="NAME"
    )
    head: str | None = option(
        None, "linear or mlp2, instead of the protocol's.", group=EVALUATION, privacy=OPEN, advanced=True,
        metavar="HEAD",
    )  # fmt: skip
    fraction: list[float] = option([1.0], "Shares of the training rows.", group=EVALUATION)
    seeds: list[int] = option([0, 1, 2, 3, 4], "One run each.", group=EVALUATION)
    image_size: int | None = option(
        None, "segmentation: side of the images in pixels; default: the tower's.", group=EVALUATION, advanced=True
    )
    cached_tokens: str | None = option(
        None, "segmentation: train on tokens of the cache, all or a grid of G x G, as --image_tokens keeps them.",
        group=EVALUATION, privacy=OPEN, advanced=True, metavar="all|G",
    )  # fmt: skip
    epochs: int | None = option(
        None, "segmentation and --train_tower: instead of the protocol's.", group=EVALUATION, advanced=True
    )
    shots: list[int] = option([1, 2, 4, 8, 16], "few_shot: images a class.", group=EVALUATION, advanced=True)
    episodes: int = option(20, "few_shot: draws of them.", group=EVALUATION, advanced=True)
    prompts: str | None = option(
        None, f"zero_shot: {', '.join(list_prompt_sets())}, a JSON file, or SLIP's files as "
        "labels.json:templates.json:NAME.", group=EVALUATION, privacy=HIDDEN, metavar="PROMPTS",
    )  # fmt: skip
    prompts_per_class: int | None = option(
        None, "zero_shot: draw so many prompts a class, anew for each seed; default: all.", group=EVALUATION,
        advanced=True,
    )  # fmt: skip
    controls: list[str] = option(
        [key for key in controls_made("built") if CONTROLS[key].by_default],
        f"Beside the Adaptor: {', '.join(controls_made('built'))}; none leaves them out.", group=EVALUATION,
        privacy=OPEN, metavar="CONTROL",
    )  # fmt: skip
    train_tower: list[str] = option(
        [], f"classification: also {_methods()}.", group=EVALUATION, privacy=OPEN, advanced=True,
        metavar="METHOD",
    )  # fmt: skip
    layer_decay: float = option(
        1.0, "--train_tower: factor on the learning rate from one block of the tower to the one before it.",
        group=EVALUATION, advanced=True,
    )  # fmt: skip
    gradient_checkpointing: bool = option(
        False, "--train_tower: compute activations of the tower's blocks twice instead of keeping them.",
        group=EVALUATION, advanced=True,
    )  # fmt: skip
    control_model: list[str] = option(
        [], f"{' or '.join(f'{key}=PATH' for key in controls_made('pretrained'))}, trained on the same pairs; default: "
        "those beside --model.",
        group=EVALUATION, privacy=NAMED_PATH, advanced=True, metavar="CONTROL=PATH",
    )  # fmt: skip
    supervised_control: str | None = option(
        None, "classification, zero_shot: also a published classifier, such as xrv:densenet121-res224-all.",
        group=EVALUATION, privacy=OPEN, advanced=True, metavar="xrv:NAME",
    )  # fmt: skip
    supervised_label: list[str] = option(
        [], "Its class for one of yours, where names do not tell; repeatable.", group=EVALUATION, privacy=HIDDEN,
        advanced=True, metavar="MINE=ITS",
    )  # fmt: skip
    device: str | None = option(
        None, "cpu, cuda; default: CUDA where there is one.", group=RUN, privacy=OPEN, metavar="DEVICE"
    )
    num_resamples: int = option(1000, "Of the bootstrap over patients.", group=EVALUATION, advanced=True)
    do_predict: str | None = option(
        None, "classification: a table without labels, or a folder of images; scores go to predictions.csv.", group=RUN,
        privacy=PATH,
    )  # fmt: skip
    class_name: list[str] = option(
        [], "With --private: names of classes and groups that may be written as they are.", group=PRIVACY,
        privacy=HIDDEN, advanced=True,
    )  # fmt: skip
    save_model: bool = option(
        False,
        "classification, segmentation: save the first seed's head with the Adaptor in `model`; of --train_tower too.",
        group=RUN,
    )

    def __post_init__(self):
        if self.task not in TASKS:
            raise ValueError(f"--task is one of {', '.join(TASKS)}, got {self.task!r}.")
        if (self.dataset is None) == (self.table is None):
            raise ValueError("Give --dataset (a public data set) or --table (your own), one of them.")
        super().__post_init__()
        if self.model is None:
            raise ValueError("--model is the Adaptor checkpoint to evaluate: a folder or a hub id.")
        others = [name for task in TASKS.values() for name in task.own_options]
        if wrong := [name for name in others if getattr(self, name) and name not in TASKS[self.task].own_options]:
            known = [task.name for task in TASKS.values() if wrong[0] in task.own_options]
            raise ValueError(f"--{wrong[0]} is for --task {' or '.join(known)}, not {self.task}.")
        self._check_needs()
        if self.cached_tokens is not None:
            self._check_tokens()
        if self.task == "segmentation":
            get_segmentation_protocol(self.protocol)
        else:
            get_protocol(self.protocol, head=self.head)
        if self.more_models and (given := [name for name in ("do_predict", "save_model") if getattr(self, name)]):
            raise ValueError(f"--{given[0]} would be overwritten by --more_models: give one model a command.")
        if self.controls == ["none"]:
            self.controls = []
        for name in ("external", "control_model", "supervised_label"):
            if wrong := [item for item in getattr(self, name) if "=" not in item]:
                reads = "MINE=ITS" if name == "supervised_label" else "NAME=PLACE"
                raise ValueError(f"--{name} reads {reads}, got {wrong[0]!r}.")
        if self.supervised_label and self.supervised_control is None:
            raise ValueError("--supervised_label names classes of --supervised_control: give both.")
        methods = [METHOD_OF_BLOCKS if re.fullmatch(r"[1-9]\d{0,3}", one) else one for one in self.train_tower]
        given = {"built": self.controls, "pretrained": pairs_of(self.control_model), "fine-tuned": methods}
        for made, keys in given.items():
            if unknown := [key for key in keys if key not in controls_made(made)]:
                known = ("N" if key == METHOD_OF_BLOCKS else key for key in controls_made(made))
                raise ValueError(f"Unknown control {unknown[0]!r}. Choose of {', '.join(known)}.")
        if METHOD_OF_BLOCKS in self.train_tower:
            raise ValueError("--train_tower takes the number of last blocks that train, such as 2.")
        if not 0 < self.layer_decay <= 1:
            raise ValueError(f"--layer_decay must be above 0 and at most 1 (no decay), got {self.layer_decay}.")
        for name in ("layer_decay", "gradient_checkpointing"):
            if getattr(self, name) != getattr(type(self), name) and not self.train_tower:
                raise ValueError(f"--{name} is for a tower that trains: it goes with --train_tower.")
        wrong = [value for value in self.fraction if not 0 < value <= 1]
        if wrong or not self.fraction:
            raise ValueError(f"--fraction takes shares in (0, 1], got {self.fraction}. For 10 % pass 0.1.")
        if len(set(self.seeds)) != len(self.seeds) or not self.seeds:
            raise ValueError(f"--seeds takes different whole numbers, got {self.seeds}.")

    def _check_needs(self) -> None:
        """What the task declares that it needs, as far as options name it. Labels need no option: a folder a class."""
        needs = TASKS[self.task].needs
        if "prompts" in needs and self.prompts is None:
            known = ", ".join(list_prompt_sets())
            raise ValueError(f"--task {self.task} needs --prompts: {known}, or a JSON file.")
        if "masks" in needs and self.table is not None and self.mask_column is None:
            raise ValueError(f"--task {self.task} needs masks: name their column with --mask_column.")
        if "reports" in needs and self.table is not None and self.text_column is None:
            raise ValueError(f"--task {self.task} needs reports: name their column with --text_column.")

    def _check_tokens(self) -> None:
        if self.cached_tokens != "all" and not re.fullmatch(r"[1-9]\d{0,3}", self.cached_tokens):
            raise ValueError(f"--cached_tokens is all, or G for a grid of G x G tokens, got {self.cached_tokens!r}.")
        if self.image_size is not None:
            raise ValueError(
                "--cached_tokens reads what the tower gave at its own size and crop: leave --image_size out, or "
                "--cached_tokens for whole images of any size."
            )

    @property
    def name(self) -> str:
        """What results call the data set: a table's file or folder name where it is not named."""
        own = "private table" if is_private() else Path(self.table or "").name.partition(".")[0]
        return self.dataset_name or self.dataset or own

    @property
    def reading(self) -> Reading:
        """How images are read, once `with_default_reading` has filled in what the options leave to the checkpoint."""
        return Reading(self.image_mode, bool(self.voi_lut), self.range_percentile or 0.0)


def option_parser() -> OptionParser:
    """The parser of train_downstream.py."""
    return OptionParser(
        [DownstreamArguments],
        started_as("train_downstream"),
        titles=(TABLE, LABELS, SPLIT, PUBLIC, EVALUATION, EMBEDDINGS, RUN, PRIVACY),
        essential=("task", "model", "table", "dataset", "data_root", "output_dir"),
        left={
            "voi_lut": "as in the training of --model",
            "range_percentile": "as in the training of --model",
            "vision_tower": "the checkpoint's",
            "text_tower": "the checkpoint's",
        }
        | dict.fromkeys(("split_scheme", "split_seed", "validation_fraction", "test_fraction"), "as in pre-training"),
    )


def parse_arguments(arguments: list[str] | None = None) -> DownstreamArguments:
    """
    Parse the command line. `--recipe` names a packaged recipe or a file; so does a first argument that ends in .yaml,
    .yml or .json. Options override it.

    Raises:
        OSError: if the recipe cannot be read.
        ValueError: for unknown options or keys, or options that do not go together.
        SystemExit: for a value of the wrong type, as argparse does.
    """
    path, words = split_recipe(_with_protocol(sys.argv[1:] if arguments is None else arguments), "downstream")
    recipe = read_words(path) if path else {}
    if "recipe" in recipe:
        warn_of("the key recipe", "protocol")
        recipe = {"protocol": recipe.pop("recipe"), **recipe}
    (found,) = option_parser().parse(words, recipe)
    return found


def _with_protocol(words: Sequence[str]) -> list[str]:
    """The words with `--protocol` where `--recipe` names a protocol, as it did."""
    words = list(words)
    for place, word in enumerate(words):
        option, equals, value = word.partition("=")
        name = value if equals else "".join(words[place + 1 : place + 2])
        if option == "--recipe" and name in PROTOCOLS:
            warn_of(f"--recipe {name}", f"--protocol {name}", stacklevel=3)
            words[place] = f"--protocol{equals}{value}"
    return words


def pairs_of(items: list[str]) -> dict[str, str]:
    """`NAME=PLACE` items as a mapping."""
    return {name.strip(): place for name, _, place in (item.partition("=") for item in items)}


def named_tower(arguments: DownstreamArguments, kind: str) -> Any:
    """
    The vision or text tower of the options, as `build_cache` takes it; None for that of the checkpoint. Random weights
    are drawn from `--init_seed`, else as the checkpoint's own tower was where that is the same network.

    Raises:
        OSError, ValueError: there is no such tower, or its options do not go with it.
    """
    names = (arguments.vision_tower, arguments.text_tower)
    weights = weights_asked_for(*names, arguments.init_seed, arguments.text_tokenizer)[kind]
    name = names[kind == "text"]
    if name is None:
        return None
    if name.startswith(PREFIX) and arguments.init_seed is None:
        own = getattr(AdaptorConfig.from_pretrained(arguments.model), f"{kind}_tower")
        if is_random(own) and is_same_network(partial_spec(kind, name, None, None, **weights), own):
            weights = weights | {"init_seed": own["init_seed"]}
    return tower_reference(kind, name, **weights)


def path_arguments(arguments: DownstreamArguments) -> list[str]:
    """What among the arguments may be a path, for `start_private_mode`."""
    return path_values(arguments)


def table_options(arguments: DownstreamArguments) -> dict[str, Any]:
    """What `load_table` is told."""
    return reading_options(arguments) | {
        "mask_column": arguments.mask_column,
        "mask_values": arguments.mask_values,
        "mask_size": arguments.mask_size,
        "label_columns": arguments.label_column,
        "extra_columns": arguments.subgroup_column,
        "label_spelling": arguments.label_spelling,
        "label_separator": arguments.label_separator,
    }


__all__ = [
    "DownstreamArguments",
    "option_parser",
    "pairs_of",
    "parse_arguments",
    "path_arguments",
    "table_options",
]
