"""The interface of everything that can be minimised. One method is one file beside this one, or a file of a user."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import nn
from torch.utils.data import Dataset, Sampler

from .encoded import Encoded, Side
from .gather import Gather

if TYPE_CHECKING:
    from transformers import TrainingArguments

    from ..modeling_adaptor import AdaptorModel

NEEDS = ("pairs", "image_tokens", "text_tokens", "words", "sentences", "views", "targets")
"""What an objective can need of the data."""


class Objective(nn.Module):
    """
    What is minimised, and all that the method adds to the model: projectors, prototypes, momentum copies, schedules.

    A subclass writes `forward`; the rest has defaults. Its parameters are trained with the model's, by the same
    optimizer. Its state (parameters and buffers) is kept in training checkpoints, never in a published model.
    The keyword arguments of its `__init__` are its options: fields of `--objective`, with the defaults of the signature
    and the help of the docstring.

    Attributes:
        name (`str`): What `--objective` calls it.
        needs (`frozenset[str]`): Of [`NEEDS`]; the trainer checks them before the first step.
        config_fields (`Mapping[str, Any]`): Fields of `AdaptorConfig` that go with it, with its defaults.
        splits (`bool`): Whether `encode` treats each item on its own, so that a batch may be embedded in parts
            (`grad_cache_batch_size`).
        file_sha256 (`str`, *optional*): Digest of the user's file that the class was loaded from.
        made_with (`Mapping[str, Any]`, *optional*): Of one that was made by its name or from a file, its options.
    """

    name: ClassVar[str] = ""
    needs: ClassVar[frozenset[str]] = frozenset({"pairs"})
    config_fields: ClassVar[Mapping[str, Any]] = MappingProxyType({})
    splits: ClassVar[bool] = True
    file_sha256: ClassVar[str | None] = None
    made_with: Mapping[str, Any] | None = None

    def setup(self, model: AdaptorModel, args: TrainingArguments) -> None:
        """Called once, before the optimizer is made and processes are joined: make what depends on the model."""

    def encode(self, model: AdaptorModel, batch: dict[str, torch.Tensor]) -> Encoded:
        """
        Embed a batch. Methods with a momentum copy or with views override it.

        Args:
            model (`AdaptorModel`): What is trained.
            batch (`dict[str, torch.Tensor]`): All columns of the batch. The default passes on those that the model's
                `forward` takes; `image_index` and `text_index` `(n,)`, where they are there, pair the sides. Of
                `pixel_values` and `input_ids` the towers' tokens go through the model too where `needs` has
                `image_tokens` and `text_tokens`.

        Returns:
            `Encoded`: With graph where gradients are on.
        """
        inputs = model_inputs(batch)
        live = [side for side, raw in (("image", "pixel_values"), ("text", "input_ids")) if raw in inputs]
        with_tokens = [side for side in live if f"{side}_tokens" in self.needs]
        output = model(**inputs, return_logits=False, **({"output_tokens": with_tokens} if with_tokens else {}))

        def side(name, pooled, tokens) -> Side | None:
            if pooled is None:
                return None
            has_tokens, mask = tokens is not None and tokens.shape[1] > 1, inputs.get(f"{name}_attention_mask")
            if mask is not None:
                mask = mask[:, 1:] if has_tokens else None
            elif has_tokens and name in live:
                # A live text's mask is of its tokens alone; an image has no padding.
                mask = inputs.get("attention_mask") if name == "text" else None
            return Side(pooled, tokens[:, 1:] if has_tokens else None, mask, batch.get(f"{name}_index"))

        return Encoded(
            side("image", output.image_embeds, output.image_last_hidden_state),
            side("text", output.text_embeds, output.text_last_hidden_state),
            logit_scale=model.get_logit_scale(),
            logit_bias=getattr(model, "logit_bias", None),
        )

    def forward(self, encoded: Encoded, rows: dict[str, torch.Tensor], gather: Gather) -> dict[str, torch.Tensor]:
        """
        The terms of the loss.

        Args:
            encoded (`Encoded`): What `encode` gave, of this process.
            rows (`dict[str, torch.Tensor]`): Columns of the batch that are no inputs of the model: `text_row`, `study`,
                `row`, `source`, `targets`, and whatever the data set gives beside them.
            gather ([`Gather`]): The rows of all processes.

        Returns:
            `dict[str, torch.Tensor]`: Scalars. `"loss"` is minimised, the mean over processes being the loss of the
            whole batch; the others are logged under their names.
        """
        raise NotImplementedError(f"{type(self).__name__} has no forward")

    def before_step(self, progress: float) -> None:
        """Called after the backward pass and before the optimizer's step; `progress` is the share of steps done."""

    def after_step(self, model: AdaptorModel) -> None:
        """Called after the optimizer's step: clamp, update a momentum copy."""

    def sampler(self, dataset: Dataset) -> Sampler | None:
        """The order of the training rows; `None`: the trainer's."""
        return None


MODEL_INPUTS = (
    "pixel_values",
    "image_embeds",
    "image_attention_mask",
    "input_ids",
    "attention_mask",
    "token_type_ids",
    "text_embeds",
    "text_attention_mask",
)
"""Columns of a batch that go into the model."""


def model_inputs(batch: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The columns of a batch that go into the model. A mask of tokens does not go with pooled vectors alone."""
    found = {name: batch[name] for name in MODEL_INPUTS if batch.get(name) is not None}
    for side in ("image", "text"):
        embeds = found.get(f"{side}_embeds")
        if embeds is not None and embeds.ndim == 2:
            found.pop(f"{side}_attention_mask", None)
    return found


__all__ = ["MODEL_INPUTS", "NEEDS", "Objective", "model_inputs"]
