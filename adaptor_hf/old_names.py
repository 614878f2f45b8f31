"""What the names in `REPLACED_NAMES` of `moved.py` held, made from what there is now; goes with the next release."""

from dataclasses import replace
from typing import Any

import torch

from .data import list_datasets
from .data.delimited import NAMES
from .evaluation.controls import CONTROLS, controls_made
from .evaluation.notes import tolerated_mask_notes
from .evaluation.tasks import TASKS
from .modeling_adaptor import AdaptorModel
from .training.arguments import AdaptorTrainingArguments
from .training.controls import train_controls
from .training.pair_evaluation import fixed_batch_terms, objective_of
from .training.script_arguments import DataArguments, ModelArguments, RunArguments, path_arguments
from .training.systems import System

DELIMITERS, ENCODINGS = tuple(NAMES), ("utf-8-sig", "cp1252")
RESTRICTED = tuple(known.name for known in list_datasets() if known.restricted)
HEADLINES = {task.name: task.headline for task in TASKS.values() if task.headline}
METRIC = {task.name: task.decides_by for task in TASKS.values() if task.decides_by}
TASK_FUNCTIONS = {task.name: task.function() for task in TASKS.values()}
BUILT_IN = UNTRAINED = controls_made("built")
SYSTEMS = {key: one.name for key, one in CONTROLS.items() if one.made in ("checkpoint", "built", "pretrained")}


def Variant(  # noqa: N802  (it was a class)
    name: str, model: AdaptorModel, learning_rate: float | None = None, validation_mean_recall: float | None = None
) -> System:
    """A system of this title, which is its `name` too."""
    key = next((key for key, control in CONTROLS.items() if control.name == name), "adaptor")
    return System(key, model, None, name, learning_rate, validation_mean_recall, title=name)


def train_variants(*args: Any, **options: Any) -> list[System]:
    """As [`train_controls`]; the `name` of each system is its title."""
    return [replace(system, name=system.label) for system in train_controls(*args, **options)]


def grey_mask_note(part: str, grey: int, rows: int) -> str | None:
    """As [`tolerated_mask_notes`] of grey masks alone; None where there are none."""
    return next(iter(tolerated_mask_notes(part, {"grey": grey}, rows)), None)


def fixed_batch_loss(
    model: AdaptorModel, embeds: dict[str, torch.Tensor], positives: torch.Tensor | None
) -> dict[str, float]:
    """[`fixed_batch_terms`] of the model's own loss; rows of equal `positives` `(N,)` are no negatives."""
    objective = objective_of(model, "pair" if positives is None else "text")
    return fixed_batch_terms(objective, model, embeds if positives is None else {**embeds, "text_row": positives})


def places_of(data: DataArguments, model: ModelArguments, training: AdaptorTrainingArguments) -> list[str]:
    """As [`path_arguments`], with nothing of the run's own options."""
    return path_arguments(data, model, RunArguments(), training)
