"""Pre-training with transformers' Trainer."""

from .arguments import AdaptorTrainingArguments
from .trainer import AdaptorTrainer

__all__ = ["AdaptorTrainer", "AdaptorTrainingArguments"]
