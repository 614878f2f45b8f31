"""What a run is about to do, said before any tower runs."""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from ..data.places import several
from ..embeddings.place import place_of_cache
from ..evaluation.retrieval import chance_retrieval
from ..privacy.mode import is_private
from ..random_specs_adaptor import describe_random, is_random
from ..towers.check import is_on_this_machine
from ..towers.words import describe_layers, describe_training
from .arguments import AdaptorTrainingArguments
from .pair_cache import tower_references
from .pairs import TrainingPairs
from .recipe_choice import Recipe, choose_recipe
from .script_arguments import DataArguments, ModelArguments
from .summary import describe_steps, fitted_batch
from .trained_towers import count_parameters

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import Trainer

    from ..embeddings import EmbeddingCache

logger = logging.getLogger(__name__)

SPLITS = ("train", "validation", "test")
FEW_HELD_OUT = 100
"""Under so many patients (pairs, where patients are unknown) the choice of an epoch is said to rest on few: a recall of
.3 over 100 independent queries has a standard error of .05, more than what epochs next to each other differ by."""


@dataclass(frozen=True)
class Part:
    """Pairs of a split and their known patients."""

    pairs: int
    patients: int

    def __str__(self) -> str:
        return f"{self.pairs:,}" + (f" ({self.patients:,} patient{'s' * (self.patients > 1)})" if self.patients else "")


@dataclass(frozen=True)
class Plan:
    """
    What a run is to do.

    Args:
        recipe (`Recipe`): By which it trains.
        parts (`dict[str, Part]`): Pairs of each split, as far as they are known before files are read.
        trained (`dict`): Parameters of the towers that train, as of `trained_towers.count_parameters`.
    """

    recipe: Recipe
    parts: dict[str, Part]
    trained: dict[str, dict[str, int]] = field(default_factory=dict)

    @property
    def pairs(self) -> dict[str, int]:
        """Pairs of each split."""
        return {name: part.pairs for name, part in self.parts.items()}


def plan_run(
    words: Sequence[str] | None,
    pairs: TrainingPairs | EmbeddingCache,
    data: DataArguments,
    model: ModelArguments,
    training: AdaptorTrainingArguments,
) -> tuple[Plan, ModelArguments]:
    """
    Choose the recipe where none is named, as `choose_recipe` does, and log the plan. All processes must call it.

    Args:
        words (`Sequence[str]`, *optional*): Of the command line; None for this program's own.
        pairs (`TrainingPairs` or `EmbeddingCache`): What there is to train on.
        data (`DataArguments`): Parsed from `words`.
        model (`ModelArguments`): Parsed from `words`.
        training (`AdaptorTrainingArguments`): Parsed from `words`, and filled in place by a chosen recipe.

    Returns:
        `tuple[Plan, ModelArguments]`: With the model arguments of the recipe.
    """
    parts = parts_of_table(pairs.dataset) if isinstance(pairs, TrainingPairs) else parts_of_cache(pairs)
    recipe, model = choose_recipe(words, pairs_of(parts), model, training)
    plan = Plan(recipe, parts, count_parameters(data, model))
    logger.info(describe_plan(plan, data, model, training))
    return plan, model


def parts_of_table(pairs: Dataset) -> dict[str, Part]:
    """Of each split of a table its rows with a text. Files were not looked at: some may turn out to be faulty."""
    names = [name for name in ("split", "text", "patient_id") if name in pairs.column_names]
    columns = pairs.select_columns(names).with_format("arrow")[:]
    with_text = columns["text"].combine_chunks().is_valid().to_numpy(zero_copy_only=False)
    return _parts(
        np.array(columns["split"].to_pylist(), dtype=object)[with_text],
        np.array(columns["patient_id"].to_pylist() if "patient_id" in names else [None] * len(pairs), dtype=object)[
            with_text
        ],
    )


def parts_of_cache(cache: EmbeddingCache) -> dict[str, Part]:
    """Of each split of a cache its pairs."""
    pairs = cache.paired().pairs
    return _parts(*(np.array(pairs[name][:], dtype=object) for name in ("split", "patient_id")))


def _parts(splits: np.ndarray, patients: np.ndarray) -> dict[str, Part]:
    found = {}
    for name in SPLITS:
        rows = splits == name
        if rows.any():
            found[name] = Part(int(rows.sum()), len(set(patients[rows]) - {None}))
    return found


def pairs_of(parts: dict[str, Part], name: str = "train") -> int:
    """Pairs of a split, 0 where there is none."""
    return parts[name].pairs if name in parts else 0


def describe_plan(
    plan: Plan,
    data: DataArguments,
    model: ModelArguments,
    training: AdaptorTrainingArguments,
) -> str:
    """
    The lines before the first tower runs: pairs and patients of each split, towers, place of the embeddings, recipe,
    steps, batch, learning rate, output folder. In private mode without places.
    """
    parts, recipe, pairs = plan.parts, plan.recipe, pairs_of(plan.parts)
    lines = [
        "Plan, before anything is embedded:" if data.cache is None else "Plan, on embeddings that are there:",
        "  pairs: " + (", ".join(f"{name} {part}" for name, part in parts.items()) or "none with a text"),
        *([] if data.cache else [f"  towers: {_towers(data, model)}"]),
        f"  embeddings: {_place(data, training)}",
        f"  {recipe.describe()[0].lower()}{recipe.describe()[1:]}",
        f"  steps: {describe_steps(training, pairs)}",
        *describe_live(plan, model, training),
        *([] if is_private() else [f"  output: {training.output_dir}"]),
    ]
    if importlib.util.find_spec("matplotlib") is None:
        lines.append(
            "  curves: no picture, for matplotlib is not installed: pip install matplotlib (also while this runs)"
        )
    return "\n".join(lines)


def _towers(data: DataArguments, model: ModelArguments) -> str:
    named = {"vision": model.vision_tower, "text": model.text_tower}
    said = []
    for kind, reference in tower_references(data, model).items():
        kind = kind.partition("_")[0]
        name = named[kind]
        cut = f"; {layers}" if isinstance(reference, dict) and (layers := describe_layers(reference)) else ""
        trains = f"{cut}; {describe_training(model.trainable.get(kind), before=True)}" if model.trainable else cut
        if isinstance(reference, dict) and is_random(reference):
            said.append(f"{reference['name_or_path']} ({kind}{trains}; {describe_random(reference)})")
            continue
        shown = Path(name).name if is_private() or Path(name).is_dir() else name
        here = is_on_this_machine(kind, name)
        place = "on this machine" if here else "not on this machine yet: it is downloaded"
        said.append(f"{shown} ({kind}{trains}; {place})")
    return ", ".join(said)


def describe_live(plan: Plan, model: ModelArguments, training: AdaptorTrainingArguments) -> list[str]:
    """Lines of the plan on towers that train; none where both are frozen."""
    if not plan.trained:
        return []
    read = " and ".join("images" if kind == "vision" else "reports" for kind in plan.trained)
    recipe = f", images by the recipe {model.image_recipe}" if model.image_recipe else ""
    recipe += f", reports by the recipe {model.sentence_recipe}" if model.sentence_recipe else ""
    together = fitted_batch(training, pairs_of(plan.parts))
    together = min(together, training.grad_cache_batch_size or together)
    rate = training.learning_rate if training.tower_learning_rate is None else training.tower_learning_rate
    decay = "" if training.layer_decay == 1 else f", times {training.layer_decay:g} a block towards the input"
    counts = [
        f"{count['trainable_parameters']:,} of {count['parameters']:,} parameters of the {kind} tower"
        for kind, count in plan.trained.items()
    ]
    return [
        f"  live: {read} are read at every epoch{recipe}; activations of {together:,} pairs at once "
        "(--grad_cache_batch_size takes fewer)",
        f"  trained in towers: {', '.join(counts)}, peak learning rate {rate:g}{decay}",
        "  the towers as they are embed all pairs first: for faulty files, and for the control on frozen towers",
    ]


def _place(data: DataArguments, training: AdaptorTrainingArguments) -> str:
    if is_private():
        return "where --cache says" if data.cache else "in --cache_dir, or private-embeddings beside --output_dir"
    if data.cache:
        return ", ".join(map(str, several(data.cache)))
    return f"kept in {place_of_cache(training.output_dir, data.cache_dir)}"


def describe_kept(
    history: list[dict[str, float]],
    best_step: int | None,
    metric: str,
    epochs: float,
    validation: Part | None,
    chance: float | None = None,
) -> str:
    """
    Which epoch a run has kept, and on how many pairs and patients it was chosen.

    Args:
        history (`list[dict]`): Log entries, `trainer.state.log_history`.
        best_step (`int`, *optional*): Step of the checkpoint that was loaded; None where the last one is kept.
        metric (`str`): That chose it, such as `eval_mean_recall`.
        epochs (`float`): Of the whole run.
        validation (`Part`, *optional*): Of the split that it was chosen on.
        chance (`float`, *optional*): What a random order scores there, where the metric is the mean recall.
    """
    metric = metric if metric.startswith("eval_") else f"eval_{metric}"
    found = next((entry for entry in history if entry.get("step") == best_step and metric in entry), None)
    if found is None or validation is None:
        return "Kept: the last epoch; none was chosen on held-out pairs"
    name = metric.removeprefix("eval_").replace("_", " ")
    beside = f" (chance {chance:.3f})" if chance is not None and name == "mean recall" else ""
    patients = f" of {validation.patients:,} patient{'s' * (validation.patients > 1)}" if validation.patients else ""
    few = ": few" if (validation.patients or validation.pairs) < FEW_HELD_OUT else ""
    return (
        f"Kept: epoch {found['epoch']:.4g} of {epochs:.4g}, validation {name} {found[metric]:.3f}{beside} "
        f"on {validation.pairs:,} pairs{patients}{few}"
    )


def kept_epoch(trainer: Trainer, validation: EmbeddingCache | None) -> str:
    """The line of [`describe_kept`] for a run that has ended."""
    arguments, state = trainer.args, trainer.state
    best = state.best_global_step if arguments.load_best_model_at_end else None
    if validation is None:
        return describe_kept(state.log_history, None, arguments.metric_for_best_model, state.num_train_epochs, None)
    chance = chance_retrieval(torch.from_numpy(validation.text_rows))["mean_recall"]
    part = parts_of_cache(validation)["validation"]
    return describe_kept(state.log_history, best, arguments.metric_for_best_model, state.num_train_epochs, part, chance)


__all__ = [
    "FEW_HELD_OUT",
    "Part",
    "Plan",
    "describe_kept",
    "describe_plan",
    "kept_epoch",
    "pairs_of",
    "parts_of_cache",
    "parts_of_table",
    "plan_run",
]
