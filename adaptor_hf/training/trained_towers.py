"""The end of a run whose towers trained: their folders, the held-out rows by them, and what records say of them."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..configuration_adaptor import AdaptorConfig
from ..embeddings import build_cache
from ..embeddings.place import place_of_cache
from ..embeddings.ranks import Ranks
from ..embeddings.table_rows import rows_of_table
from ..files import file_sha256
from ..modeling_adaptor import AdaptorModel
from ..privacy.mode import is_private
from ..tower_training_adaptor import merge_lora
from ..towers.words import describe_training
from ..towers_adaptor import load_text_tower, load_vision_tower
from .arguments import AdaptorTrainingArguments
from .pair_cache import embedding_options, tower_references
from .pairs import TrainingPairs
from .script_arguments import DataArguments, ModelArguments

if TYPE_CHECKING:
    from ..embeddings import EmbeddingCache

logger = logging.getLogger(__name__)

WEIGHTS = ("model.safetensors", "adapter_model.safetensors")
HELD_OUT = ("test", "validation")
"""Splits that a run may be scored on, the first one that there is."""


@dataclass(frozen=True)
class TrainedTowers:
    """
    What the report of a run needs whose towers trained.

    Args:
        trainable (`dict`): How each tower that trained did, as of `ModelArguments.trainable`.
        frozen_config (`AdaptorConfig`): Of an Adaptor on the towers as they started.
        parameters (`dict`): Of each of them `parameters` and `trainable_parameters`.
        options (`dict[str, str]`): Further options of the training of towers that a card lists.
        held_out (`EmbeddingCache`, *optional*): Embeddings by the trained towers of the split that is scored.
    """

    trainable: dict[str, str | int]
    frozen_config: AdaptorConfig
    parameters: dict[str, dict[str, int]]
    options: dict[str, str]
    held_out: EmbeddingCache | None = None

    def describe(self) -> str:
        """Which towers trained, and how, in words."""
        return ", ".join(f"{kind} tower {describe_training(how)}" for kind, how in self.trainable.items())


def count_parameters(data: DataArguments, model_arguments: ModelArguments) -> dict[str, dict[str, int]]:
    """
    Load the towers that are to train and set them to, so that one that cannot is refused before anything is embedded.

    Returns:
        `dict`: Of each of them `parameters`, and `trainable_parameters`: those that get a gradient.

    Raises:
        OSError, ValueError: a tower is not to be had, or cannot train so; the message names the option.
    """
    counts = {}
    references = tower_references(data, model_arguments)
    for kind, trainable in model_arguments.trainable.items():
        load = load_vision_tower if kind == "vision" else load_text_tower
        tower = load(references[f"{kind}_tower"])
        try:
            tower.set_trainable(trainable, lora_rank=model_arguments.lora_rank)
        except ValueError as error:
            raise ValueError(f"--train_{kind}_tower {trainable}: {error}") from error
        numbers = [(value.numel(), value.requires_grad) for value in tower.parameters()]
        counts[kind] = {
            "parameters": sum(count for count, _ in numbers),
            "trainable_parameters": sum(count for count, trains in numbers if trains),
        }
    return counts


def finish_towers(model: AdaptorModel, model_arguments: ModelArguments) -> None:
    """Before the last save: LoRA's matrices are merged into the weights, where that was asked for."""
    for kind, trainable in model_arguments.trainable.items():
        if trainable == "lora" and model_arguments.merge_lora:
            merge_lora(getattr(model, f"{kind}_model"))


def embed_held_out(
    parts: dict[str, EmbeddingCache],
    cache: EmbeddingCache,
    pairs: TrainingPairs | EmbeddingCache,
    parameters: dict[str, dict[str, int]],
    data: DataArguments,
    model_arguments: ModelArguments,
    training: AdaptorTrainingArguments,
    **config: Any,
) -> TrainedTowers | None:
    """
    Embed the held-out rows once more, by the towers as they were saved in the output folder, into the same folder of
    embeddings; those of a frozen tower are found there. All processes must call it. None where both towers were frozen.

    Args:
        parts (`dict[str, EmbeddingCache]`): The splits by the towers as they started.
        cache (`EmbeddingCache`): All of them.
        pairs (`TrainingPairs`): The table.
        parameters (`dict`): From [`count_parameters`].
        data, model_arguments, training: The run's arguments.
        config: As of `AdaptorConfig`: `data_terms`, `split_rule`.

    Raises:
        ValueError: a trained tower gives no embedding (NaN, infinite or zero) for some of the rows.
    """
    trainable = model_arguments.trainable
    if not trainable:
        return None
    known = (trainable, model_arguments.config_on(cache, **config), parameters, model_arguments.training_options())
    name = next((name for name in HELD_OUT if name in parts), None)
    if name is None:
        return TrainedTowers(*known)
    towers = tower_references(data, model_arguments)
    towers |= {f"{kind}_tower": str(tower_folder(training.output_dir, kind)) for kind in trainable}
    rows = rows_of_table(parts[name], pairs.dataset)
    folder = Ranks().on_main(lambda: place_of_cache(training.output_dir, data.cache_dir))
    logger.info(f"Embedding the {len(rows):,} pairs of the {name} split by the trained {' and '.join(trainable)} tower")
    held_out = build_cache(
        pairs.dataset.select(rows),
        cache_dir=folder,
        device=training.device,
        # What another run finds there are the towers as they were.
        latest=False,
        **towers,
        **embedding_options(data),
    ).paired()
    if len(held_out) != len(rows):
        raise ValueError(
            f"The trained towers embed {len(held_out):,} of the {len(rows):,} pairs of the {name} split: the vectors "
            "of the others are NaN, infinite or zero. Train anew with a lower --tower_learning_rate."
        )
    return TrainedTowers(*known, held_out)


def tower_folder(output_dir: str | Path, kind: str) -> Path:
    """Where a run leaves a tower that it trained, `vision` or `text`."""
    return Path(output_dir) / f"{kind}_tower"


def record_towers(towers: TrainedTowers, output_dir: str | Path) -> dict[str, Any]:
    """
    For `run.json`: of each tower that trained how, its parameters, the folder in the output folder and the SHA-256 of
    its weights; and the key of the held-out pairs that it embedded.
    """
    found: dict[str, Any] = {}
    for kind, how in towers.trainable.items():
        folder = tower_folder(output_dir, kind)
        files = [path for path in sorted(folder.glob("*.safetensors")) if path.name in WEIGHTS]
        digests = {path.name: file_sha256(path) for path in files}
        found[kind] = {"trained": how} | towers.parameters[kind] | {"folder": folder.name, "sha256": digests}
    return found | {"held_out": None if towers.held_out is None else towers.held_out.fingerprint}


def trained_tower_lines(trainable: dict[str, str | int], output_dir: str | Path) -> list[str]:
    """For the end of the log: where the towers are and how other commands take them."""
    if is_private():
        return [f"Trained {kind} tower: in the output folder, as {kind}_tower" for kind in trainable]
    return [
        f"Trained {kind} tower: {tower_folder(output_dir, kind)} (also as --{kind}_tower of other commands)"
        for kind in trainable
    ]


__all__ = [
    "HELD_OUT",
    "TrainedTowers",
    "count_parameters",
    "embed_held_out",
    "finish_towers",
    "record_towers",
    "tower_folder",
    "trained_tower_lines",
]
