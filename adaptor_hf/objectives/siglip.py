"""SigLIP's objective: each pair of an image and a text is a decision of its own, whether they belong together."""

from __future__ import annotations

import math
from types import MappingProxyType
from typing import Literal

import torch

from ..loss_adaptor import check_matched, prepare
from .base import Objective
from .chunked_sigmoid import chunked_sigmoid_loss
from .encoded import Encoded
from .gather import Gather, check_ids
from .positives import matched_rows, positive_ids


class SigLIPObjective(Objective):
    """
    The sigmoid loss of SigLIP (arXiv 2303.15343), over the pairs of all processes; see
    [`~adaptor_hf.objectives.gathered_sigmoid_loss`]. It trains the model's `logit_bias` beside its `logit_scale`.

    Args:
        positives (`str`, *optional*): Rows that are no negatives of each other: same `"text"`, same `"study"`, or the
            `"pair"` alone. Such pairs are left out of the sum. By default that of the training arguments.
    """

    name = "siglip"
    config_fields = MappingProxyType(
        {"logit_scale_init_value": math.log(10), "logit_bias_init_value": -10.0, "max_logit_scale": None}
    )

    def __init__(self, positives: Literal["text", "study", "pair"] | None = None):
        super().__init__()
        self.positives = positives

    def setup(self, model, args) -> None:
        """
        Raises:
            ValueError: the model has no `logit_bias`.
        """
        if getattr(model, "logit_bias", None) is None:
            raise ValueError(
                "the objective 'siglip' needs a model with a logit_bias, and this one has none: build it with "
                "AdaptorConfig(logit_bias_init_value=-10.0, logit_scale_init_value=math.log(10)), or take another "
                "objective."
            )
        self.positives = self.positives or args.positives

    def forward(self, encoded: Encoded, rows: dict[str, torch.Tensor], gather: Gather) -> dict[str, torch.Tensor]:
        loss = gathered_sigmoid_loss(
            *matched_rows(encoded),
            encoded.logit_scale,
            encoded.logit_bias,
            normalize=False,
            positives=positive_ids(rows, self.positives),
            equal_counts=gather.equal_counts,
            gather=gather,
        )
        return {"loss": loss}


def gathered_sigmoid_loss(
    image_embeds: torch.Tensor,
    text_embeds: torch.Tensor,
    logit_scale: torch.Tensor | float,
    logit_bias: torch.Tensor | float = -10.0,
    normalize: bool = True,
    positives: torch.Tensor | None = None,
    equal_counts: bool = False,
    gather: Gather | None = None,
) -> torch.Tensor:
    """
    [`sigmoid_contrastive_loss`] over the rows of all ranks: this rank's images against every rank's texts. Never more
    than a block of rows of the similarity matrix is in memory.

    The mean of the ranks' losses is the sum over all pairs divided by the rows of the whole batch, and the mean of
    their gradients (what DistributedDataParallel computes) is its gradient, also where ranks hold different numbers of
    rows.

    Args:
        image_embeds, text_embeds (`torch.Tensor` of shape `(B, D)`): This rank's matched rows.
        logit_scale, logit_bias, normalize: As in [`sigmoid_contrastive_loss`].
        positives (`torch.Tensor` of shape `(B,)`, *optional*): Integer ids of this rank's rows, comparable over ranks.
            Other pairs of equal ids are left out of the sum.
        equal_counts (`bool`, defaults to `False`): As in [`gathered_contrastive_loss`].
        gather ([`Gather`], *optional*): The processes; by default all.

    Returns:
        `torch.Tensor`: scalar, float32 or wider. It can be differentiated once.

    Raises:
        ValueError: if the shapes differ or `positives` is not one integer a row.
    """
    image_embeds, text_embeds, scale = prepare(image_embeds, text_embeds, logit_scale, normalize)
    check_matched(image_embeds, text_embeds)
    check_ids(positives, len(image_embeds))
    bias = torch.as_tensor(logit_bias, device=image_embeds.device, dtype=image_embeds.dtype)
    gather = Gather.of_processes() if gather is None else gather
    counts = gather.counts_of_pairs(image_embeds, equal_counts)
    with torch.autocast(image_embeds.device.type, enabled=False):
        return gather.share(counts) * chunked_sigmoid_loss(
            image_embeds,
            gather.rows(text_embeds, counts),
            scale,
            bias,
            start=gather.start(counts),
            image_ids=positives,
            text_ids=None if positives is None else gather.rows(positives, counts),
        )


__all__ = ["SigLIPObjective", "gathered_sigmoid_loss"]
