"""Training objectives: the interface, one method a file, and losses of tensors."""

from ..loss_adaptor import contrastive_loss, sigmoid_contrastive_loss
from .base import Objective
from .chunked import chunked_cross_entropy
from .chunked_sigmoid import chunked_sigmoid_loss
from .contrastive import AdaptorObjective
from .encoded import Encoded, Side
from .gather import Gather, gathered_contrastive_loss
from .known import find_objective, known_objectives
from .siglip import SigLIPObjective, gathered_sigmoid_loss

__all__ = [
    "AdaptorObjective",
    "Encoded",
    "Gather",
    "Objective",
    "Side",
    "SigLIPObjective",
    "chunked_cross_entropy",
    "chunked_sigmoid_loss",
    "contrastive_loss",
    "find_objective",
    "gathered_contrastive_loss",
    "gathered_sigmoid_loss",
    "known_objectives",
    "sigmoid_contrastive_loss",
]
