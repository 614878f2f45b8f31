"""Training a classifier whose tower trains too, from images."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ..heads_adaptor import AdaptorForImageClassification
from ..training.base_trainer import BaseTrainer, KeepBest, in_memory_arguments
from ..training.grad_cache import check_last_statistics
from .head_training import macro_auroc

if TYPE_CHECKING:
    from datasets import Dataset

    from .finetune import ImageCollator


def train_classifier(
    classifier: AdaptorForImageClassification,
    train: Dataset,
    validation: Dataset,
    collator: ImageCollator,
    *,
    exclusive: bool,
    learning_rate: float,
    epochs: int,
    batch_size: int,
    seed: int,
    device: str = "cpu",
) -> BaseTrainer:
    """
    Train what has gradients; afterwards the classifier is that of the epoch with the highest macro AUROC on validation.

    Args:
        classifier (`AdaptorForImageClassification`): Changed in place.
        train, validation (`Dataset`): With `image` and `target`.
        collator ([`ImageCollator`]): Makes batches of them.
        exclusive (`bool`): Whether the classes exclude each other.
        learning_rate, epochs, batch_size, seed, device: How.

    Returns:
        [`BaseTrainer`]: To predict.

    Raises:
        FloatingPointError: if the loss on validation is NaN or infinite.
        ValueError: the last batch of an epoch is a single row, of which batch normalisation takes no spread.
    """

    def metrics(prediction: Any) -> dict[str, float]:
        score = macro_auroc(np.asarray(prediction.predictions, np.float64), prediction.label_ids, exclusive)
        # With one class alone on validation there is no AUROC: the loss is what is left to choose by.
        return {"score": -float(prediction.losses.mean()) if math.isnan(score) else score}

    arguments = in_memory_arguments(
        device, learning_rate=learning_rate, per_device_train_batch_size=batch_size,
        per_device_eval_batch_size=batch_size, num_train_epochs=epochs, weight_decay=0.01, warmup_steps=0.1, seed=seed,
        eval_strategy="epoch", label_names=["labels"], include_for_metrics=["loss"],
    )  # fmt: skip
    check_last_statistics(classifier.train(), len(train), arguments, cure="choose another batch size")
    trainer = BaseTrainer(
        classifier, arguments, keep_best=KeepBest("score"), quiet=True, data_collator=collator, train_dataset=train,
        eval_dataset=validation, compute_metrics=metrics,
    )  # fmt: skip
    trainer.train()
    return trainer


def probabilities(trainer: BaseTrainer, dataset: Dataset, exclusive: bool) -> np.ndarray:
    """`(n, C)` float64: softmax for exclusive classes, else sigmoid."""
    logits = torch.from_numpy(np.asarray(trainer.predict(dataset).predictions)).double()
    return (logits.softmax(1) if exclusive else logits.sigmoid()).numpy()


__all__ = ["probabilities", "train_classifier"]
