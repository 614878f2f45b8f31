"""Fields of what `--aligner` and `--objective` choose from; those of each are declared here and live in a recipe."""

from __future__ import annotations

from dataclasses import dataclass, field, fields

from ..options.choices import Choice
from .arguments import AdaptorTrainingArguments

_POSITIVES = next(item for item in fields(AdaptorTrainingArguments) if item.name == "positives")


@dataclass
class AdaptorAlignerArguments:
    """Shape of the Adaptor. The defaults are those of `AdaptorConfig`."""

    hidden_size: int = field(default=768, metadata={"help": "Width of the Adaptor."})
    num_hidden_layers: int = field(default=2, metadata={"help": "Layers; 0 is two linear projections."})
    num_attention_heads: int = field(default=12, metadata={"help": "Attention heads."})
    intermediate_size: int = field(default=2048, metadata={"help": "Width of the feed-forward layers."})
    hidden_dropout_prob: float = field(default=0.1, metadata={"help": "Dropout of the layers."})
    attention_probs_dropout_prob: float = field(default=0.1, metadata={"help": "Dropout of attention weights."})


@dataclass
class AdaptorObjectiveArguments:
    """The contrastive loss of the paper. The defaults are those of `AdaptorConfig` and `AdaptorTrainingArguments`."""

    positives: str = field(default=_POSITIVES.default, metadata=_POSITIVES.metadata)
    image_to_text_weight: float = field(default=0.75, metadata={"help": "alpha of the paper's equation (4)."})
    logit_scale_init_value: float = field(default=2.6592, metadata={"help": "Logarithm of the initial scale."})
    max_logit_scale: float | None = field(default=None, metadata={"help": "Bound of the scale; CLIP's is 100."})


ALIGNERS = Choice("aligner", {"adaptor": AdaptorAlignerArguments})
"""What stands between the towers and the shared space."""

OBJECTIVES = Choice("objective", {"adaptor": AdaptorObjectiveArguments})
"""What is minimised."""

__all__ = ["ALIGNERS", "OBJECTIVES", "AdaptorAlignerArguments", "AdaptorObjectiveArguments"]
