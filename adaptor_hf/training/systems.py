"""`System`: the Adaptor or one of its controls with its weights, as a row of a comparison computes with it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch

from ..evaluation.aligners import system_name
from ..evaluation.controls import saw_pairs
from ..evaluation.naming import weights_digest
from ..evaluation.notes import reading_notes
from ..modeling_adaptor import AdaptorModel

BATCH_ROWS = 8192


@dataclass
class System:
    """
    One way from a tower's features to what a head or a comparison reads.

    Args:
        key (`str`): A key of `adaptor_hf.evaluation.controls.CONTROLS`.
        model (`AdaptorModel`, *optional*): In evaluation mode; `None` leaves the tower's features as they are.
        hidden_size (`int`, *optional*): Of a head's hidden layer, where that is the control.
        name (`str`, *optional*): What results call the checkpoint, see `adaptor_hf.tasks.controls.checkpoint_name`.
        learning_rate (`float`, *optional*): The rate that validation chose; `None` where nothing was trained here, and
        validation_mean_recall (`float`, *optional*): what it was chosen by.
        title (`str`, *optional*): What a table calls it, instead of the control's name.
        check (`str`, *optional*): Whether the checkpoint's files were those of its run, see
            `adaptor_hf.file_records.check_model`.
    """

    key: str
    model: AdaptorModel | None = None
    hidden_size: int | None = None
    name: str | None = None
    learning_rate: float | None = None
    validation_mean_recall: float | None = None
    title: str | None = None
    check: str | None = None
    _digest: str | None = field(default=None, repr=False)

    @property
    def label(self) -> str:
        """What tables call it, by its aligner. Heads as large as two different checkpoints are two controls."""
        if self.title is not None:
            return self.title
        aligner = None if self.model is None else self.model.config.aligner
        return system_name(self.key, aligner) + ("" if self.hidden_size is None else f", {self.hidden_size} hidden")

    @property
    def notes(self) -> list[str]:
        """What readers of its scores on pooled embeddings must know; nothing of weights that no pair has shaped."""
        return reading_notes(self.model.config) if self.model is not None and saw_pairs(self.key) else []

    def features(self, embeds: torch.Tensor) -> torch.Tensor:
        """What a head reads: `(n, hidden_size)` from the tower's `(n, D)`, or these as they are."""
        return embeds if self.model is None else adaptor_features(self.model, embeds)

    def fields(self) -> dict[str, Any]:
        """What results say of it."""
        if self._digest is None and self.model is not None:
            self._digest = weights_digest(self.model)
        named = {"checkpoint_name": self.name, "checkpoint_check": self.check}
        return {"system": self.label, "module": self.key, "checkpoint": self._digest} | named


@torch.no_grad()
def adaptor_features(model: AdaptorModel, embeds: torch.Tensor) -> torch.Tensor:
    """
    What a head on the Adaptor reads: `(n, hidden_size)` float32 on the CPU, from the tower's `(n, D)`.

    Raises:
        ValueError: the model is in training mode, or was made for a tower of another width.
    """
    if model.training:
        raise ValueError("The model is in training mode, where dropout changes every feature. Call model.eval() first.")
    if embeds.shape[-1] != model.config.vision_hidden_size:
        raise ValueError(
            f"The Adaptor takes image embeddings {model.config.vision_hidden_size} wide, the tower gives "
            f"{embeds.shape[-1]}: it was trained with another tower."
        )
    parts = [
        model.get_image_features(image_embeds=part.to(model.device, model.dtype)).pooler_output.float().cpu()
        for part in embeds.split(BATCH_ROWS)
    ]
    return torch.cat(parts)


__all__ = ["BATCH_ROWS", "System", "adaptor_features"]
