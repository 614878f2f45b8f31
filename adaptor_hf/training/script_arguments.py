"""Arguments of the pre-training script, from the command line and from a YAML or JSON recipe."""

import sys
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from huggingface_hub.errors import StrictDataclassError

from ..configs import read_recipe, read_words
from ..configuration_adaptor import AdaptorConfig
from ..data.pair_arguments import DEFAULTS, DataArguments
from ..data.sentence_recipes import SENTENCE_RECIPES
from ..data.table_arguments import EMBEDDINGS, PUBLIC, SPLIT, TABLE, TowerArguments
from ..data.view_recipes import RECIPES
from ..folder_lock import only_writer
from ..objectives.base import Objective
from ..objectives.loading import file_of, make_objective, objective_name, on_all_ranks
from ..options.command import started_as
from ..options.fields import OPEN, option, path_values
from ..options.parser import OptionParser
from ..options.recipe import split_recipe
from ..privacy.mode import PRIVACY, PrivacyArguments, is_private, private_words
from ..random_specs_adaptor import PREFIX
from ..tower_training_adaptor import parse_trainable
from .arguments import AdaptorTrainingArguments
from .checkpoints import checkpoint_steps
from .objective_fields import ALIGNERS, OBJECTIVES

if TYPE_CHECKING:
    from ..embeddings import EmbeddingCache

MODEL, TRAINING, EVALUATION, SHARING = "model", "training", "evaluation", "sharing"


@dataclass
class ModelArguments(TowerArguments):
    """
    Towers and how they train, aligner and objective; the last two by name or as a mapping, then instances of their
    dataclasses.
    """

    aligner: dict | str | None = option(
        ALIGNERS.default, "Between the towers and the shared space: a name, or a JSON mapping of its fields, such as "
        '{"hidden_size": 512} (--help_all).', group=MODEL, privacy=OPEN, metavar="NAME|JSON",
    )  # fmt: skip
    objective: dict | str | None = option(
        OBJECTIVES.default, "What is minimised: a name, your own file.py:Class, or a JSON mapping of its fields, such "
        'as {"positives": "study"} (--help_all).', group=MODEL, privacy=OPEN, metavar="NAME|JSON",
    )  # fmt: skip
    train_vision_tower: str = option(
        "frozen", "What of it trains: frozen, lora, full, or its last N blocks (docs/live_training.md).", group=MODEL,
        privacy=OPEN, metavar="frozen|lora|full|N",
    )  # fmt: skip
    train_text_tower: str = option(
        "frozen", "The same of the text tower.", group=MODEL, privacy=OPEN, metavar="frozen|lora|full|N"
    )
    lora_rank: int = option(8, "Rank of LoRA's matrices.", group=MODEL, advanced=True)
    merge_lora: bool = option(
        False, "Save a tower trained by LoRA with its matrices merged into the weights.", group=MODEL, advanced=True
    )
    image_recipe: str | None = option(
        None, "How images of a tower that trains are augmented (docs/views.md). Default: not at all.", group=MODEL,
        advanced=True, choices=list(RECIPES),
    )  # fmt: skip

    sentence_recipe: str | None = option(
        None, "The same of the reports: by sentences, as convirt, gloria, lovt or medclip do.", group=MODEL,
        advanced=True, choices=list(SENTENCE_RECIPES),
    )  # fmt: skip

    @property
    def trainable(self) -> dict[str, str | int]:
        """Of the towers that train, `vision` or `text`, how: `lora`, `full` or a number of blocks."""
        asked = {"vision": self.train_vision_tower, "text": self.train_text_tower}
        return {kind: value for kind, word in asked.items() if (value := parse_trainable(word)) != "frozen"}

    def __post_init__(self):
        self.aligner = ALIGNERS.build(self.aligner)
        self.objective = OBJECTIVES.build(self.objective)
        self._check_training()
        for name, value in self.objective.config().items():
            own = {item.name: item.default for item in fields(self.aligner)}
            if name in own and (given := getattr(self.aligner, name)) not in (own[name], value):
                raise ValueError(
                    f"{name} is {given!r} by --aligner, and {value!r} by --objective, of which it is a field too. Give "
                    "the same to both."
                )

    def training_options(self) -> dict[str, str]:
        """Of towers that train, what a card lists beside how each does."""
        recipes = {"image_recipe": self.image_recipe, "sentence_recipe": self.sentence_recipe}
        found = {name: recipe for name, recipe in recipes.items() if recipe is not None}
        if "lora" in self.trainable.values():
            found |= {"lora_rank": str(self.lora_rank), "merge_lora": str(self.merge_lora)}
        return found

    def _check_training(self) -> None:
        for kind in ("vision", "text"):
            word = getattr(self, f"train_{kind}_tower")
            try:
                parse_trainable(word)
            except ValueError as error:
                raise ValueError(f"--train_{kind}_tower: {error}") from error
        if self.lora_rank < 1:
            raise ValueError(f"--lora_rank is at least 1, got {self.lora_rank}.")
        if "lora" not in self.trainable.values():
            given = {"--lora_rank": self.lora_rank != 8, "--merge_lora": self.merge_lora}
            if names := [name for name, there in given.items() if there]:
                raise ValueError(f"{' and '.join(names)} would have no effect without a tower that trains by lora.")
        if self.image_recipe and "vision" not in self.trainable:
            raise ValueError("--image_recipe would have no effect: images are read once without --train_vision_tower.")
        if self.sentence_recipe and "text" not in self.trainable:
            raise ValueError(
                "--sentence_recipe would have no effect: reports are read once without --train_text_tower."
            )
        needs = self.objective.made.needs
        if self.sentence_recipe and (spans := [name for name in ("words", "sentences") if name in needs]):
            raise ValueError(
                f"--sentence_recipe gives other {' and '.join(spans)} than those that the cache knows, which the "
                "objective compares. Leave it out."
            )

    def config(self, **kwargs: Any) -> AdaptorConfig:
        """
        An `AdaptorConfig` of this shape and loss; `kwargs` add widths and tower references.

        Raises:
            ValueError: values that do not go together.
        """
        try:
            return AdaptorConfig(**self._shape(), **kwargs)
        except StrictDataclassError as error:
            raise ValueError(str(error.__cause__ or error)) from error

    def config_on(self, cache: "EmbeddingCache", **kwargs: Any) -> AdaptorConfig:
        """[`ModelArguments.config`] for the embeddings of a cache, with the towers that they are of."""
        vision, text = cache.vision_spec, cache.text_spec
        widths = {"vision_hidden_size": vision["hidden_size"], "text_hidden_size": text["hidden_size"]}
        return self.config(**widths, vision_tower=vision, text_tower=text, **kwargs)

    def make_objective(self) -> Objective:
        """
        What is minimised, with the options that were given.

        Raises:
            ValueError: its code fails, or the processes have different files of it.
        """
        made = on_all_ranks(lambda: self.objective.made)
        return make_objective(made, self.objective.arguments())

    def to_dict(self) -> dict[str, Any]:
        """For records: fields of aligner and config beside the towers. `objective_record` has all of the objective."""
        towers = {name: value for name, value in vars(self).items() if name not in ("aligner", "objective")}
        return towers | self._shape()

    def objective_record(self) -> dict[str, Any]:
        """Of the objective name, digest of its file and options; in private mode words as keyed hashes."""
        made = self.objective.made
        options = {item.name: getattr(self.objective, item.name) for item in fields(self.objective)}
        words = {item.name for item in fields(self.objective) if "choices" not in item.metadata}
        options = {name: private_words(value) if name in words else value for name, value in options.items()}
        return {"name": objective_name(made), "sha256": made.file_sha256, "options": options}

    def _shape(self) -> dict[str, Any]:
        # The name that the config gives it, too.
        name, fields_of = ALIGNERS.name_of(self.aligner), asdict(self.aligner)
        if (name, fields_of.get("num_hidden_layers")) == ("adaptor", 0):
            name = "linear"
        return {"aligner": name} | fields_of | self.objective.config()


@dataclass
class RunArguments(PrivacyArguments):
    """What the script does besides training."""

    dry_run: bool = option(False, "Measure 32 rows here, estimate the run, and stop.", group=EVALUATION)
    controls: bool = option(
        False, "Also train two linear projections and an Adaptor on shuffled pairs, and compare.", group=EVALUATION
    )
    learning_rate_grid: list[float] = option(
        [], "Learning rates that --controls tries for every trained system, chosen on validation.", group=EVALUATION
    )
    trust_remote_code: bool = option(
        False, "Run the objective's file that a recipe names; only on the command line.", group=MODEL, advanced=True
    )

    def __post_init__(self):
        if self.learning_rate_grid and not self.controls:
            raise ValueError("--learning_rate_grid is the grid of --controls: give both, or --learning_rate alone.")


Arguments = tuple[DataArguments, ModelArguments, RunArguments, AdaptorTrainingArguments]
"""All that the command line says, in groups."""

# Of transformers' options, and ours beside them, those of --help.
_PLACED = {
    "dataset_weights": (SPLIT, None),
    "source_batches": (SPLIT, None),
    "learning_rate": (TRAINING, None),
    "num_train_epochs": (TRAINING, None),
    "warmup_steps": (TRAINING, None),
    "weight_decay": (TRAINING, None),
    "global_batch_size": (TRAINING, None),
    "grad_cache_batch_size": (TRAINING, None),
    "tower_learning_rate": (MODEL, None),
    "seed": (TRAINING, "Of weights, order and dropout."),
    "use_cpu": (TRAINING, "Train on the CPU, also where there is a GPU."),
    "resume_from_checkpoint": (TRAINING, "True for the last checkpoint of output_dir, or a checkpoint's folder."),
    "report_to": (TRAINING, "Trackers, such as tensorboard or wandb."),
    "push_to_hub": (SHARING, "Push the model, its code and its card at the end."),
    "hub_model_id": (SHARING, "Where to, such as me/my-model."),
    "accept_data_terms": (SHARING, None),
    "output_dir": (TRAINING, "Where checkpoints, model and card go."),
}
# Of the published code.
_OF_THE_REFERENCE = {"--force_rebuild_dataset": "--rebuild"}


def option_parser() -> OptionParser:
    """The parser of train_pretrain.py."""
    return OptionParser(
        [DataArguments, ModelArguments, RunArguments, AdaptorTrainingArguments],
        started_as("train_pretrain"),
        titles=(TABLE, SPLIT, PUBLIC, EMBEDDINGS, MODEL, TRAINING, EVALUATION, SHARING, PRIVACY),
        essential=("train_file", "dataset", "data_root", "vision_tower", "text_tower", "output_dir"),
        placed=_PLACED,
        left=DEFAULTS,
        elsewhere=_OF_THE_REFERENCE,
        choices=(ALIGNERS, OBJECTIVES),
        trust="trust_remote_code",
    )


def parse_arguments(arguments: list[str] | None = None) -> Arguments:
    """
    Parse the command line. `--recipe` names a packaged recipe or a file; so does a first argument that ends in .yaml,
    .yml or .json. Options override it.

    Raises:
        OSError: if the recipe cannot be read.
        ValueError: for unknown options, unknown keys of the recipe, a recipe that is no mapping, or options that do not
            go together.
        SystemExit: for a value of the wrong type, as argparse does.
    """
    path, words = split_recipe(sys.argv[1:] if arguments is None else arguments)
    data, model, run, training = option_parser().parse(words, read_words(path) if path else None)
    if str(training.resume_from_checkpoint).lower() == "true":
        training.resume_from_checkpoint = True
    if model.init_seed is None and any(str(one).startswith(PREFIX) for one in (model.vision_tower, model.text_tower)):
        model.init_seed = training.seed
    return data, model, run, training


def check_together(
    data: DataArguments, model: ModelArguments, run: RunArguments, training: AdaptorTrainingArguments
) -> None:
    """
    Check the Adaptor's shape and what one group of arguments asks of another, before anything is computed.

    Raises:
        ValueError: naming the options.
    """
    # What the towers' widths must be a multiple of is seen when they are known.
    heads = model.aligner.attention_pooling_heads
    model.config(**({} if heads is None else dict.fromkeys(("vision_hidden_size", "text_hidden_size"), heads)))
    towers = {"--vision_tower": model.vision_tower, "--text_tower": model.text_tower}
    if data.cache is None and (missing := [name for name, value in towers.items() if value is None]):
        source = "--train_file" if data.train_file else "--dataset"
        raise ValueError(f"{source} needs {' and '.join(missing)}: python -m adaptor_hf.towers lists them.")
    if data.cache is not None and (given := [name for name, value in towers.items() if value is not None]):
        raise ValueError(f"--cache brings its towers: {' and '.join(given)} would have no effect. Leave it out.")
    check_trained_towers(data, model, training)
    if is_private():
        check_private(run, training)
    if training.push_to_hub and data.cache is not None and data.dataset_name is None:
        raise ValueError(
            "--push_to_hub with --cache needs --dataset_name, such as mimic_cxr or my-hospital: a cache does not know "
            "its data set, and the terms of some restrict what may be shared."
        )
    if checkpoint_steps(Path(training.output_dir)) and not training.resume_from_checkpoint and not run.dry_run:
        if training.process_index == 0:
            # Of a run that has not ended, that is what to say.
            with only_writer(training.output_dir, take_over=training.take_over):
                pass
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


def check_trained_towers(data: DataArguments, model: ModelArguments, training: AdaptorTrainingArguments) -> None:
    """
    Check what towers that train ask of the other options, or what is of no effect without them.

    Raises:
        ValueError: naming the option.
    """
    trained = [f"--train_{kind}_tower" for kind in model.trainable]
    if not trained:
        given = {
            "--layer_decay": training.layer_decay != 1,
            "--tower_learning_rate": training.tower_learning_rate is not None,
        }
        if names := [name for name, there in given.items() if there]:
            raise ValueError(
                f"{' and '.join(names)} would have no effect: both towers are frozen. Give --train_vision_tower or "
                "--train_text_tower, or leave it out."
            )
        return
    if data.cache is not None:
        raise ValueError(
            f"{' and '.join(trained)} with --cache: a tower that trains reads files, and a cache has embeddings alone. "
            "Give the table that it was built from, --train_file or --dataset, with --vision_tower and --text_tower; "
            "embeddings that are in --cache_dir are found again."
        )
    if "vision" in model.trainable:
        of_a_cache = {
            "--image_store": data.image_store is not None,
            f"--image_tokens {data.image_tokens}": data.image_tokens not in (None, "all"),
            "--view_seed": data.view_seed != 0,
        }
        if names := [name for name, there in of_a_cache.items() if there]:
            raise ValueError(
                f"{' and '.join(names)} with --train_vision_tower: a cache would keep other images, tokens or views "
                "than the tower trains on, which reads files. Leave it out (of tokens, all are taken)."
            )
    if training.resident_data:
        raise ValueError(
            f"--resident_data is of embeddings: with {' and '.join(trained)} files are read. Leave it out."
        )


def check_private(run: RunArguments, training: AdaptorTrainingArguments) -> None:
    """
    Check that nothing asked for would carry data out of a private run.

    Raises:
        ValueError: naming the option.
    """
    if trackers := [name for name in training.report_to if name != "none"]:
        raise ValueError(f"--private writes to no tracker: leave out --report_to {' '.join(map(repr, trackers))}.")
    if training.push_to_hub and not run.allow_push:
        raise ValueError(
            "--private refuses --push_to_hub. A model trained on reports may tell of them; pass --allow_push to send "
            "the fixed list of files (model, code, processor, card) after all."
        )


def path_arguments(
    data: DataArguments, model: ModelArguments, run: RunArguments, training: AdaptorTrainingArguments
) -> list[str]:
    """What among the arguments may be a path, for `start_private_mode`."""
    more = (training.resume_from_checkpoint, file_of(model.objective.made))
    given = [str(place) for place in more if isinstance(place, str | Path)]
    return [*path_values(data, model, run), training.output_dir, *given]


__all__ = [
    "Arguments",
    "DataArguments",
    "ModelArguments",
    "RunArguments",
    "check_together",
    "check_trained_towers",
    "option_parser",
    "parse_arguments",
    "path_arguments",
    "read_recipe",
]
