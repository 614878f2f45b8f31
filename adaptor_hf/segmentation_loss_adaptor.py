"""Losses of binary segmentation, as MGCA, GLoRIA and "Freeze the backbones" (`--original_dice_loss`) use them.

The reference's default in "Freeze the backbones" computes Dice on raw logits without the factor 2; it is not offered.
"""

import torch
from torch import nn


def focal_loss(logits: torch.Tensor, masks: torch.Tensor, gamma: float = 2.0) -> torch.Tensor:
    """
    Mean over all pixels of `(1 - p_t)^gamma * BCE`, without class weights ("FocalLoss" of MGCA).

    Args:
        logits (`torch.Tensor`, any shape): Scores before the sigmoid.
        masks (`torch.Tensor`, the same shape): 0 or 1, or a probability.

    Returns:
        `torch.Tensor`: A scalar.
    """
    masks = masks.to(logits.dtype)
    cross_entropy = nn.functional.binary_cross_entropy_with_logits(logits, masks, reduction="none")
    # The reference's own form; for masks of 0 and 1 the exponent is log(p_t).
    return ((1 - torch.exp(-cross_entropy)) ** gamma * cross_entropy).mean()


def soft_dice(logits: torch.Tensor, masks: torch.Tensor, smooth: float = 1.0) -> torch.Tensor:
    """
    `(2 * sum(p * t) + smooth) / (sum(p) + sum(t) + smooth)` over all pixels of the batch together, p the sigmoid.

    Args and result as in [`focal_loss`]. A batch without foreground that is predicted empty has a Dice near 1.
    """
    probabilities, masks = logits.sigmoid().flatten(), masks.to(logits.dtype).flatten()
    intersection = (probabilities * masks).sum()
    return (2 * intersection + smooth) / (probabilities.sum() + masks.sum() + smooth)


def mixed_loss(
    logits: torch.Tensor, masks: torch.Tensor, *, alpha: float = 10.0, gamma: float = 2.0, smooth: float = 1.0
) -> torch.Tensor:
    """
    `alpha * focal_loss - log(soft_dice)`, "MixedLoss" of MGCA and GLoRIA.

    Args:
        logits (`torch.Tensor`, any shape): Scores before the sigmoid; half precision is computed in float32.
        masks (`torch.Tensor`, the same shape): 0 or 1.

    Returns:
        `torch.Tensor`: A scalar.

    Raises:
        ValueError: if the shapes differ, which would broadcast, or a mask has values outside 0 to 1.
    """
    if logits.shape != masks.shape:
        raise ValueError(f"Logits are of shape {tuple(logits.shape)}, masks {tuple(masks.shape)}: give equal shapes.")
    low, high = masks.min(), masks.max()
    if not (low >= 0 and high <= 1):
        raise ValueError(
            f"Masks must be 0 and 1, got values from {low.item():g} to {high.item():g}. Masks of 0 and 255 become so "
            "by `mask > 127`, or by AdaptorImageProcessor (segmentation_maps=...)."
        )
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    # Sums over millions of pixels leave half precision no digits.
    with torch.autocast(logits.device.type, enabled=False):
        return alpha * focal_loss(logits, masks, gamma) - torch.log(soft_dice(logits, masks, smooth))


__all__ = ["focal_loss", "mixed_loss", "soft_dice"]
