"""Training a classifier whose tower trains too, from images."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ..heads_adaptor import AdaptorForImageClassification
from ..training.base_trainer import BaseTrainer, KeepBest, in_memory_arguments
from ..training.grad_cache import check_last_statistics
from ..training.tower_rates import rate_scales
from .head_training import macro_auroc

WEIGHT_DECAY = 0.01

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
    layer_decay: float = 1.0,
    gradient_checkpointing: bool = False,
) -> BaseTrainer:
    """
    Train what has gradients; afterwards the classifier is that of the epoch with the highest macro AUROC on validation.

    Args:
        classifier (`AdaptorForImageClassification`): Changed in place.
        train, validation (`Dataset`): With `image` and `target`.
        collator ([`ImageCollator`]): Makes batches of them.
        exclusive (`bool`): Whether the classes exclude each other.
        learning_rate, epochs, batch_size, seed, device: How.
        layer_decay (`float`, defaults to 1.0): See [`decayed_optimizer`].
        gradient_checkpointing (`bool`): Compute activations of the tower's blocks twice instead of keeping them.

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
        per_device_eval_batch_size=batch_size, num_train_epochs=epochs, weight_decay=WEIGHT_DECAY, warmup_steps=0.1,
        seed=seed, eval_strategy="epoch", label_names=["labels"], include_for_metrics=["loss"],
        gradient_checkpointing=gradient_checkpointing,
    )  # fmt: skip
    check_last_statistics(classifier.train(), len(train), arguments, cure="choose another batch size")
    optimizer = None if layer_decay == 1.0 else decayed_optimizer(classifier, learning_rate, layer_decay)
    trainer = BaseTrainer(
        classifier, arguments, keep_best=KeepBest("score"), quiet=True, data_collator=collator, train_dataset=train,
        eval_dataset=validation, compute_metrics=metrics, optimizers=(optimizer, None),
    )  # fmt: skip
    trainer.train()
    return trainer


def decayed_optimizer(
    classifier: AdaptorForImageClassification, learning_rate: float, layer_decay: float
) -> torch.optim.AdamW:
    """
    AdamW with layer-wise decay of the tower's learning rate, as of BEiT (arXiv 2106.08254): the rate of block k of L is
    `learning_rate * layer_decay ** (L + 1 - k)`, that of what comes before the blocks has k = 0, and what comes after
    them, Adaptor and head, has the whole rate. Parameters of fewer than two dimensions have no weight decay.

    Raises:
        ValueError: the tower has no blocks that are known.
    """
    tower = classifier.adaptor.vision_model
    scales = rate_scales(tower, layer_decay)
    scale_of = {id(value): scales[name] for name, value in tower.named_parameters()}
    groups: dict[tuple[float, float], list[torch.nn.Parameter]] = {}
    for value in classifier.parameters():
        if value.requires_grad:
            decay = WEIGHT_DECAY if value.ndim > 1 else 0.0
            groups.setdefault((learning_rate * scale_of.get(id(value), 1.0), decay), []).append(value)
    return torch.optim.AdamW(
        [{"params": values, "lr": rate, "weight_decay": decay} for (rate, decay), values in groups.items()]
    )


def probabilities(trainer: BaseTrainer, dataset: Dataset, exclusive: bool) -> np.ndarray:
    """`(n, C)` float64: softmax for exclusive classes, else sigmoid."""
    logits = torch.from_numpy(np.asarray(trainer.predict(dataset).predictions)).double()
    return (logits.softmax(1) if exclusive else logits.sigmoid()).numpy()


__all__ = ["decayed_optimizer", "probabilities", "train_classifier"]
