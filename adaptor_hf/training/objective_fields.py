"""Fields of what `--aligner` and `--objective` choose from; an objective declares its own."""

from __future__ import annotations

from dataclasses import dataclass, field, fields

from ..objectives.base import Objective
from ..objectives.known import known_objectives
from ..objectives.loading import FORM, is_file, objective_class
from ..options.choices import Choice
from ..options.declared import Declared, declared_options
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


def options_of(objective: type[Objective]) -> type[Declared]:
    """Fields of an objective; `positives` that are None by default are those of the training arguments."""
    return declared_options(objective, {"positives": _POSITIVES.default})


def options_of_file(name: str) -> type[Declared] | None:
    """Fields of an objective of a file of the user's, whose code is run; None where the name has another form."""
    return options_of(objective_class(name)) if is_file(name) else None


ALIGNERS = Choice("aligner", {"adaptor": AdaptorAlignerArguments})
"""What stands between the towers and the shared space."""

OBJECTIVES = Choice(
    "objective", {name: options_of(made) for name, made in known_objectives().items()}, options_of_file, FORM
)
"""What is minimised."""

__all__ = ["ALIGNERS", "OBJECTIVES", "AdaptorAlignerArguments", "options_of"]
