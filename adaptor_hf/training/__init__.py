"""Pre-training with transformers' Trainer."""

from .arguments import AdaptorTrainingArguments
from .pair_evaluation import PairEvaluator, Retrieval
from .trainer import AdaptorTrainer
from .zero_shot import ZeroShot

__all__ = ["AdaptorTrainer", "AdaptorTrainingArguments", "PairEvaluator", "Retrieval", "ZeroShot"]
