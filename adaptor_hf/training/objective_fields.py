"""Fields of what `--aligner` and `--objective` choose from; those of each are declared here and live in a recipe."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field, fields

from ..configuration_adaptor import NORMS
from ..options.choices import Choice
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


@dataclass
class AdaptorObjectiveArguments:
    """The contrastive loss of the paper. The defaults are those of `AdaptorConfig` and `AdaptorTrainingArguments`."""

    positives: str = field(default=_POSITIVES.default, metadata=_POSITIVES.metadata)
    image_to_text_weight: float = field(default=0.75, metadata={"help": "alpha of the paper's equation (4)."})
    logit_scale_init_value: float = field(default=2.6592, metadata={"help": "Logarithm of the initial scale."})
    max_logit_scale: float | None = field(default=None, metadata={"help": "Bound of the scale; CLIP's is 100."})


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

OBJECTIVES = Choice("objective", {"adaptor": AdaptorObjectiveArguments})
"""What is minimised."""

__all__ = [
    "ALIGNERS",
    "OBJECTIVES",
    "AdaptorAlignerArguments",
    "AdaptorObjectiveArguments",
    "GatedAlignerArguments",
    "LinearAlignerArguments",
    "MlpAlignerArguments",
    "ResidualAlignerArguments",
]
