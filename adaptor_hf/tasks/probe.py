"""Training a head on cached features; penalty, or epoch and learning rate, are chosen on validation."""

from __future__ import annotations

import copy
import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import nn

from ..heads_adaptor import ClassificationHead
from ..training.base_trainer import global_random_state_kept
from .head_training import macro_auroc, train_head
from .logistic import logistic_path
from .protocols import ProbeProtocol
from .selection import choose_on_validation

logger = logging.getLogger(__name__)


@dataclass
class Probe:
    """
    A trained head.

    Args:
        head (`nn.Module`): In evaluation mode, on the CPU; float64 where it is a logistic regression, else float32.
        mean, scale (`torch.Tensor` of shape `(D,)`): The head reads `(features - mean) / scale`. The scale of a feature
            that is constant on the training rows is infinite: it says nothing, whatever it is elsewhere.
        learning_rate (`float`, *optional*), step (`int`, *optional*): What validation chose, of a head that is trained
            by gradient.
        score (`float`): The value on validation there (higher is better; the negative loss where that is monitored).
        strength (`float`, *optional*): C of the logistic regression that validation chose.
    """

    head: nn.Module
    mean: torch.Tensor
    scale: torch.Tensor
    learning_rate: float | None
    step: int | None
    score: float
    strength: float | None = None

    @property
    def num_parameters(self) -> int:
        return sum(parameter.numel() for parameter in self.head.parameters())

    @torch.no_grad()
    def predict(self, features: torch.Tensor) -> np.ndarray:
        """Probabilities, `(n, C)` float64: softmax for exclusive classes (`head.exclusive`), else sigmoid."""
        logits = self.head((features.to(self.mean.dtype) - self.mean) / self.scale).double()
        return (logits.softmax(1) if self.head.exclusive else logits.sigmoid()).numpy()


def has_seed(protocol: ProbeProtocol, hidden_size: int | None = None) -> bool:
    """Whether a head depends on the seed beyond its training rows: a logistic regression does not."""
    return protocol.strengths is None or (hidden_size or protocol.hidden_size) is not None


def fit_probe(
    features: torch.Tensor,
    labels: np.ndarray,
    validation_features: torch.Tensor,
    validation_labels: np.ndarray,
    protocol: ProbeProtocol,
    *,
    num_logits: int,
    exclusive: bool,
    seed: int,
    hidden_size: int | None = None,
    device: Any = "cpu",
    class_names: Sequence[str] | None = None,
) -> Probe:
    """
    Train a head with each penalty or learning rate of the protocol and keep the one that is best on validation.

    A linear head of a protocol with `strengths` is a logistic regression solved to convergence; every other head is
    trained by gradient.

    Args:
        features, validation_features (`torch.Tensor` of shape `(n, D)`): float32.
        labels, validation_labels (`np.ndarray`): `(n,)` int64 for exclusive classes, else `(n, C)` float32.
        protocol ([`ProbeProtocol`]): How.
        num_logits (`int`): C, or the number of exclusive classes.
        exclusive (`bool`): Whether the classes exclude each other.
        seed (`int`): Of initial weights, dropout and order; a logistic regression has none of them.
        hidden_size (`int`, *optional*): Of the head's hidden layer, instead of the protocol's.
        device (defaults to `"cpu"`): Where to train.
        class_names (`Sequence[str]`, *optional*): For messages.

    Raises:
        ValueError: labels of the training rows that tell nothing apart, or features that are not finite.
    """
    check_labels(labels, num_logits, exclusive, class_names)
    if not (torch.isfinite(features).all() and torch.isfinite(validation_features).all()):
        raise ValueError("A feature is NaN or infinite. Build the cache again, or check the Adaptor's weights.")
    by_gradient = has_seed(protocol, hidden_size)
    if not by_gradient:
        features, validation_features = features.double(), validation_features.double()
    mean, scale = torch.zeros_like(features[0]), torch.ones_like(features[0])
    if protocol.standardize:
        mean, scale = standardization(features)
    train = _on(device, (features - mean) / scale, labels)
    validation = _on(device, (validation_features - mean) / scale, validation_labels)
    if by_gradient:
        best = _best_rate(train, validation, protocol, num_logits, exclusive, seed, hidden_size)
    else:
        best = _best_strength(train, validation, protocol, num_logits, exclusive)
    return replace(best, head=best.head.cpu().eval(), mean=mean, scale=scale)


def standardization(features: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and deviation of each feature, `(D,)`; infinity in place of a deviation that is only rounding."""
    mean, deviation = features.mean(0), features.std(0, correction=0)
    # A feature that never changes says nothing, and must not be divided by rounding errors.
    rounding = 1e-6 * torch.maximum(deviation.max(), mean.abs()).clamp(min=1e-12)
    return mean, torch.where(deviation > rounding, deviation, torch.inf)


def _best_strength(train: tuple, validation: tuple, protocol: ProbeProtocol, num_logits: int, exclusive: bool) -> Probe:
    """One C for all labels, as of `choose_on_validation`."""
    features, _, known = validation
    fits = logistic_path(train[0], train[2], protocol.strengths, num_logits=num_logits, device=train[0].device)
    features = features.cpu()
    best, score = choose_on_validation(fits, lambda fit: features @ fit.weight.T + fit.bias, known)
    if best.strength in (min(protocol.strengths), max(protocol.strengths)):
        logger.warning(
            "Validation chose C = %g, an end of the grid (%g to %g): with few validation rows that may be chance, else "
            "a better one lies outside.", best.strength, min(protocol.strengths), max(protocol.strengths),
        )  # fmt: skip
    head = ClassificationHead(train[0].shape[1], num_logits, None, protocol.dropout).double()
    head.exclusive = exclusive
    with torch.no_grad():
        head[-1].weight.copy_(best.weight)
        head[-1].bias.copy_(best.bias)
    return Probe(head, None, None, None, None, score, best.strength)


def _best_rate(
    train: tuple,
    validation: tuple,
    protocol: ProbeProtocol,
    num_logits: int,
    exclusive: bool,
    seed: int,
    hidden_size: int | None,
) -> Probe:
    best, best_reached = None, None
    width, device = train[0].shape[1], train[0].device
    for rate in protocol.learning_rates:
        with global_random_state_kept():
            torch.manual_seed(seed)
            head = ClassificationHead(width, num_logits, hidden_size or protocol.hidden_size, protocol.dropout)
            head.exclusive = exclusive
            if protocol.weight_std is not None:
                nn.init.normal_(head[-1].weight, std=protocol.weight_std)
                nn.init.zeros_(head[-1].bias)
            keep = train_head(head.to(device), train, validation, protocol, rate, seed)
        if best is None or keep.best > best_reached:
            best, best_reached = Probe(head, None, None, rate, keep.step, keep.score), keep.best
    return best


def check_labels(
    labels: np.ndarray, num_logits: int, exclusive: bool, class_names: Sequence[str] | None = None
) -> None:
    """
    Whether training rows can teach anything; classes that are missing are named in the log.

    Raises:
        ValueError: no column of labels has both a positive and a negative, or all rows are of one class.
    """
    names = list(class_names or [f"number {number}" for number in range(num_logits)])
    if exclusive:
        present = np.unique(labels)
        if len(present) < 2:
            raise ValueError(
                f"All {len(labels)} training rows are of class {', '.join(names[code] for code in present)}: nothing "
                "to tell apart. Use a larger fraction or another seed."
            )
        if len(present) < num_logits:
            missing = [name for code, name in enumerate(names) if code not in present]
            logger.warning("No training row is of class %s: it will not be predicted.", ", ".join(missing))
        return
    both = (labels == 1).any(0) & (labels == 0).any(0)
    if not both.any():
        raise ValueError(
            f"No label has both a positive and a negative among {len(labels)} training rows: nothing to learn. Use a "
            "larger fraction or another seed."
        )
    if not both.all():
        missing = ", ".join(names[column] for column in np.flatnonzero(~both))
        logger.warning("Only one class among the training rows, nothing is learned: %s.", missing)


def fold_standardization(probe: Probe) -> nn.Module:
    """A head that reads the features as they are and gives what the probe gives: for a checkpoint."""
    head = copy.deepcopy(probe.head)
    first = next(layer for layer in head if isinstance(layer, nn.Linear))
    with torch.no_grad():
        first.weight.div_(probe.scale)
        shift = first.weight @ probe.mean
        if first.bias is not None:
            first.bias.sub_(shift)
        else:
            # The layer has no bias, the batch norm behind it has.
            norm = next(layer for layer in head if isinstance(layer, nn.BatchNorm1d))
            norm.running_mean.add_(shift)
    return head


def _on(device: Any, features: torch.Tensor, labels: np.ndarray) -> tuple[torch.Tensor, torch.Tensor, np.ndarray]:
    return features.to(device), torch.from_numpy(np.ascontiguousarray(labels)).to(device), labels


__all__ = [
    "Probe",
    "check_labels",
    "fit_probe",
    "fold_standardization",
    "has_seed",
    "macro_auroc",
    "standardization",
]
