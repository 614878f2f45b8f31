"""Formulas of intervals, of many test sets at once: values and their variance over patients in, ends out."""

from collections.abc import Sequence

import numpy as np

PRIORS = {"area": 12.0, "ap": 2.0, "ratio": 0.25, "share": 2.0, "mean": 2.0}
"""Patients that the assumed variance weighs as many as, beside the observed one; chosen by simulation."""

WITHIN = 0.75
"""Correlation of a patient's images in the assumed variance."""


def interval_ends(
    kind: str,
    value: np.ndarray,
    variance: np.ndarray,
    patients: Sequence[int],
    rows: int,
    level: float = 0.95,
) -> tuple[np.ndarray, np.ndarray]:
    """
    The formulas, of many test sets of one size at once.

    Args:
        kind (`str`): As of [`IntervalMethod`]; no average.
        value, variance (`np.ndarray` of shape `(S,)`): In [0, 1], and over patients.
        patients (`Sequence[int]`): In the denominator; of `area` positive and negative ones.
        rows (`int`): Images of them all.
        level (`float`, defaults to 0.95): Coverage.
    """
    from scipy.special import expit, logit, ndtri

    tail, smaller, prior = (1 + level) / 2, min(patients), PRIORS[kind]
    if kind == "mean":
        # Among many patients a few values of 0 do not go unseen.
        prior = min(prior, 30 / smaller)
    value = np.clip(value, 0.0, 1.0)
    inside = np.clip(value, 0.25 / smaller, 1 - 0.25 / smaller)
    spread = inside * (1 - inside)
    # That of one image a patient, or of the mean of several.
    assumed = hanley_mcneil(inside, *patients) if kind == "area" else spread / smaller
    assumed = assumed * (WITHIN + (1 - WITHIN) * sum(patients) / rows)
    pooled = np.where(variance > 0, (smaller * variance + prior * assumed) / (smaller + prior), assumed)
    pooled = np.where((value > 0) & (value < 1), pooled, assumed)
    if kind in ("area", "ap"):
        half = ndtri(tail) * np.sqrt(pooled) / spread
        low, high = expit(logit(inside) - half), expit(logit(inside) + half)
        return np.where(value > 0, low, 0.0), np.where(value < 1, high, 1.0)
    number = np.minimum(spread / pooled, rows) if kind == "share" else spread / pooled
    if kind == "share" and rows == smaller:
        number = rows
    return _wilson(value, number, ndtri(tail))


def _wilson(value: np.ndarray, number: np.ndarray, quantile: float) -> tuple[np.ndarray, np.ndarray]:
    square = quantile**2 / number
    centre = value + square / 2
    half = np.sqrt(square * (value * (1 - value) + square / 4))
    return np.maximum(0.0, (centre - half) / (1 + square)), np.minimum(1.0, (centre + half) / (1 + square))


def hanley_mcneil(area: np.ndarray, positives: int, negatives: int) -> np.ndarray:
    """Variance of an AUROC of so many independent positives and negatives with exponential scores (Radiology 1982)."""
    both_positive, both_negative = area / (2 - area), 2 * area**2 / (1 + area)
    more = (positives - 1) * (both_positive - area**2) + (negatives - 1) * (both_negative - area**2)
    return np.maximum(0.0, (area * (1 - area) + more) / (positives * negatives))


def combine(one: np.ndarray, other: np.ndarray, correlation: np.ndarray) -> np.ndarray:
    """MOVER: distance from a difference to its end, from those of both sides (Zou and Donner 2008)."""
    return np.sqrt(np.maximum(0.0, one**2 + other**2 - 2 * correlation * one * other))


__all__ = ["PRIORS", "WITHIN", "combine", "hanley_mcneil", "interval_ends"]
