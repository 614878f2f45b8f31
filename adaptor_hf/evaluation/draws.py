"""Metrics of bootstrap resamples, at the share of positives of the rows themselves."""

from collections.abc import Callable, Iterable, Mapping

import numpy as np

from .intervals import IntervalMethod


def gather_draws(
    values: Callable[[np.ndarray], Mapping[str, np.ndarray]],
    blocks: Iterable[np.ndarray],
    methods: Mapping[str, IntervalMethod],
) -> dict[str, np.ndarray]:
    """
    A metric of each resample, `(B,)`, by name.

    Resamples also differ in their share of positives, which average precision and F1 follow. Their interval is for the
    share at hand, so what the drawn log odds explain is taken out ([`without`]).

    Args:
        values (`Callable`): From weights `(b, N)` to metrics `(b,)` by name.
        blocks (`Iterable[np.ndarray]`): Weights `(b, N)` of each row.
        methods (`Mapping[str, IntervalMethod]`): By metric.
    """
    given = {name: method for name, method in methods.items() if method.kind in ("ap", "ratio")}
    masks = np.array([rows for method in given.values() for rows in (method.rows, method.others)], dtype=np.float64)
    parts, sizes = [], []
    for weights in blocks:
        parts.append(values(weights))
        if given:
            sizes.append(weights @ masks.T)
    draws = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    if given:
        with np.errstate(divide="ignore"):
            logs = np.log(np.concatenate(sizes))
        for column, name in enumerate(given):
            with np.errstate(invalid="ignore"):
                odds = logs[:, 2 * column] - logs[:, 2 * column + 1]
            draws[name] = regression_residuals(draws[name][:, None], odds)[:, 0]
        for name, method in methods.items():
            if given.keys() & set(method.parts):
                draws[name] = np.mean([draws[part] for part in method.parts], axis=0)
    return draws


def regression_residuals(draws: np.ndarray, cause: np.ndarray) -> np.ndarray:
    """Draws `(B, S)` less their linear regression on a cause `(B,)`; NaN where either is not finite."""
    known = np.isfinite(cause) & np.isfinite(draws).all(1)
    found = np.full(draws.shape, np.nan)
    if known.any():
        centred = cause[known] - cause[known].mean()
        size = centred @ centred
        slopes = centred @ draws[known] / size if size > 0 else np.zeros(draws.shape[1])
        found[known] = draws[known] - centred[:, None] * slopes
    return found


__all__ = ["gather_draws", "regression_residuals"]
