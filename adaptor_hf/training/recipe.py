"""Arguments of the pre-training script, from the command line and from a YAML or JSON recipe."""

import json
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from transformers import HfArgumentParser

from ..configuration_adaptor import AdaptorConfig
from .arguments import AdaptorTrainingArguments


@dataclass
class DataArguments:
    """Which pairs, which part of them, and where their embeddings are kept."""

    train_file: str | None = field(
        default=None,
        metadata={
            "help": "Pairs: a CSV, TSV, Parquet or JSON-lines file, an imagefolder, a `datasets` folder, a hub id."
        },
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
    patient_column: str | None = field(default=None, metadata={"help": "Column of patient ids: splits go by it."})
    study_column: str | None = field(default=None, metadata={"help": "Column of study ids."})
    split_column: str | None = field(default=None, metadata={"help": "Column of the split: train, validation, test."})
    split_alias: list[str] = field(
        default_factory=list,
        metadata={"help": "Rename splits, for example validation=test where a table's val part is held out."},
    )
    filter: list[str] = field(default_factory=list, metadata={"help": "Keep rows where column=value; repeatable."})
    validation_fraction: float = field(default=0.1, metadata={"help": "Share of patients, where no split is given."})
    test_fraction: float = field(default=0.1, metadata={"help": "Share of patients, where no split is given."})
    train_fraction: float = field(default=1.0, metadata={"help": "Share of training patients to use (nested, seeded)."})
    max_text_length: int = field(default=112, metadata={"help": "Tokens after which a report is cut (paper: 112)."})
    extraction_batch_size: int = field(default=64, metadata={"help": "Images or texts a tower forward."})
    dataset_name: str | None = field(default=None, metadata={"help": "What the model card calls the data."})

    def __post_init__(self):
        if (self.train_file is None) == (self.cache is None):
            raise ValueError("Give --train_file (a table of pairs) or --cache (ready embeddings), one of them.")


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
class RunArguments:
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


def parse_arguments(
    arguments: list[str] | None = None,
) -> tuple[DataArguments, ModelArguments, RunArguments, AdaptorTrainingArguments]:
    """
    Parse the command line. A first argument that ends in .yaml, .yml or .json is a recipe; later options override it.

    Raises:
        ValueError: if the recipe has unknown keys or is no mapping.
        SystemExit: for unknown options, as argparse does.
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    parser = HfArgumentParser([DataArguments, ModelArguments, RunArguments, AdaptorTrainingArguments])
    if arguments and arguments[0].endswith((".yaml", ".yml", ".json")):
        recipe = read_recipe(Path(arguments.pop(0)))
        known = {action.dest: action for action in parser._actions}
        if unknown := sorted(recipe.keys() - known.keys()):
            raise ValueError(f"Unknown keys in the recipe: {', '.join(unknown)}. See python train_pretrain.py --help.")
        for name in recipe:
            known[name].required = False
        parser.set_defaults(**recipe)
    data, model, run, training = parser.parse_args_into_dataclasses(arguments)
    return data, model, run, training


def read_recipe(path: Path) -> dict[str, Any]:
    """Read a YAML or JSON mapping of option names to values."""
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".json":
        recipe = json.loads(text)
    else:
        import yaml

        recipe = yaml.safe_load(text)
    if not isinstance(recipe, dict):
        raise ValueError(f"{path} must hold a mapping of option names to values, got {type(recipe).__name__}.")
    return recipe


__all__ = ["DataArguments", "ModelArguments", "RunArguments", "parse_arguments", "read_recipe"]
