"""Losses of binary segmentation; the code is flat, because heads take it along to the Hub."""

from ..segmentation_loss_adaptor import MixedLoss, focal_loss, mixed_loss, soft_dice

__all__ = ["MixedLoss", "focal_loss", "mixed_loss", "soft_dice"]
