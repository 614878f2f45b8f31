"""Contrastive losses between image and text embeddings. They know only tensors: no model, no process group."""

import math

import torch
from torch import nn


def positive_mask(positives: torch.Tensor | None, num_images: int, num_texts: int) -> torch.Tensor | None:
    """
    Expand `positives` to a boolean mask of the pairs that must not count as negatives.

    Args:
        positives (`torch.Tensor`, *optional*): `None` (only the diagonal is positive), integer ids `(B,)` (rows of
            equal id are positives of each other) or a boolean mask `(num_images, num_texts)`.
        num_images (`int`): Number of images, the rows of the mask.
        num_texts (`int`): Number of texts, the columns of the mask.

    Returns:
        `torch.Tensor | None`: Boolean `(num_images, num_texts)`, or `None`.

    Raises:
        ValueError: if the shape fits neither form.
    """
    if positives is None:
        return None
    if positives.dtype != torch.bool and positives.shape == (num_images,) and num_images == num_texts:
        return positives[:, None] == positives[None, :]
    if positives.dtype == torch.bool and positives.shape == (num_images, num_texts):
        return positives
    raise ValueError(
        f"positives must be integer ids of shape ({num_images},) or a boolean mask of shape "
        f"({num_images}, {num_texts}), got {positives.dtype} of shape {tuple(positives.shape)}."
    )


def directional_loss(
    logits: torch.Tensor, targets: torch.Tensor, positives: torch.Tensor | None = None
) -> torch.Tensor:
    """
    Cross-entropy of each query's own key among all keys.

    Args:
        logits (`torch.Tensor` of shape `(B, N)`): Scaled similarities of B queries and N keys; N >= B when gathered.
        targets (`torch.Tensor` of shape `(B,)`, int64): Index of each query's own key.
        positives (`torch.Tensor` of shape `(B, N)`, bool, *optional*): Keys that are no negatives of a query. They
            leave its denominator, its own key stays.

    Returns:
        `torch.Tensor` of shape `(B,)`: one loss a query.
    """
    if positives is not None:
        others = positives.scatter(1, targets[:, None], False)
        logits = logits.masked_fill(others, float("-inf"))
    return nn.functional.cross_entropy(logits, targets, reduction="none")


def contrastive_loss(
    image_embeds: torch.Tensor,
    text_embeds: torch.Tensor,
    logit_scale: torch.Tensor | float,
    image_to_text_weight: float = 0.75,
    normalize: bool = True,
    positives: torch.Tensor | None = None,
) -> torch.Tensor:
    r"""
    Image-text contrastive loss, equation (4) of "Freeze the backbones" (arXiv 2401.01179):
    \\(\alpha L_{i \to t} + (1 - \alpha) L_{t \to i}\\), each the mean cross-entropy of matched pairs under a softmax
    over the batch. The reference code swaps the two weights: its `image_weight=0.75` is `image_to_text_weight=0.25`.

    Args:
        image_embeds (`torch.Tensor` of shape `(B, D)`): Row i belongs to row i of `text_embeds`.
        text_embeds (`torch.Tensor` of shape `(B, D)`): Text embeddings.
        logit_scale (`torch.Tensor` or `float`, scalar): Logarithm of the similarity scale; ln(1/0.07) = 2.6593.
        image_to_text_weight (`float`, defaults to 0.75): alpha, the weight of the softmax over texts for each image.
        normalize (`bool`, defaults to `True`): L2-normalise both inputs first.
        positives (`torch.Tensor`, *optional*): Integer ids `(B,)`, equal for rows that share a text (or a study), or a
            boolean mask `(B, B)`. Such rows are no negatives of each other: they leave each other's denominators.
            `None` is the paper's loss, where every other row is a negative.

    Returns:
        `torch.Tensor`: scalar, float32 or wider.

    Raises:
        ValueError: if the shapes differ or `positives` fits neither form.
    """
    image_embeds, text_embeds, scale = prepare(image_embeds, text_embeds, logit_scale, normalize)
    check_matched(image_embeds, text_embeds)
    targets = torch.arange(len(image_embeds), device=image_embeds.device)
    mask = positive_mask(positives, len(image_embeds), len(text_embeds))
    with torch.autocast(image_embeds.device.type, enabled=False):
        logits = scale * (image_embeds @ text_embeds.T)
        image_to_text = directional_loss(logits, targets, mask).mean()
        text_to_image = directional_loss(logits.T, targets, None if mask is None else mask.T).mean()
    return image_to_text_weight * image_to_text + (1 - image_to_text_weight) * text_to_image


def sigmoid_contrastive_loss(
    image_embeds: torch.Tensor,
    text_embeds: torch.Tensor,
    logit_scale: torch.Tensor | float,
    logit_bias: torch.Tensor | float = -10.0,
    normalize: bool = True,
    positives: torch.Tensor | None = None,
) -> torch.Tensor:
    """
    Pairwise sigmoid loss (SigLIP, arXiv 2303.15343): every image-text pair is a binary decision.

    Args:
        image_embeds, text_embeds, logit_scale, normalize: As in [`contrastive_loss`].
        logit_bias (`torch.Tensor` or `float`, scalar, defaults to -10): Added to the scaled similarities.
        positives (`torch.Tensor`, *optional*): As in [`contrastive_loss`]; such pairs are left out of the sum.

    Returns:
        `torch.Tensor`: scalar, float32 or wider, the sum over pairs divided by the batch size.

    Raises:
        ValueError: if the shapes differ or `positives` fits neither form.
    """
    image_embeds, text_embeds, scale = prepare(image_embeds, text_embeds, logit_scale, normalize)
    check_matched(image_embeds, text_embeds)
    own = torch.eye(len(image_embeds), len(text_embeds), dtype=torch.bool, device=image_embeds.device)
    mask = positive_mask(positives, len(image_embeds), len(text_embeds))
    with torch.autocast(image_embeds.device.type, enabled=False):
        logits = scale * (image_embeds @ text_embeds.T) + logit_bias
        losses = -nn.functional.logsigmoid(torch.where(own, logits, -logits))
        if mask is not None:
            losses = losses.masked_fill(mask & ~own, 0.0)
        return losses.sum() / len(image_embeds)


def check_matched(image_embeds: torch.Tensor, text_embeds: torch.Tensor) -> None:
    """Refuse other numbers of texts than of images, and other widths."""
    if image_embeds.shape != text_embeds.shape:
        raise ValueError(
            f"A contrastive loss needs one text per image: got {tuple(image_embeds.shape)} image and "
            f"{tuple(text_embeds.shape)} text embeddings."
        )


def prepare(
    image_embeds: torch.Tensor, text_embeds: torch.Tensor, logit_scale: torch.Tensor | float, normalize: bool
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Widen half precision (a scale of 100 leaves fp16 no digits), L2-normalise if asked, exponentiate the scale."""
    dtype = torch.promote_types(torch.promote_types(image_embeds.dtype, text_embeds.dtype), torch.float32)
    image_embeds, text_embeds = image_embeds.to(dtype), text_embeds.to(dtype)
    if normalize:
        image_embeds = nn.functional.normalize(image_embeds, dim=-1)
        text_embeds = nn.functional.normalize(text_embeds, dim=-1)
    if isinstance(logit_scale, torch.Tensor):
        scale = logit_scale.to(device=image_embeds.device, dtype=dtype).exp()
    else:
        scale = torch.tensor(math.exp(logit_scale), device=image_embeds.device, dtype=dtype)
    return image_embeds, text_embeds, scale


__all__ = [
    "check_matched",
    "contrastive_loss",
    "directional_loss",
    "positive_mask",
    "prepare",
    "sigmoid_contrastive_loss",
]
