"""Training objectives: the interface, one method a file, and losses of tensors."""

from ..loss_adaptor import contrastive_loss, sigmoid_contrastive_loss
from .base import Objective
from .chunked import chunked_cross_entropy
from .contrastive import AdaptorObjective
from .encoded import Encoded, Side
from .gather import Gather, gathered_contrastive_loss
from .known import find_objective, known_objectives

__all__ = [
    "AdaptorObjective",
    "Encoded",
    "Gather",
    "Objective",
    "Side",
    "chunked_cross_entropy",
    "contrastive_loss",
    "find_objective",
    "gathered_contrastive_loss",
    "known_objectives",
    "sigmoid_contrastive_loss",
]
