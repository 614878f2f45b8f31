"""Model and objective as one module: what the optimizer, mixed precision and DistributedDataParallel see."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn

from ..modeling_adaptor import AdaptorModel
from ..objectives import Encoded, Gather, Objective, Side
from ..objectives.known import is_of_package
from .pair_batches import Columns, split_inputs

HALF_PRECISION = (torch.float16, torch.bfloat16)


class TrainedTogether(nn.Module):
    """
    A model and the objective that it is trained by. Parameters are in this order: the model's, the objective's.

    Args:
        model (`AdaptorModel`), objective (`Objective`): Set up, on one device.
        equal_counts (`bool`): All processes hold equally many rows. Only objectives of the package are told so, which
            take all pairs of a batch; others may leave some out.

    Raises:
        ValueError: the objective has parameters of the model among its own.
    """

    def __init__(self, model: AdaptorModel, objective: Objective, equal_counts: bool = False):
        super().__init__()
        self.model, self.objective, self.equal_counts = model, objective, equal_counts
        owned = {id(value) for value in model.parameters()}
        if any(id(value) in owned for value in objective.parameters()):
            raise ValueError(
                f"{type(objective).__name__} keeps the model, or a part of it, as its own: it would be saved and "
                "trained twice. Keep a copy.deepcopy in setup; encode and after_step are given the model."
            )

    def forward(self, batch: dict[str, torch.Tensor], encode_only: bool = False) -> dict[str, torch.Tensor] | Encoded:
        """
        The terms of a batch's loss, or with `encode_only` its embeddings.

        Raises:
            TypeError, ValueError: what the objective gives is no loss, see [`check_terms`].
        """
        batch = Columns(batch)
        encoded = self.encode(batch)
        if encode_only:
            return encoded
        terms = self.terms(encoded, batch)
        if torch.is_grad_enabled() and torch.distributed.is_initialized():
            terms["loss"] = depending_on_all(terms["loss"], self.parameters())
        return terms

    def encode(self, batch: dict[str, torch.Tensor]) -> Encoded:
        """Embeddings, float32 where they came out in half precision."""
        encoded = encoded_by(self.objective, self.model, batch)
        tensors = encoded.tensors()
        in_half = {name: value.float() for name, value in tensors.items() if value.dtype in HALF_PRECISION}
        if not in_half:
            return encoded
        return Encoded.of_tensors(tensors | in_half, encoded.logit_scale, encoded.logit_bias)

    def terms(self, encoded: Encoded, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """The objective's terms of what `encode` gave of a batch, without autocast."""
        if encoded.logit_scale is None:
            # Of embeddings that were computed in parts.
            encoded.logit_scale = self.model.get_logit_scale()
            encoded.logit_bias = getattr(self.model, "logit_bias", None)
        rows, _ = split_inputs(batch)
        # Index columns say that images and texts differ in number, which processes then do not share.
        indexed = {"image_index", "text_index"} & batch.keys()
        equal_counts = self.equal_counts and is_of_package(self.objective) and not indexed
        with torch.autocast(encoded.logit_scale.device.type, enabled=False):
            terms = self.objective(encoded, rows, Gather.of_processes(equal_counts))
        check_terms(terms, type(self.objective).__name__)
        return terms

    def parameters_of_the_loss(self) -> list[nn.Parameter]:
        """Trainable parameters that the loss may reach apart from the embeddings."""
        own = [*self.objective.parameters(), *(value for name, value in self.model.named_parameters(recurse=False))]
        return [value for value in own if value.requires_grad]


def encoded_by(objective: Objective, model: AdaptorModel, batch: dict[str, torch.Tensor]) -> Encoded:
    """
    What an objective's `encode` gives of a batch.

    Raises:
        TypeError: it is no [`Encoded`] of [`Side`]s.
    """
    encoded, who = objective.encode(model, batch), f"encode of {type(objective).__name__}"
    if not isinstance(encoded, Encoded):
        raise TypeError(
            f"{who} must return an adaptor_hf.objectives.Encoded, got {type(encoded).__name__}. Put the embeddings of "
            "images and texts into one: Encoded(Side(images), Side(texts), logit_scale=model.get_logit_scale())."
        )
    if wrong := [name for name, side in encoded.sides() if not isinstance(side, Side)]:
        found = type(dict(encoded.sides())[wrong[0]]).__name__
        raise TypeError(f"{who} gave {found} for {wrong[0]!r}: expected an adaptor_hf.objectives.Side of it.")
    return encoded


def check_terms(terms: dict[str, torch.Tensor], objective: str) -> None:
    """
    Raises:
        TypeError: no dictionary of tensors.
        ValueError: no `"loss"`, one without gradient while gradients are on, or a term that is no scalar.
    """
    if not isinstance(terms, dict) or not all(isinstance(value, torch.Tensor) for value in terms.values()):
        raise TypeError(f"forward of {objective} must return a dictionary of scalar tensors, got {_described(terms)}.")
    if "loss" not in terms:
        raise ValueError(
            f'forward of {objective} must return "loss", which is minimised; it gave {", ".join(terms) or "nothing"}.'
        )
    for name, value in terms.items():
        if value.ndim:
            raise ValueError(f"The term {name!r} of {objective} is of shape {tuple(value.shape)}, not a scalar.")
    if torch.is_grad_enabled() and not terms["loss"].requires_grad:
        raise ValueError(
            f"The loss of {objective} has no gradient: nothing that is trained is in it. Compute it of the embeddings "
            "that forward is given, without detach, item or no_grad."
        )


def _described(terms: object) -> str:
    if not isinstance(terms, dict):
        return type(terms).__name__
    return "a dictionary of " + ", ".join(f"{name!r} ({type(value).__name__})" for name, value in terms.items())


def depending_on_all(loss: torch.Tensor, parameters: Iterable[nn.Parameter]) -> torch.Tensor:
    """
    The loss, with a gradient of zero for the trainable parameters that it does not depend on.

    DistributedDataParallel waits for the gradient of every parameter; an objective may leave some out, at some steps.
    """
    missing = {id(value): value for value in parameters if value.requires_grad}
    seen, stack = set(), [loss.grad_fn]
    while stack and missing:
        node = stack.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        missing.pop(id(getattr(node, "variable", None)), None)
        stack.extend(other for other, _ in node.next_functions)
    # The sum of none of its elements.
    return loss + sum(value.flatten()[:0].sum() for value in missing.values()) if missing else loss


__all__ = ["TrainedTogether", "check_terms", "depending_on_all", "encoded_by"]
