"""Arguments of the pre-training script, from the command line and from a YAML or JSON recipe."""

import json
import sys
from collections.abc import Collection, Sequence
from dataclasses import MISSING, Field, dataclass, field, fields
from pathlib import Path
from typing import Any

from huggingface_hub.errors import StrictDataclassError
from transformers import HfArgumentParser

from ..configs import SUFFIXES, find_recipe, list_recipes, read_recipe
from ..configuration_adaptor import AdaptorConfig
from ..data.reading import IMAGE_MODES
from ..data.splits import DEFAULT_SEED
from ..options.command import started_as
from ..privacy.mode import PrivacyArguments, is_private
from .arguments import AdaptorTrainingArguments
from .checkpoints import checkpoint_steps

_OF_A_TABLE = ("image_column", "text_column", "image_root", "patient_column", "study_column", "id_column",
               "view_column", "split_column", "split_alias", "filter", "missing_word")  # fmt: skip
_OF_A_CACHE = ("cache", "dataset_name", "duplicates", "id_namespace")
_OF_A_DATASET = ("split_scheme", "dataset_option")


@dataclass
class DataArguments:
    """Which pairs, which part of them, and where their embeddings are kept."""

    train_file: str | None = field(
        default=None,
        metadata={
            "help": "Pairs: a CSV, TSV, Parquet or JSON-lines file, an imagefolder, a `datasets` folder, a hub id."
        },
    )
    dataset: str | None = field(
        default=None,
        metadata={"help": "A public data set by name (python -m adaptor_hf.data list), instead of --train_file."},
    )
    data_root: str | None = field(default=None, metadata={"help": "Folder of --dataset, as it was downloaded."})
    split_scheme: str = field(default="official", metadata={"help": "Split of --dataset: official, patient, mgca..."})
    dataset_option: list[str] = field(
        default_factory=list, metadata={"help": "Options of --dataset as name=value, such as recipe=mgca; repeatable."}
    )
    cache: str | None = field(
        default=None,
        metadata={"help": "A ready embedding cache to train on, instead of --train_file and towers."},
    )
    cache_dir: str | None = field(
        default=None, metadata={"help": "Where embeddings are kept. Default: `embeddings` inside output_dir."}
    )
    image_column: str = field(default="image", metadata={"help": "Column of image paths."})
    text_column: str = field(default="text", metadata={"help": "Column of reports."})
    image_root: str | None = field(default=None, metadata={"help": "Folder that image paths are relative to."})
    voi_lut: bool = field(
        default=False, metadata={"help": "Read DICOM files as displayed: with their VOI LUT or window (docs/data.md)."}
    )
    image_mode: str = field(
        default="auto",
        metadata={
            "help": "L (grey) or RGB. auto: what a public data set declares; of a table, what some of its files show.",
            "choices": list(IMAGE_MODES),
        },
    )
    patient_column: str | None = field(default=None, metadata={"help": "Column of patient ids: splits go by it."})
    study_column: str | None = field(default=None, metadata={"help": "Column of study ids."})
    id_column: str | None = field(default=None, metadata={"help": "Column of image ids; default: the image's path."})
    ids: str | None = field(
        default=None,
        metadata={"help": "Ids in several spellings: exact keeps them apart, canonical makes them one. Default: stop.",
                  "choices": ["exact", "canonical"]},
    )  # fmt: skip
    view_column: str | None = field(default=None, metadata={"help": "Column of the view, such as PA."})
    split_column: str | None = field(default=None, metadata={"help": "Column of the split: train, validation, test."})
    split_alias: list[str] = field(
        default_factory=list,
        metadata={"help": "Rename splits, for example validation=test where a table's val part is held out."},
    )
    filter: list[str] = field(default_factory=list, metadata={"help": "Keep rows where column=value; repeatable."})
    missing_word: list[str] = field(
        default_factory=list, metadata={"help": "More words for a missing value in the table, such as unknown."}
    )
    validation_fraction: float = field(default=0.1, metadata={"help": "Share of patients, where no split is given."})
    test_fraction: float = field(default=0.1, metadata={"help": "Share of patients, where no split is given."})
    split_seed: int = field(default=DEFAULT_SEED, metadata={"help": "Of splits by patient, and of --train_fraction."})
    train_fraction: float = field(default=1.0, metadata={"help": "Share of training patients to use (nested, seeded)."})
    max_text_length: int = field(default=112, metadata={"help": "Tokens after which a report is cut (paper: 112)."})
    extraction_batch_size: int | None = field(
        default=None, metadata={"help": "Images or texts a tower forward. Default: 64 on a GPU, 4 on the CPU."}
    )
    duplicates: str = field(
        default="refuse",
        metadata={"help": "Training images that are copies of held-out ones: refuse, drop them from training, or keep.",
                  "choices": ["refuse", "drop", "keep"]},
    )  # fmt: skip
    image_store: str | None = field(
        default=None, metadata={"help": "Folder that keeps resized images: the next tower need not decode."}
    )
    image_store_size: int = field(default=256, metadata={"help": "Shorter side of the stored images, in pixels."})
    dataset_name: str | None = field(default=None, metadata={"help": "What the model card calls the data."})
    id_namespace: str | None = field(
        default=None,
        metadata={"help": "Whose patient ids these are, such as my-hospital; default: the data set's name."},
    )

    def __post_init__(self):
        if sum(source is not None for source in (self.train_file, self.dataset, self.cache)) != 1:
            raise ValueError(
                "Give --train_file (a table of pairs), --dataset (a public data set) or --cache (ready embeddings), "
                "one of them."
            )
        if (self.dataset is None) != (self.data_root is None):
            raise ValueError("--dataset is the name of a public data set and --data_root its folder: give both.")
        without_effect = _OF_A_TABLE if self.dataset is not None else _OF_A_DATASET
        if set_ := [o.name for o in fields(self) if o.name in without_effect and self._is_set(o)]:
            source = "with" if self.dataset is not None else "without"
            raise ValueError(f"{', '.join(set_)} would have no effect {source} --dataset. Leave it out.")
        self.dataset_name = self.dataset_name or self.dataset
        of_a_table = [option for option in fields(self) if option.name not in _OF_A_CACHE]
        if self.cache is not None and (set_ := [o.name for o in of_a_table if self._is_set(o)]):
            raise ValueError(f"--cache is trained on as it is: {', '.join(set_)} would have no effect. Leave it out.")

    def _is_set(self, option: Field) -> bool:
        return getattr(self, option.name) != default_of(option)


@dataclass
class ModelArguments:
    """Towers and shape of the Adaptor. Defaults of the shape are those of `AdaptorConfig`."""

    vision_tower: str | None = field(
        default=None, metadata={"help": "Preset (dinov2-b, lite0, ...), hub id, folder, timm:NAME or xrv:NAME."}
    )
    text_tower: str | None = field(default=None, metadata={"help": "Preset (biobert, minilm, ...), hub id or folder."})
    hidden_size: int = field(default=768, metadata={"help": "Width of the Adaptor."})
    num_hidden_layers: int = field(default=2, metadata={"help": "Layers; 0 is two linear projections."})
    num_attention_heads: int = field(default=12, metadata={"help": "Attention heads."})
    intermediate_size: int = field(default=2048, metadata={"help": "Width of the feed-forward layers."})
    hidden_dropout_prob: float = field(default=0.1, metadata={"help": "Dropout of the layers."})
    attention_probs_dropout_prob: float = field(default=0.1, metadata={"help": "Dropout of attention weights."})
    logit_scale_init_value: float = field(default=2.6592, metadata={"help": "Logarithm of the initial scale."})
    max_logit_scale: float | None = field(default=None, metadata={"help": "Bound of the scale; CLIP's is 100."})
    image_to_text_weight: float = field(default=0.75, metadata={"help": "alpha of the paper's equation (4)."})

    def config(self, **kwargs: Any) -> AdaptorConfig:
        """An `AdaptorConfig` of this shape; `kwargs` add widths and tower references."""
        shape = {name: value for name, value in vars(self).items() if not name.endswith("_tower")}
        return AdaptorConfig(**shape, **kwargs)


@dataclass
class RunArguments(PrivacyArguments):
    """What the script does besides training."""

    dry_run: bool = field(default=False, metadata={"help": "Measure 32 rows here, estimate the run, and stop."})
    controls: bool = field(
        default=False,
        metadata={"help": "Also train two linear projections and an Adaptor on shuffled pairs, and compare."},
    )
    learning_rate_grid: list[float] = field(
        default_factory=list,
        metadata={"help": "Learning rates that --controls tries for every trained variant, chosen on validation."},
    )

    towers_dir: str | None = field(
        default=None,
        metadata={"help": "Look for towers first in this folder, made by `python -m adaptor_hf.towers bundle`."},
    )

    def __post_init__(self):
        if self.learning_rate_grid and not self.controls:
            raise ValueError("--learning_rate_grid is the grid of --controls: give both, or --learning_rate alone.")


def default_of(option: Field) -> Any:
    return option.default if option.default_factory is MISSING else option.default_factory()


def parse_arguments(
    arguments: list[str] | None = None,
) -> tuple[DataArguments, ModelArguments, RunArguments, AdaptorTrainingArguments]:
    """
    Parse the command line. `--recipe` names a packaged recipe or a file; so does a first argument that ends in .yaml,
    .yml or .json. Options override it.

    Raises:
        OSError: if the recipe cannot be read.
        ValueError: for unknown options, unknown keys of the recipe, a recipe that is no mapping, or options that do not
            go together.
        SystemExit: for a value of the wrong type, as argparse does.
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    groups = [DataArguments, ModelArguments, RunArguments, AdaptorTrainingArguments]
    command = started_as("train_pretrain")
    parser = HfArgumentParser(
        groups, usage=f"{command} [--recipe NAME_OR_FILE] --OPTION VALUE ... (--help lists the options)"
    )
    path, arguments = split_recipe(arguments)
    if path is not None:
        recipe = read_recipe(path)
        known = {option.name for group in groups for option in fields(group) if option.init}
        if unknown := sorted(map(str, recipe.keys() - known)):
            raise ValueError(f"Unknown keys in the recipe: {', '.join(unknown)}. See {command} --help.")
        # As if typed first: argparse then converts and checks the values, and later options win.
        arguments = [word for name, value in recipe.items() for word in as_option(name, value)] + arguments
    data, model, run, training = parser.parse_args_into_dataclasses(arguments)
    if str(training.resume_from_checkpoint).lower() == "true":
        training.resume_from_checkpoint = True
    return data, model, run, training


def split_recipe(
    words: Sequence[str], kind: str = "pretrain", not_recipes: Collection[str] = ()
) -> tuple[Path | None, list[str]]:
    """
    Path of the recipe that a command line names, as its first word (a file) or by `--recipe`, and the other words.

    Args:
        words (`Sequence[str]`): Of the command line, without the program.
        kind (`str`, defaults to `"pretrain"`): `pretrain` or `downstream`.
        not_recipes (`Collection[str]`): Values of `--recipe` that mean something else; they stay where they are.

    Raises:
        FileNotFoundError, ValueError: as [`find_recipe`]; also `ValueError` for two recipes, or `--recipe` without one.
    """
    given, rest = [], []
    words = iter(words)
    for number, word in enumerate(words):
        option, equals, value = word.partition("=")
        if number == 0 and word.endswith(SUFFIXES) and not word.startswith("-"):
            given.append(word)
            continue
        if option != "--recipe":
            rest.append(word)
            continue
        if not equals and (value := next(words, None)) is None:
            raise ValueError(f"--recipe needs a name ({', '.join(list_recipes(kind))}) or a file.")
        if value in not_recipes:
            rest += ["--recipe", value]
        else:
            given.append(value)
    if len(given) > 1:
        raise ValueError(f"One recipe a command, got {' and '.join(given)}. Options after it override its values.")
    return (find_recipe(given[0], kind) if given else None), rest


def as_option(name: str, value: Any) -> list[str]:
    """An entry of a recipe as words of a command line; an empty one (null, []) is left at its default."""
    if value is None or value == []:
        return []
    if isinstance(value, list):
        return [f"--{name}", *map(str, value)]
    return [f"--{name}={json.dumps(value) if isinstance(value, dict) else value}"]


def check_together(
    data: DataArguments, model: ModelArguments, run: RunArguments, training: AdaptorTrainingArguments
) -> None:
    """
    Check the Adaptor's shape and what one group of arguments asks of another, before anything is computed.

    Raises:
        ValueError: naming the options.
    """
    try:
        model.config()
    except StrictDataclassError as error:
        raise ValueError(str(error.__cause__ or error)) from error
    towers = {"--vision_tower": model.vision_tower, "--text_tower": model.text_tower}
    if data.cache is None and (missing := [name for name, value in towers.items() if value is None]):
        source = "--train_file" if data.train_file else "--dataset"
        raise ValueError(f"{source} needs {' and '.join(missing)}: python -m adaptor_hf.towers lists them.")
    if data.cache is not None and (given := [name for name, value in towers.items() if value is not None]):
        raise ValueError(f"--cache brings its towers: {' and '.join(given)} would have no effect. Leave it out.")
    if is_private():
        check_private(data, run, training)
    if training.push_to_hub and data.cache is not None and data.dataset_name is None:
        raise ValueError(
            "--push_to_hub with --cache needs --dataset_name, such as mimic_cxr or my-hospital: a cache does not know "
            "its data set, and the terms of some restrict what may be shared."
        )
    if checkpoint_steps(Path(training.output_dir)) and not training.resume_from_checkpoint and not run.dry_run:
        raise ValueError(
            f"{training.output_dir} holds checkpoints of an earlier run, which would be mixed with this one's. Go on "
            "with --resume_from_checkpoint True, or choose another --output_dir."
        )
    if run.dry_run and data.cache is not None:
        raise ValueError(
            "--dry_run measures towers on a table: give --train_file or --dataset and both towers instead of --cache."
        )
    if run.dry_run and training.world_size > 1:
        raise ValueError("--dry_run measures one process: start it with python, without accelerate launch.")


def check_private(data: DataArguments, run: RunArguments, training: AdaptorTrainingArguments) -> None:
    """
    Check that nothing asked for would carry data out of a private run.

    Raises:
        ValueError: naming the option.
    """
    if trackers := [name for name in training.report_to if name != "none"]:
        raise ValueError(f"--private writes to no tracker: leave out --report_to {' '.join(trackers)}.")
    if data.image_store is not None:
        raise ValueError("--private keeps no copies of images: leave out --image_store.")
    if training.push_to_hub and not run.allow_push:
        raise ValueError(
            "--private refuses --push_to_hub. A model trained on reports may tell of them; pass --allow_push to send "
            "the fixed list of files (model, code, processor, card) after all."
        )


def path_arguments(data: DataArguments, model: ModelArguments, training: AdaptorTrainingArguments) -> list[str | None]:
    """What among the arguments may be a path, for `start_private_mode`."""
    towers = [name if name and Path(name).exists() else None for name in (model.vision_tower, model.text_tower)]
    given = [data.train_file, data.data_root, data.cache, data.cache_dir, data.image_root, training.output_dir]
    return [*given, *towers, training.resume_from_checkpoint if training.resume_from_checkpoint is not True else None]


__all__ = [
    "DataArguments",
    "ModelArguments",
    "RunArguments",
    "check_together",
    "parse_arguments",
    "path_arguments",
    "read_recipe",
]
