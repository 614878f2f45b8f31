"""Zero-shot classification: is an image closer to texts that name a finding than to texts that deny it?"""

from collections.abc import Sequence

import torch
from torch import nn

from ..modeling_adaptor import AdaptorModel
from ..towers_adaptor import TextTower


@torch.no_grad()
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
    if isinstance(prompts, str):
        raise TypeError(f"prompts must be a list of wordings, got one string. Pass [{prompts!r}].")
    if not prompts:
        raise ValueError("A class needs at least one prompt.")
    if model.training:
        raise ValueError("The model is in training mode, where dropout changes every score. Call model.eval() first.")
    inputs = text_tower.processor(list(prompts), return_tensors="pt", padding=True, truncation=True)
    device = next(text_tower.parameters()).device
    pooled = text_tower(**{name: value.to(device) for name, value in inputs.items()}).pooler_output
    embeds = model.get_text_features(text_embeds=pooled.to(model.device)).pooler_output
    return nn.functional.normalize(embeds.mean(0), dim=0)


@torch.no_grad()
def zero_shot_scores(
    model: AdaptorModel,
    text_tower: TextTower,
    image_embeds: torch.Tensor,
    positive: Sequence[str],
    negative: Sequence[str],
) -> torch.Tensor:
    """
    Score of each image alone, whatever other images are scored beside it.

    Args:
        model (`AdaptorModel`): In evaluation mode.
        text_tower (`TextTower`): The tower that the model was trained with.
        image_embeds (`torch.Tensor` of shape `(N, D)`): Embeddings of the vision tower, as cached.
        positive, negative (`Sequence[str]`): Texts that say the finding is there, and that it is not.

    Returns:
        `torch.Tensor` of shape `(N,)`, in [-2, 2]: cosine to the positive class minus cosine to the negative class.
    """
    classes = [embed_prompts(model, text_tower, prompts) for prompts in (positive, negative)]
    images = model.get_image_features(image_embeds=image_embeds.to(model.device)).pooler_output
    return images @ (classes[0] - classes[1])


__all__ = ["embed_prompts", "zero_shot_scores"]
