"""Training a segmentation decoder on a frozen tower and Adaptor, with counts in place of maps for its metrics."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ..heads_adaptor import AdaptorForSemanticSegmentation
from ..training.base_trainer import BaseTrainer, KeepBest, in_memory_arguments

if TYPE_CHECKING:
    from datasets import Dataset

    from .segmentation import MaskCollator, SegmentationProtocol


def mask_counts(
    logits: torch.Tensor, labels: torch.Tensor, mean: tuple[np.ndarray, float] | None = None
) -> torch.Tensor:
    """
    `(B, 4)` float64 of the columns of `segmentation_counts`: what metrics need, in place of maps. With the mean
    training mask and its threshold also those of `baseline_counts`.
    """
    logits = (logits[0] if isinstance(logits, tuple) else logits)[:, 0].float()
    predicted, target = logits > 0, labels.reshape(logits.shape) > 0
    counts = [(predicted & target), predicted, target]
    columns = [values.flatten(1).sum(1).double() for values in counts]
    found = torch.stack([*columns, logits.flatten(1).amax(1).double().sigmoid()], dim=1)
    if mean is None:
        return found
    from ..evaluation import baseline_counts

    extra = baseline_counts(logits.sigmoid().cpu().numpy(), target.cpu().numpy(), *mean)
    joined = np.concatenate([values.reshape(len(values), -1) for values in extra.values()], axis=1)
    return torch.cat([found, torch.from_numpy(joined).to(found)], dim=1)


def counts_of(values: np.ndarray) -> dict[str, np.ndarray]:
    """Columns of `mask_counts` by name."""
    from ..evaluation.mask_baselines import EXTRA_COUNTS, MEAN_COUNTS, TURNS
    from ..evaluation.segmentation import COUNTS

    found, start = {}, 0
    for name in COUNTS if values.shape[1] == len(COUNTS) else (*COUNTS, *EXTRA_COUNTS, *MEAN_COUNTS):
        width = len(TURNS) if name.endswith("turned_intersection") else 1
        part = values[:, start] if width == 1 else values[:, start : start + width]
        found[name] = part if name == "score" else part.round().astype(np.int64)
        start += width
    return found


def train_decoder(
    model: AdaptorForSemanticSegmentation,
    train: Dataset,
    validation: Dataset,
    collators: tuple[MaskCollator, MaskCollator],
    protocol: SegmentationProtocol,
    *,
    seed: int,
    epochs: int | None = None,
    device: str = "cpu",
) -> BaseTrainer:
    """Train the decoder; afterwards the model holds its best epoch on validation. Returns the trainer, to predict."""
    from ..evaluation import metrics_of_counts

    def metrics(prediction: Any) -> dict[str, float]:
        return {
            name: value
            for name, value in metrics_of_counts(counts_of(prediction.predictions)).items()
            if not np.isnan(value)
        }

    keep = KeepBest(
        protocol.monitor,
        greater_is_better=protocol.monitor != "loss",
        patience=protocol.patience,
        min_delta=protocol.min_delta,
    )
    epochs = epochs or protocol.epochs
    schedule = {"lr_scheduler_type": "constant"}
    if protocol.cosine_epochs is not None:
        # Half a cycle takes `cosine_epochs`.
        cycles = 0.5 * epochs / protocol.cosine_epochs
        schedule = {"lr_scheduler_type": "cosine", "lr_scheduler_kwargs": {"num_cycles": cycles}}
    arguments = in_memory_arguments(
        device, learning_rate=protocol.learning_rate, weight_decay=protocol.weight_decay,
        per_device_train_batch_size=protocol.batch_size, per_device_eval_batch_size=protocol.batch_size,
        num_train_epochs=epochs, **schedule, max_grad_norm=0, seed=seed, eval_strategy="epoch", label_names=["labels"],
    )  # fmt: skip
    trainer = BaseTrainer(
        model, arguments, keep_best=keep, quiet=True, eval_collator=collators[1], data_collator=collators[0],
        train_dataset=train, eval_dataset=validation, compute_metrics=metrics,
        preprocess_logits_for_metrics=mask_counts,
    )  # fmt: skip
    trainer.train()
    return trainer


__all__ = ["counts_of", "mask_counts", "train_decoder"]
