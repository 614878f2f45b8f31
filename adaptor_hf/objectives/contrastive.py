"""The paper's objective: a softmax over the texts for each image, and over the images for each text."""

from __future__ import annotations

from types import MappingProxyType
from typing import Literal

import torch

from .base import Objective
from .encoded import Encoded
from .gather import Gather, gathered_contrastive_loss
from .positives import matched_rows, positive_ids


class AdaptorObjective(Objective):
    """
    Equation (4) of "Freeze the backbones" (arXiv 2401.01179), over the pairs of all processes; see
    [`~adaptor_hf.objectives.contrastive_loss`]. The weight of the directions is the model's
    `config.image_to_text_weight`.

    Args:
        positives (`str`, *optional*): Rows that are no negatives of each other: same `"text"`, same `"study"`, or the
            `"pair"` alone. By default that of the training arguments.
    """

    name = "adaptor"
    config_fields = MappingProxyType(
        {"image_to_text_weight": 0.75, "logit_scale_init_value": 2.6592, "max_logit_scale": None}
    )

    def __init__(self, positives: Literal["text", "study", "pair"] | None = None):
        super().__init__()
        self.positives = positives

    def setup(self, model, args) -> None:
        """
        Raises:
            ValueError: the model has a `logit_bias`, which a softmax leaves without gradient.
        """
        if getattr(model, "logit_bias", None) is not None:
            raise ValueError(
                "the model has a logit_bias, which the objective 'adaptor' cannot train: a softmax does not see it. "
                "Take the objective 'siglip', or build the model with logit_bias_init_value=None."
            )
        self.positives = self.positives or args.positives
        self.image_to_text_weight = model.config.image_to_text_weight

    def forward(self, encoded: Encoded, rows: dict[str, torch.Tensor], gather: Gather) -> dict[str, torch.Tensor]:
        loss = gathered_contrastive_loss(
            *matched_rows(encoded),
            encoded.logit_scale,
            image_to_text_weight=self.image_to_text_weight,
            normalize=False,
            positives=positive_ids(rows, self.positives),
            equal_counts=gather.equal_counts,
            gather=gather,
        )
        return {"loss": loss}


__all__ = ["AdaptorObjective"]
