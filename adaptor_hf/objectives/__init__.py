"""Training objectives. They take tensors; which rows meet which is the trainer's business."""

from ..loss_adaptor import contrastive_loss, sigmoid_contrastive_loss
from .chunked import chunked_cross_entropy
from .gather import gathered_contrastive_loss

__all__ = ["chunked_cross_entropy", "contrastive_loss", "gathered_contrastive_loss", "sigmoid_contrastive_loss"]
