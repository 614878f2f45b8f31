"""What stands between tower and head: the Adaptor and its controls."""

from __future__ import annotations

import logging
import math
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from ..evaluation.naming import weights_digest
from ..modeling_adaptor import AdaptorModel
from ..privacy.mode import is_private
from ..training.controls import CONTROLS_FOLDER
from .features import adaptor_features

logger = logging.getLogger(__name__)

SYSTEMS = {
    "adaptor": "Adaptor",
    "tower": "raw tower",
    "untrained": "Adaptor, untrained",
    "mlp": "parameter-matched MLP",
    "projections": "two linear projections",
    "shuffled": "Adaptor, shuffled pairs",
}
"""Module in results, and what a table calls it."""

BUILT_IN = ("tower", "untrained", "mlp")
"""Controls that need no training of their own before the head's."""


@dataclass
class Module:
    """
    One way from a tower's features to a head's.

    Args:
        key (`str`): A key of `SYSTEMS`.
        model (`AdaptorModel`, *optional*): In evaluation mode; `None` leaves the tower's features as they are.
        hidden_size (`int`, *optional*): Of the head's hidden layer, where that is the control.
        name (`str`, *optional*): What results call the checkpoint, see [`checkpoint_name`].
    """

    key: str
    model: AdaptorModel | None = None
    hidden_size: int | None = None
    name: str | None = None
    _digest: str | None = field(default=None, repr=False)

    def features(self, embeds: torch.Tensor) -> torch.Tensor:
        return embeds if self.model is None else adaptor_features(self.model, embeds)

    def fields(self) -> dict[str, Any]:
        """What results say of it."""
        if self._digest is None and self.model is not None:
            self._digest = weights_digest(self.model)
        # Heads as large as two different checkpoints are two controls.
        size = "" if self.hidden_size is None else f", {self.hidden_size} hidden"
        system = f"{SYSTEMS[self.key]}{size}"
        return {"system": system, "module": self.key, "checkpoint": self._digest, "checkpoint_name": self.name}


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


def load_modules(
    model: AdaptorModel,
    controls: Sequence[str] = BUILT_IN,
    control_models: Mapping[str, str | os.PathLike] | None = None,
    *,
    num_logits: int = 1,
    seed: int = 0,
    device: Any = "cpu",
) -> list[Module]:
    """
    The Adaptor and its controls.

    Args:
        model (`AdaptorModel`): The Adaptor that is asked about.
        controls (`Sequence[str]`): Of `BUILT_IN`: the raw tower, an Adaptor with new weights, and a head of as many
            parameters as Adaptor and head together on the raw tower.
        control_models (`Mapping`, *optional*): `projections` and `shuffled` to a checkpoint that was trained on the
            same pairs (see `save_variants`).
        num_logits (`int`, defaults to 1): Of the head.
        seed (`int`, defaults to 0): Of the new weights.
        device (defaults to `"cpu"`): Where the models run.

    Raises:
        ValueError: an unknown control.
    """
    if unknown := [name for name in controls if name not in BUILT_IN]:
        raise ValueError(f"Unknown control {', '.join(unknown)}. Choose of {', '.join(BUILT_IN)}.")
    if unknown := [name for name in control_models or {} if name not in ("projections", "shuffled")]:
        raise ValueError(f"A control model is projections or shuffled, got {', '.join(unknown)}.")
    modules = [Module("adaptor", model.to(device).eval(), name=checkpoint_name(model.name_or_path))]
    for name in controls:
        if name == "tower":
            modules.append(Module("tower"))
        elif name == "untrained":
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(seed)
                modules.append(Module("untrained", AdaptorModel(model.config).to(device).eval()))
        else:
            modules.append(Module("mlp", hidden_size=matched_hidden_size(model, num_logits)))
    for name, path in (control_models or {}).items():
        if not os.path.isdir(path) and str(path).count("/") != 1:
            raise FileNotFoundError(f"The control model {name} is to be in {path}, which is no folder and no hub id.")
        loaded = AdaptorModel.from_pretrained(path, load_towers=False).to(device).eval()
        if loaded.config.vision_hidden_size != model.config.vision_hidden_size:
            raise ValueError(f"The control model {name} was trained with another vision tower.")
        modules.append(Module(name, loaded, name=checkpoint_name(path)))
    return modules


def matched_hidden_size(model: AdaptorModel, num_logits: int = 1) -> int:
    """Hidden width of a two-layer head on the raw tower that has as many parameters as the Adaptor has to train."""
    names = ("text_projection.", "logit_scale", "vision_model.", "text_model.")
    wanted = sum(value.numel() for name, value in model.named_parameters() if not name.startswith(names))
    # Linear without bias, batch norm's two a channel, and the linear layer on top.
    return math.ceil((wanted - num_logits) / (model.config.vision_hidden_size + 2 + num_logits))


def saved_controls(model: str | os.PathLike) -> dict[str, str]:
    """`projections` and `shuffled` to their folders, as far as a checkpoint's folder holds them."""
    folders = {name: os.path.join(model, CONTROLS_FOLDER, name) for name in ("projections", "shuffled")}
    return {name: folder for name, folder in folders.items() if os.path.isfile(os.path.join(folder, "config.json"))}


__all__ = [
    "BUILT_IN",
    "SYSTEMS",
    "Module",
    "checkpoint_name",
    "load_modules",
    "matched_hidden_size",
    "saved_controls",
]
