"""Training a head on cached features by gradient: order of rows, optimizer, schedule and evaluation of a protocol."""

from __future__ import annotations

import gc
import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils.data import Dataset

from ..heads_adaptor import ClassificationHead, classification_loss
from ..training.base_trainer import BaseTrainer, KeepBest, in_memory_arguments
from .protocols import ProbeProtocol


class FeatureRows(Dataset):
    """
    Features and labels in memory; `rows[indices]` is a batch.

    Args:
        features (`torch.Tensor` of shape `(n, D)`): float32.
        labels (`torch.Tensor`): `(n,)` int64 for exclusive classes, else `(n, C)` float32.
        known (`np.ndarray`): The same labels, for metrics.
    """

    def __init__(self, features: torch.Tensor, labels: torch.Tensor, known: np.ndarray):
        self.features, self.labels, self.known = features, labels, known

    def __len__(self) -> int:
        return len(self.features)

    def __getitem__(self, rows: torch.Tensor) -> dict[str, torch.Tensor]:
        # index_select: three times as fast as indexing, and the gather is half of a step.
        return {"features": self.features.index_select(0, rows), "labels": self.labels[rows]}


class ShuffledRows:
    """
    Rows of each step, `(B,)` int64; each pass is an epoch, in a new order. A last row alone is left out: batch norm
    cannot take it.

    Args:
        count (`int`), batch_size (`int`): Rows, and rows a step.
        seed (`int`): Of the order.
        device: Where the rows are wanted.
    """

    def __init__(self, count: int, batch_size: int, seed: int, device: Any = "cpu"):
        self.count, self.batch_size, self.device = count, batch_size, device
        self.generator = torch.Generator().manual_seed(seed)

    def __len__(self) -> int:
        return self.count // self.batch_size + (self.count % self.batch_size > 1)

    def __iter__(self) -> Iterator[torch.Tensor]:
        parts = torch.randperm(self.count, generator=self.generator).split(self.batch_size)
        return (part.to(self.device) for part in parts if len(part) > 1)


class OnceAnEpoch:
    """A schedule that Trainer steps after every batch, and that steps another one after every `steps`-th."""

    def __init__(self, schedule: torch.optim.lr_scheduler.LRScheduler, steps: int):
        self.schedule, self.steps, self.calls = schedule, steps, 0

    def step(self) -> None:
        self.calls += 1
        if self.calls % self.steps == 0:
            self.schedule.step()

    def get_last_lr(self) -> list[float]:
        return self.schedule.get_last_lr()


def train_head(
    head: ClassificationHead,
    train: tuple[torch.Tensor, torch.Tensor, np.ndarray],
    validation: tuple[torch.Tensor, torch.Tensor, np.ndarray],
    protocol: ProbeProtocol,
    rate: float,
    seed: int,
) -> KeepBest:
    """
    Train a head; afterwards it is that of its best evaluation on validation.

    Dropout goes on in torch's random state as it is; the states of Python and NumPy are changed.

    Args:
        head (`ClassificationHead`): On the device of the features.
        train, validation: Features `(n, D)`, labels, and the labels as an array.
        protocol ([`ProbeProtocol`]), rate (`float`), seed (`int`): How, and the order of rows.

    Returns:
        [`KeepBest`]: With `score` and `step` of that evaluation.

    Raises:
        FloatingPointError: if the loss on validation is NaN or infinite.
    """
    state = torch.get_rng_state()
    arguments = in_memory_arguments(
        train[0].device, learning_rate=rate, per_device_train_batch_size=protocol.batch_size, seed=seed,
        max_grad_norm=0,
    )  # fmt: skip
    rows = ShuffledRows(len(train[0]), protocol.batch_size, seed, arguments.device)
    arguments.max_steps = protocol.max_steps or protocol.epochs * len(rows)
    arguments.eval_strategy, arguments.eval_steps = "steps", protocol.eval_steps or len(rows)
    # What a plateau is measured by.
    arguments.metric_for_best_model, arguments.greater_is_better = "loss", False
    keep = KeepBest(
        "score",
        tie_break="loss" if protocol.monitor == "auroc" else None,
        patience=protocol.patience,
        min_delta=protocol.min_delta,
    )
    optimizer = _optimizer(head.to(arguments.device), protocol, rate)
    trainer = BaseTrainer(
        head,
        arguments,
        loss_function=lambda model, batch: classification_loss(model(batch["features"]), batch["labels"]),
        evaluators=[lambda model, dataset: _scores(model, dataset, protocol.monitor)],
        batch_sampler=rows,
        keep_best=keep,
        quiet=True,
        train_dataset=_on(arguments.device, train),
        eval_dataset=_on(arguments.device, validation),
        optimizers=(optimizer, _schedule(optimizer, protocol, arguments.max_steps, len(rows))),
    )
    # Trainer has set the seed once more.
    torch.set_rng_state(state)
    with _garbage_left_alone():
        trainer.train()
    return keep


@contextmanager
def _garbage_left_alone() -> Iterator[None]:
    """Trainer collects garbage before it starts, which in a large process takes longer than to train a head."""
    if gc.get_freeze_count():
        yield
        return
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


def _on(device: Any, part: tuple[torch.Tensor, torch.Tensor, np.ndarray]) -> FeatureRows:
    return FeatureRows(part[0].to(device), part[1].to(device), part[2])


def _optimizer(head: nn.Module, protocol: ProbeProtocol, rate: float) -> torch.optim.Optimizer:
    if protocol.optimizer == "sgd":
        return torch.optim.SGD(head.parameters(), rate, momentum=0.9, weight_decay=protocol.weight_decay)
    kind = {"adamw": torch.optim.AdamW, "adam": torch.optim.Adam}[protocol.optimizer]
    return kind(head.parameters(), rate, protocol.betas, weight_decay=protocol.weight_decay)


def _schedule(optimizer: torch.optim.Optimizer, protocol: ProbeProtocol, total: int, steps_an_epoch: int) -> Any:
    schedulers = torch.optim.lr_scheduler
    if protocol.schedule == "cosine_restarts":
        schedule = schedulers.CosineAnnealingWarmRestarts(optimizer, T_0=max(1, int(0.4 * total)), eta_min=1e-8)
        return OnceAnEpoch(schedule, steps_an_epoch)
    if protocol.schedule == "cosine_epochs":
        return OnceAnEpoch(schedulers.CosineAnnealingLR(optimizer, T_max=protocol.epochs), steps_an_epoch)
    if protocol.schedule == "plateau":
        return schedulers.ReduceLROnPlateau(optimizer, factor=0.5, patience=5)
    # Trainer wants one, and its own would take the rate of a warm-up.
    return OnceAnEpoch(schedulers.ConstantLR(optimizer, factor=1.0), steps_an_epoch)


def _scores(head: ClassificationHead, rows: FeatureRows, monitor: str) -> dict[str, float]:
    """`score` that is higher for a better head, and `loss`."""
    logits = head(rows.features)
    loss = classification_loss(logits, rows.labels).item()
    if monitor == "loss":
        score = -loss
    elif head.exclusive and monitor == "metric":
        score = float((logits.cpu().numpy().argmax(1) == rows.known).mean())
    else:
        score = macro_auroc(logits.double().cpu().numpy(), rows.known, rows.known.ndim == 1)
        # With one class alone on validation there is no AUROC: the loss is what is left to choose by.
        score = -loss if math.isnan(score) else score
    return {"score": score, "loss": loss}


def macro_auroc(scores: np.ndarray, labels: np.ndarray, exclusive: bool) -> float:
    """Mean AUROC of the columns that have both classes; NaN if none has."""
    from ..evaluation.weighted import weighted_auroc

    truth = (labels[:, None] == np.arange(scores.shape[1])).astype(np.float32) if exclusive else labels
    areas = []
    for column in range(scores.shape[1]):
        rows = ~np.isnan(truth[:, column])
        if len(np.unique(truth[rows, column])) == 2:
            area = weighted_auroc(scores[rows, column], truth[rows, column] == 1, np.ones((1, rows.sum())))
            areas.append(float(area[0]))
    return float(np.mean(areas)) if areas else math.nan


__all__ = ["FeatureRows", "OnceAnEpoch", "ShuffledRows", "macro_auroc", "train_head"]
