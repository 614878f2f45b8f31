"""Loading the Adaptor and its controls, declared in evaluation/controls.py, for a task."""

from __future__ import annotations

import logging
import math
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from ..evaluation.aligners import system_name
from ..evaluation.controls import CONTROLS, controls_made
from ..file_records import check_model
from ..modeling_adaptor import AdaptorModel
from ..privacy.mode import is_private
from ..training.controls import CONTROLS_FOLDER
from ..training.systems import System
from .arguments import DownstreamArguments, pairs_of

logger = logging.getLogger(__name__)


def checkpoint_name(place: str | os.PathLike) -> str | None:
    """
    What results call a checkpoint beside the digest of its weights: a hub id, or its folder's own name (of a trainer's
    `checkpoint-500`, and of the controls inside a checkpoint, with the run's). None in private mode or without place.
    """
    if is_private() or not str(place):
        return None
    if not os.path.exists(place):
        return str(place)
    path = Path(place).resolve()
    if path.parent.name == CONTROLS_FOLDER:
        path = path.parent.parent
    return f"{path.parent.name}/{path.name}" if re.fullmatch(r"checkpoint-\d+", path.name) else path.name


def named(place: str | os.PathLike) -> dict[str, str | None]:
    """`name` and `check` of a [`System`] that was loaded from a place; "" for a model that was made here."""
    return {"name": checkpoint_name(place), "check": check_model(place).state if str(place) else None}


def load_systems(
    model: AdaptorModel,
    controls: Sequence[str] = controls_made("built"),
    control_models: Mapping[str, str | os.PathLike] | None = None,
    *,
    num_logits: int = 1,
    seed: int = 0,
    device: Any = "cpu",
) -> list[System]:
    """
    The Adaptor and its controls.

    Args:
        model (`AdaptorModel`): The Adaptor that is asked about.
        controls (`Sequence[str]`): Keys of `CONTROLS` that are built without training: the raw tower, an Adaptor with
            new weights, and a head of as many parameters as Adaptor and head together on the raw tower.
        control_models (`Mapping`, *optional*): Keys of those that are pre-trained (`projections`, `shuffled`) to a
            checkpoint that was trained on the same pairs (see `save_controls`).
        num_logits (`int`, defaults to 1): Of the head.
        seed (`int`, defaults to 0): Of the new weights.
        device (defaults to `"cpu"`): Where the models run.

    Raises:
        ValueError: an unknown control.
    """
    built, pretrained = controls_made("built"), controls_made("pretrained")
    if unknown := [key for key in controls if key not in built]:
        raise ValueError(f"Unknown control {', '.join(unknown)}. Choose of {', '.join(built)}.")
    if unknown := [key for key in control_models or {} if key not in pretrained]:
        raise ValueError(f"A control model is {' or '.join(pretrained)}, got {', '.join(unknown)}.")
    systems = [System("adaptor", model.to(device).eval(), **named(model.name_or_path))]
    systems += [_built(key, model, num_logits, seed, device) for key in controls]
    for key, path in (control_models or {}).items():
        if not os.path.isdir(path) and str(path).count("/") != 1:
            raise FileNotFoundError(f"The control model {key} is to be in {path}, which is no folder and no hub id.")
        checkpoint = named(path)  # before it is read
        loaded = AdaptorModel.from_pretrained(path, load_towers=False).to(device).eval()
        if loaded.config.vision_hidden_size != model.config.vision_hidden_size:
            raise ValueError(f"The control model {key} was trained with another vision tower.")
        systems.append(System(key, loaded, **checkpoint))
    return systems


def _built(key: str, model: AdaptorModel, num_logits: int, seed: int, device: Any) -> System:
    if CONTROLS[key].new_weights:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return System(key, AdaptorModel(model.config).to(device).eval())
    return System(key, hidden_size=matched_hidden_size(model, num_logits) if CONTROLS[key].matched_head else None)


def systems_of(arguments: DownstreamArguments, model: AdaptorModel, device: str, num_logits: int = 1) -> list[System]:
    """The Adaptor, and the controls that the arguments name or that lie beside the checkpoint."""
    controls = pairs_of(arguments.control_model)
    if not controls and (controls := saved_controls(arguments.model)):
        names = ", ".join(system_name(key, model.config.aligner) for key in controls)
        logger.info("Control models found beside the checkpoint: %s.", names)
    systems = load_systems(model, arguments.controls, controls, num_logits=num_logits, device=device)
    # A decoder of masks reads the tokens.
    for note in systems[0].notes if arguments.task != "segmentation" else ():
        logger.warning("%s", note)
    return systems


UNREACHED = (
    *("text_projection.", "text_token_projection.", "text_pooling.", "visual_token_projection."),
    *("logit_scale", "logit_bias"),
)
"""How names of an Adaptor's parameters start that an image's one embedding never reaches."""


def matched_hidden_size(model: AdaptorModel, num_logits: int = 1) -> int:
    """Hidden width of a two-layer head on the raw tower that has as many parameters as the Adaptor has to train."""
    names = (*UNREACHED, "vision_model.", "text_model.")
    wanted = sum(value.numel() for name, value in model.named_parameters() if not name.startswith(names))
    # Linear without bias, batch norm's two a channel, and the linear layer on top.
    return math.ceil((wanted - num_logits) / (model.config.vision_hidden_size + 2 + num_logits))


def saved_controls(model: str | os.PathLike) -> dict[str, str]:
    """Key of each pre-trained control to its folder, as far as a checkpoint's folder holds them."""
    folders = {key: os.path.join(model, CONTROLS_FOLDER, key) for key in controls_made("pretrained")}
    return {key: folder for key, folder in folders.items() if os.path.isfile(os.path.join(folder, "config.json"))}


__all__ = [
    "UNREACHED",
    "checkpoint_name",
    "load_systems",
    "matched_hidden_size",
    "named",
    "saved_controls",
    "systems_of",
]
