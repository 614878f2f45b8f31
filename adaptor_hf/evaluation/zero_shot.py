"""Scores of images by the texts of classes: closer to those that name a finding than to those that deny it?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import nn

from ..modeling_adaptor import AdaptorModel
from ..towers_adaptor import TextTower

BATCH_TEXTS = 64


@torch.no_grad()
def embed_texts(model: AdaptorModel, text_tower: TextTower, texts: Sequence[str]) -> torch.Tensor:
    """
    Embeddings of texts, through the tower and the Adaptor.

    Args:
        model (`AdaptorModel`): In evaluation mode.
        text_tower (`TextTower`): The tower that the model was trained with.
        texts (`Sequence[str]`): As they are; what the tower cannot take is cut.

    Returns:
        `torch.Tensor` of shape `(len(texts), hidden_size)`, L2-normalised.

    Raises:
        ValueError: if the model is in training mode.
    """
    _refuse_training_mode(model)
    return _through_adaptor(model, tower_text_features(text_tower, texts))


def _refuse_training_mode(model: AdaptorModel) -> None:
    if model.training:
        raise ValueError("The model is in training mode, where dropout changes every score. Call model.eval() first.")


def _through_adaptor(model: AdaptorModel, pooled: torch.Tensor) -> torch.Tensor:
    return model.get_text_features(text_embeds=pooled.to(model.device)).pooler_output


@torch.no_grad()
def tower_text_features(text_tower: TextTower, texts: Sequence[str]) -> torch.Tensor:
    """`(len(texts), D)` pooled embeddings of a text tower alone."""
    device = next(text_tower.parameters()).device
    parts = []
    for start in range(0, len(texts), BATCH_TEXTS):
        chosen = list(texts[start : start + BATCH_TEXTS])
        inputs = text_tower.processor(chosen, return_tensors="pt", padding=True, truncation=True)
        parts.append(text_tower(**{name: value.to(device) for name, value in inputs.items()}).pooler_output)
    return torch.cat(parts)


def embed_prompts(model: AdaptorModel, text_tower: TextTower, prompts: Sequence[str]) -> torch.Tensor:
    """
    One class embedding from several wordings: the normalised mean of their normalised embeddings.

    Args:
        model (`AdaptorModel`): In evaluation mode.
        text_tower (`TextTower`): The tower that the model was trained with.
        prompts (`Sequence[str]`): Wordings of one class.

    Returns:
        `torch.Tensor` of shape `(hidden_size,)`, L2-normalised.

    Raises:
        ValueError: if there is no prompt, or the model is in training mode.
        TypeError: if `prompts` is one string: its letters would be the prompts.
    """
    return class_embedding(model, prompt_features(text_tower, prompts))


def prompt_features(text_tower: TextTower, prompts: Sequence[str]) -> torch.Tensor:
    """
    `(len(prompts), D)` pooled embeddings of the wordings of a class.

    Raises:
        ValueError: there is none.
        TypeError: one string, whose letters would be the prompts.
    """
    if isinstance(prompts, str):
        raise TypeError(f"prompts must be a list of wordings, got one string. Pass [{prompts!r}].")
    if not prompts:
        raise ValueError("A class needs at least one prompt.")
    return tower_text_features(text_tower, prompts)


@torch.no_grad()
def class_embedding(model: AdaptorModel, pooled: torch.Tensor) -> torch.Tensor:
    """As `embed_prompts`, of what the tower gives of the prompts, `(n, D)`."""
    _refuse_training_mode(model)
    return nn.functional.normalize(_through_adaptor(model, pooled).mean(0), dim=0)


@torch.no_grad()
def prompt_scores(
    model: AdaptorModel,
    image_features: torch.Tensor,
    classes: Mapping[str, tuple[torch.Tensor, torch.Tensor | None]],
) -> np.ndarray:
    """
    Scores of every class for images that went through the Adaptor.

    Args:
        model (`AdaptorModel`): In evaluation mode.
        image_features (`torch.Tensor` of shape `(N, hidden_size)`): L2-normalised.
        classes (`Mapping`): Of each class what the text tower gives of the prompts that name it, `(n, D)`, and of those
            that deny it, or None.

    Returns:
        `np.ndarray` of shape `(N, C)`, float64: cosine to the class; minus that to its denial where there is one.
    """
    columns = []
    for positive, negative in classes.values():
        weights = class_embedding(model, positive)
        if negative is not None:
            weights = weights - class_embedding(model, negative)
        columns.append(image_features.to(weights.device) @ weights)
    return torch.stack(columns, dim=1).double().cpu().numpy()


__all__ = [
    "BATCH_TEXTS",
    "class_embedding",
    "embed_prompts",
    "embed_texts",
    "prompt_features",
    "prompt_scores",
    "tower_text_features",
]
