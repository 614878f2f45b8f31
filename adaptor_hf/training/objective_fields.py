"""Fields of what `--aligner` and `--objective` choose from; an objective declares its own."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field, fields

from ..configuration_adaptor import NORMS
from ..objectives.base import Objective
from ..objectives.known import known_objectives
from ..objectives.loading import FORM, is_file, objective_class
from ..options.choices import Choice
from ..options.declared import Declared, declared_options
from .arguments import AdaptorTrainingArguments

logger = logging.getLogger(__name__)

# Never an option of its own.
_POOLING = {"help": "Heads of an attention pooling of tokens, LoVT's 8; None: the tower's vector.", "flag": False}
_POSITIVES = next(item for item in fields(AdaptorTrainingArguments) if item.name == "positives")


@dataclass
class AdaptorAlignerArguments:
    """Shape of the Adaptor. The defaults are those of `AdaptorConfig`."""

    hidden_size: int = field(default=768, metadata={"help": "Width of the shared space."})
    num_hidden_layers: int = field(default=2, metadata={"help": "Layers; 0 is the aligner linear."})
    num_attention_heads: int = field(default=12, metadata={"help": "Attention heads."})
    intermediate_size: int = field(default=2048, metadata={"help": "Width of the feed-forward layers."})
    hidden_dropout_prob: float = field(default=0.1, metadata={"help": "Dropout of the layers."})
    attention_probs_dropout_prob: float = field(default=0.1, metadata={"help": "Dropout of attention weights."})
    attention_pooling_heads: int | None = field(default=None, metadata=_POOLING)

    def __post_init__(self):
        if self.num_hidden_layers == 0:
            logger.info("An Adaptor of 0 layers is two linear projections: --aligner linear.")


@dataclass
class LinearAlignerArguments:
    """Two linear projections."""

    hidden_size: int = field(default=768, metadata={"help": "Width of the shared space."})
    attention_pooling_heads: int | None = field(default=None, metadata=_POOLING)


@dataclass
class ResidualAlignerArguments:
    """Two linear projections, and the Adaptor's layers as a branch that starts at zero."""

    hidden_size: int = field(default=768, metadata={"help": "Width of the shared space."})
    num_hidden_layers: int = field(default=2, metadata={"help": "Layers of the branch."})
    num_attention_heads: int = field(default=12, metadata={"help": "Attention heads."})
    intermediate_size: int = field(default=2048, metadata={"help": "Width of the feed-forward layers."})
    hidden_dropout_prob: float = field(default=0.1, metadata={"help": "Dropout of the layers."})
    attention_probs_dropout_prob: float = field(default=0.1, metadata={"help": "Dropout of attention weights."})
    attention_pooling_heads: int | None = field(default=None, metadata=_POOLING)


@dataclass
class GatedAlignerArguments:
    """A gated unit a side, as in SAIL."""

    hidden_size: int = field(default=768, metadata={"help": "Width of the shared space; SAIL's is 1024."})
    intermediate_size: int | None = field(
        default=None, metadata={"help": "Width of the two branches; None is eight times the tower's."}
    )
    attention_pooling_heads: int | None = field(default=None, metadata=_POOLING)


@dataclass
class MlpAlignerArguments:
    """A small MLP a side: the heads of MGCA, LoVT, SimCLR and ShareLock."""

    hidden_size: int = field(default=768, metadata={"help": "Width of the shared space; MGCA's is 128, LoVT's 512."})
    num_hidden_layers: int = field(default=1, metadata={"help": "Hidden layers; SimCLR has 2, ShareLock 3."})
    intermediate_size: int = field(default=2048, metadata={"help": "Width of the hidden layers; ShareLock's is 4096."})
    hidden_act: str = field(default="relu", metadata={"help": "Activation, by its name in transformers."})
    hidden_dropout_prob: float = field(default=0.0, metadata={"help": "Dropout of hidden layers; ShareLock's is 0.2."})
    projection_norm: str = field(default="batch", metadata={"help": "Norm of hidden layers.", "choices": NORMS})
    projection_output_norm: bool = field(
        default=False, metadata={"help": "Batch norm without weights after the last layer, as in MGCA."}
    )
    token_projection: bool = field(default=False, metadata={"help": "A second MLP a side for tokens."})
    attention_pooling_heads: int | None = field(default=None, metadata=_POOLING)


def options_of(objective: type[Objective]) -> type[Declared]:
    """Fields of an objective; `positives` that are None by default are those of the training arguments."""
    return declared_options(objective, {"positives": _POSITIVES.default})


def options_of_file(name: str) -> type[Declared] | None:
    """Fields of an objective of a file of the user's, whose code is run; None where the name has another form."""
    return options_of(objective_class(name)) if is_file(name) else None


ALIGNERS = Choice(
    "aligner",
    {
        "adaptor": AdaptorAlignerArguments,
        "linear": LinearAlignerArguments,
        "residual": ResidualAlignerArguments,
        "gated": GatedAlignerArguments,
        "mlp": MlpAlignerArguments,
    },
)
"""What stands between the towers and the shared space."""

OBJECTIVES = Choice(
    "objective", {name: options_of(made) for name, made in known_objectives().items()}, options_of_file, FORM
)
"""What is minimised."""

__all__ = [
    "ALIGNERS",
    "OBJECTIVES",
    "AdaptorAlignerArguments",
    "GatedAlignerArguments",
    "LinearAlignerArguments",
    "MlpAlignerArguments",
    "ResidualAlignerArguments",
    "options_of",
]
