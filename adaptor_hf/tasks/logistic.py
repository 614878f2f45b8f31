"""Logistic regression with an L2 penalty, solved to convergence along a path of penalties."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

logger = logging.getLogger(__name__)

STRENGTHS = tuple(float(f"{10 ** (half / 2):.4g}") for half in range(-12, 9))
"""Inverse penalties, scikit-learn's C: 1e-6 to 1e4 in half decades. The probe's grid, the same for every system."""

TOLERANCE = 1e-6
"""Largest gradient at which the solver stops, in coordinates where the curvature is about 1: a step of that length, in
standard errors of a coefficient, is left."""

ACCEPTED = 1e-3
"""Largest gradient, in the same unit, of a solution that counts as converged."""

_ROUNDS, _STEPS = 40, 50
_NEVER = 30.0


@dataclass
class LinearFit:
    """
    Solution at one penalty. Logits are `features @ weight.T + bias`.

    Args:
        strength (`float`): C: the loss is `C * sum(losses) + sum(weight ** 2) / 2`; the bias has no penalty.
        weight (`torch.Tensor` of shape `(num_logits, D)`), bias (`(num_logits,)`): float64.
        gradient (`float`): What is left of it; see `TOLERANCE`.
    """

    strength: float
    weight: torch.Tensor
    bias: torch.Tensor
    gradient: float


def logistic_path(
    features: torch.Tensor,
    labels: np.ndarray,
    strengths: Sequence[float] = STRENGTHS,
    *,
    num_logits: int,
    device: Any = "cpu",
) -> Iterator[LinearFit]:
    """
    Solutions from the strongest penalty to the weakest; each starts where the one before ended.

    L-BFGS (SciPy's) in the axes of the features' principal components, each coordinate scaled by its curvature. Both
    change the number of steps and not the solution; of more features than rows only the rows' own space is searched,
    outside of which the weights are 0. The problem is convex: no seed, no learning rate, no epoch. A solution that did
    not converge is named in the log.

    Args:
        features (`torch.Tensor` of shape `(n, D)`): Finite.
        labels (`np.ndarray`): `(n,)` integers for exclusive classes (multinomial), else `(n, num_logits)` of 0, 1 and
            NaN for unknown, which counts nowhere (one binary problem a column).
        strengths (`Sequence[float]`): Values of C, in any order.
        num_logits (`int`): Columns, or exclusive classes. A column that lacks one of its classes gets weights 0 and the
            logit of its share; a class that is absent a probability under 1e-12.
        device (defaults to `"cpu"`): Where products are computed; float64.
    """
    mean = features.mean(0, dtype=torch.float64).to(device)
    axes, coordinates = principal_axes(features.to(device, torch.float64) - mean)
    kept, loss, bias = _problem(labels, num_logits, coordinates.device)
    squares = coordinates.square().sum(0)[:, None]
    # The last row is the bias.
    solution = torch.zeros(coordinates.shape[1] + 1, len(kept), dtype=torch.float64, device=coordinates.device)
    solution[-1] = bias[kept]
    for strength in sorted(strengths):
        solution, gradient = _solve(coordinates, squares, loss, strength, solution)
        if gradient > ACCEPTED:
            logger.warning(
                "Logistic regression did not converge at C = %g (gradient %.1g, accepted %g): its value may be off.",
                strength, gradient, ACCEPTED,
            )  # fmt: skip
        weight = torch.zeros(num_logits, features.shape[1], dtype=torch.float64)
        weight[kept] = (axes @ solution[:-1]).T.cpu()
        shift = bias.cpu().clone()
        shift[kept] = solution[-1].cpu()
        yield LinearFit(strength, weight, shift - weight @ mean.cpu(), gradient)


def principal_axes(features: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Orthonormal axes `(D, k)`, k at most min(n, D), that span the rows, and the rows in them, `(n, k)`."""
    basis = None
    if features.shape[0] < features.shape[1]:
        basis = torch.linalg.qr(features.T).Q
        features = features @ basis
    axes = torch.linalg.eigh(features.T @ features).eigenvectors
    return axes if basis is None else basis @ axes, features @ axes


def _problem(labels: np.ndarray, num_logits: int, device: Any) -> tuple[torch.Tensor, Callable, torch.Tensor]:
    """
    The logits that are solved for; a function from their `(n, k)` to the summed loss, its gradient and its second
    derivatives; and the bias `(num_logits,)` of a model without features.
    """
    if labels.ndim == 1:
        counts = np.bincount(labels, minlength=num_logits)
        kept = np.flatnonzero(counts)
        bias = np.log(np.maximum(counts, 1e-300))
        bias -= bias[kept].mean()
        bias[counts == 0] = -_NEVER
        onehot = torch.from_numpy((labels[:, None] == kept).astype(np.float64)).to(device)

        def softmax_loss(logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
            chances = logits.softmax(1)
            return (logits.logsumexp(1) - (onehot * logits).sum(1)).sum(), chances - onehot, chances * (1 - chances)

        return torch.from_numpy(kept), softmax_loss, torch.from_numpy(bias).to(device)
    positives, negatives = (labels == 1).sum(0), (labels == 0).sum(0)
    kept = np.flatnonzero((positives > 0) & (negatives > 0))
    one_class = (positives == 0) | (negatives == 0)
    bias = np.log((positives + 0.5 * one_class) / (negatives + 0.5 * one_class))
    columns = torch.from_numpy(np.ascontiguousarray(labels[:, kept], np.float64)).to(device)
    known = (~columns.isnan()).double()
    targets = columns.nan_to_num()

    def sigmoid_loss(logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        chances = logits.sigmoid()
        losses = torch.nn.functional.softplus(logits) - targets * logits
        return (known * losses).sum(), known * (chances - targets), known * chances * (1 - chances)

    return torch.from_numpy(kept), sigmoid_loss, torch.from_numpy(bias).to(device)


def _solve(
    coordinates: torch.Tensor, squares: torch.Tensor, loss: Callable, strength: float, start: torch.Tensor
) -> tuple[torch.Tensor, float]:
    """The solution `(k + 1, logits)`, and the largest gradient left."""
    from scipy.optimize import minimize

    solution, device = start, coordinates.device
    for _ in range(_ROUNDS):
        _, _, second = loss(coordinates @ solution[:-1] + solution[-1])
        curvature = torch.cat([squares * second.mean(0) + 1 / strength, second.sum(0, keepdim=True)])
        scale = curvature.clamp(min=1e-12).rsqrt()

        def objective(flat: np.ndarray, scale=scale) -> tuple[float, np.ndarray]:
            values = torch.from_numpy(flat).to(device).reshape(scale.shape) * scale
            total, first, _ = loss(coordinates @ values[:-1] + values[-1])
            gradient = torch.cat([coordinates.T @ first + values[:-1] / strength, first.sum(0, keepdim=True)])
            total = total + values[:-1].square().sum() / (2 * strength)
            return total.item(), (gradient * scale).flatten().cpu().numpy()

        # The scale is that of the start: where the curvature has changed on the way, a new one saves steps.
        found = minimize(
            objective, (solution / scale).flatten().cpu().numpy(), jac=True, method="L-BFGS-B",
            options={"maxiter": _STEPS, "maxcor": 20, "gtol": TOLERANCE, "ftol": 0.0},
        )  # fmt: skip
        solution = torch.from_numpy(found.x).to(device).reshape(scale.shape) * scale
        gradient = float(np.abs(found.jac).max())
        if gradient <= TOLERANCE or not found.nit:
            break
    return solution, gradient


__all__ = ["ACCEPTED", "STRENGTHS", "TOLERANCE", "LinearFit", "logistic_path", "principal_axes"]
