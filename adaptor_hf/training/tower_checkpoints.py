"""Towers that train in a training checkpoint: their folders, how they were trained, and the way back into the model."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..files import read_json, write_aside
from ..modeling_adaptor import AdaptorModel
from ..tower_folders_adaptor import TOWER_FILE, load_tower_weights
from ..tower_training_adaptor import lora_rank_of
from .tower_rates import training_towers

if TYPE_CHECKING:
    from .arguments import AdaptorTrainingArguments

TRAINING_TOWERS = "training_towers.json"
"""In a training checkpoint whose towers train: which, and at which rates. The optimizer's state fits no others."""


def tower_folder(name: str) -> str:
    """Where the tower `vision_model` or `text_model` stands in a checkpoint: `vision_tower` or `text_tower`."""
    return name.replace("_model", "_tower")


def what_trains(model: AdaptorModel, args: AdaptorTrainingArguments, dataset: Any = None) -> dict[str, Any]:
    """
    What of each tower trains, the options that its optimizer's groups are made by, and how the data set augments; empty
    where none trains.
    """
    towers = {tower_folder(name): tower.trainable for name, tower in training_towers(model).items()}
    if not towers:
        return {}
    ranks = {f"lora_rank ({tower_folder(name)})": lora_rank_of(tower) for name, tower in training_towers(model).items()}
    return (
        towers
        | {"layer_decay": args.layer_decay, "tower_learning_rate": args.tower_learning_rate}
        | {name: rank for name, rank in ranks.items() if rank is not None}
        | getattr(getattr(dataset, "live", dataset), "augmentation", {})
    )


def save_what_trains(model: AdaptorModel, args: AdaptorTrainingArguments, folder: Path, dataset: Any = None) -> None:
    """Write `training_towers.json` where a tower trains."""
    if found := what_trains(model, args, dataset):
        write_aside(folder / TRAINING_TOWERS, json.dumps(found, indent=1))


def check_same_towers(
    model: AdaptorModel, args: AdaptorTrainingArguments, checkpoint: Path, dataset: Any = None
) -> None:
    """
    Check that a run resumes from a checkpoint of the same training towers and the same augmentation.

    Raises:
        ValueError: naming what differs, and both values.
    """
    path = checkpoint / TRAINING_TOWERS
    found, wanted = read_json(path) if path.is_file() else {}, what_trains(model, args, dataset)
    if not isinstance(found, dict):
        raise ValueError(f"{TRAINING_TOWERS} of {checkpoint.name} is damaged: it holds no mapping. Copy it back.")
    for name in sorted(found.keys() | wanted.keys(), key=lambda name: (name.startswith("lora_rank"), name)):
        absent = "frozen" if name.endswith("_tower") else "not given"
        of_checkpoint, of_run = (absent if one.get(name) is None else one[name] for one in (found, wanted))
        if of_checkpoint != of_run:
            raise ValueError(
                f"{checkpoint.name} was written by a run with {name} {of_checkpoint}, this run has {of_run}. Resume "
                "with the towers, rates and recipes of the checkpoint, or start another run in another --output_dir."
            )


def load_trained_towers(model: AdaptorModel, checkpoint: Path) -> None:
    """
    Put the weights that a checkpoint has of towers that train back into them.

    Raises:
        FileNotFoundError: the checkpoint lacks a tower.
        OSError, ValueError: its weights are damaged, or of another network.
    """
    for name, tower in training_towers(model).items():
        folder = checkpoint / tower_folder(name)
        if folder.is_dir():
            load_tower_weights(tower, folder)
        elif not model.config.towers_in_checkpoint:
            raise FileNotFoundError(
                f"{checkpoint.name} has no {folder.name}, and this run trains that tower. Copy it back, or go on from "
                "another checkpoint."
            )


def remove_stale_towers(folder: Path) -> None:
    """Delete the towers of an earlier save in a folder, where the model that was saved there now names others."""
    config = read_json(folder / "config.json")
    for name in ("vision_tower", "text_tower"):
        if not (folder / name / TOWER_FILE).is_file():
            continue
        spec = config.get(name) or {}
        # "." is the folder itself. A model on cached embeddings may name one by its path.
        named = folder / (spec.get("name_or_path") or "") / (spec.get("subfolder") or "")
        if os.path.realpath(named) != os.path.realpath(folder / name):
            shutil.rmtree(folder / name)


__all__ = [
    "TRAINING_TOWERS",
    "check_same_towers",
    "load_trained_towers",
    "remove_stale_towers",
    "save_what_trains",
    "tower_folder",
    "what_trains",
]
