"""Which penalty of a logistic path: the best ranking on validation as far as it can tell, and there the lowest loss."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import TypeVar

import numpy as np
import torch

from ..heads_adaptor import classification_loss

T = TypeVar("T")

PATIENCE = 6
"""Values of C in a row, three decades of the grid, that may be no better on validation before the path ends."""

TOLERANCE = 1.0
"""
Standard errors of a difference in AUROC up to which two values of C count as equal (the one-standard-error rule). Less
would not do: a single pair of rows in another order is a difference of 0.7 standard errors.
"""


def choose_on_validation(
    fits: Iterable[T], logits_of: Callable[[T], torch.Tensor], labels: np.ndarray
) -> tuple[T, float]:
    """
    The fit with the lowest validation loss among those whose macro AUROC is not lower than the best one by more than
    `TOLERANCE` standard errors of their paired difference. AUROC alone would choose by a few pairs of rows, even where
    the penalty is so strong that it changes the ranking no more and shrinks the probabilities to the prevalence.

    Args:
        fits (`Iterable`): From the strongest penalty on. The rest is not asked for once `PATIENCE` fits in a row have
            not changed the choice: beyond, a head only fits its training rows more.
        logits_of (`Callable`): Logits of the validation rows by a fit, `(n, C)`.
        labels (`np.ndarray`): `(n,)` int64 for exclusive classes, else `(n, C)` float32 of 0, 1 and NaN.

    Returns:
        The fit, and its macro AUROC (the negative loss where no label has both classes on validation).
    """
    seen, losses, areas, influences = [], [], [], []
    chosen, waited = 0, 0
    targets, exclusive = torch.from_numpy(np.ascontiguousarray(labels)), labels.ndim == 1
    for fit in fits:
        logits = logits_of(fit)
        area, influence = auroc_and_influence(logits.double().numpy(), labels, exclusive)
        for values, value in zip(
            (seen, losses, areas, influences),
            (fit, classification_loss(logits, targets).item(), area, influence),
            strict=True,
        ):
            values.append(value)
        before, chosen = chosen, _choice(losses, areas, influences)
        waited = 0 if chosen != before else waited + 1
        if waited >= PATIENCE:
            break
    return seen[chosen], -losses[chosen] if math.isnan(areas[chosen]) else areas[chosen]


def _choice(losses: list[float], areas: list[float], influences: list[np.ndarray]) -> int:
    if math.isnan(areas[0]):
        return int(np.argmin(losses))
    best = int(np.argmax(areas))
    differences = influences[best] - np.stack(influences)
    errors = np.sqrt((differences**2).sum(1))
    equal = np.flatnonzero(areas[best] - np.array(areas) <= TOLERANCE * errors)
    return int(min(equal, key=lambda number: losses[number]))


def auroc_and_influence(scores: np.ndarray, labels: np.ndarray, exclusive: bool) -> tuple[float, np.ndarray]:
    """
    Macro AUROC, and what each row adds to it, `(n,)`: the root of the sum of squares is the standard error (the
    infinitesimal jackknife: DeLong et al. 1988 but for m / (m - 1)), and that of the difference of two is the standard
    error of the paired difference. NaN and zeros where no
    column has both classes.

    Args:
        scores (`np.ndarray` of shape `(n, C)`): Higher for a likelier class.
        labels (`np.ndarray`), exclusive (`bool`): As in [`choose_on_validation`].
    """
    from scipy.stats import rankdata

    truth = (labels[:, None] == np.arange(scores.shape[1])).astype(np.float32) if exclusive else labels
    areas, influence = [], np.zeros(len(scores))
    for column, values in zip(truth.T, scores.T, strict=True):
        positive, negative = np.flatnonzero(column == 1), np.flatnonzero(column == 0)
        if not (len(positive) and len(negative)):
            continue
        known = np.concatenate([positive, negative])
        ranks = rankdata(values[known])
        above = (ranks[: len(positive)] - rankdata(values[positive])) / len(negative)
        below = 1 - (ranks[len(positive) :] - rankdata(values[negative])) / len(positive)
        area = float(above.mean())
        areas.append(area)
        influence[positive] += (above - area) / len(positive)
        influence[negative] += (below - area) / len(negative)
    return (float(np.mean(areas)), influence / len(areas)) if areas else (math.nan, influence)


__all__ = ["PATIENCE", "TOLERANCE", "auroc_and_influence", "choose_on_validation"]
