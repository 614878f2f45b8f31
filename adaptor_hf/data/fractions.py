"""Shares of the training rows: our nested rule, and those of the reference codes by name."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from .stratified import nested_fraction, patient_groups

if TYPE_CHECKING:
    import pandas as pd

FRACTION_RULES = {
    "nested": "Whole patients, stratified; 1 % lies inside 10 %; depends on `seed`.",
    "mgca": "round(fraction * rows) rows by pandas' sample with random state 42, whatever `seed` is (MGCA's and "
    "Adaptor's classification).",
    "mgca_detection": "int(fraction * rows) rows by numpy's choice without replacement (MGCA's detection and RSNA "
    "segmentation). Theirs draws from the global generator, so their rows depend on the order of imports: ours starts "
    "at 42, with the same number of rows.",
    "mgca_balanced": "All positive rows and as many negative ones, then int(fraction * rows) of them (MGCA's SIIM "
    "segmentation; generator as for mgca_detection).",
    "gloria": "round(fraction * rows) rows by pandas' sample. Theirs has no seed and samples before lateral views are "
    "dropped; ours takes `seed` and samples after.",
    "lovt": "The first round(fraction * rows) rows, in the order of the table.",
}
"""Name of each rule and what it does."""


def fraction_mask(rows: pd.DataFrame, strata: pd.Series, fraction: float, rule: str, seed: int) -> np.ndarray:
    """
    Which training rows a fraction keeps.

    Args:
        rows: Training rows in the order of the tables, with `patient_id`, `study_id`, `image_id` where known.
        strata: Stratum of each row, text; for "mgca_balanced" the row's class, "" or "negative" for negative rows.
        fraction: Share in (0, 1]; 1 keeps every row, except under "mgca_balanced", which first drops negative rows.

    Returns:
        (n,) bool.

    Raises:
        ValueError: An impossible fraction, an unknown rule, a fraction that keeps no row, or "mgca_balanced" on rows
            without positive and negative ones.
    """
    if not 0 < fraction <= 1:
        raise ValueError(f"fraction is a share of the training rows in (0, 1], got {fraction}. For 10 % pass 0.1.")
    if rule not in FRACTION_RULES:
        raise ValueError(f"Unknown fraction rule {rule!r}. Choose one of: {', '.join(FRACTION_RULES)}.")
    count = len(rows)
    kept = np.zeros(count, bool)
    if rule == "mgca_balanced":
        generator = np.random.RandomState(42)
        pool = _balanced(strata, generator)
        kept[generator.choice(pool, int(len(pool) * fraction), replace=False)] = True
    elif fraction == 1:
        kept[:] = True
    elif rule == "nested":
        kept = nested_fraction(patient_groups(rows), strata, fraction, seed).to_numpy()
    elif rule == "lovt":
        kept[: round(fraction * count)] = True
    elif rule == "mgca_detection":
        kept[np.random.RandomState(42).choice(count, int(fraction * count), replace=False)] = True
    else:
        import pandas as pd

        state = 42 if rule == "mgca" else seed
        kept[pd.Series(range(count)).sample(frac=fraction, random_state=state).to_numpy()] = True
    if not kept.any():
        raise ValueError(f"A fraction of {fraction:g} of {count} training rows is no row under the rule {rule!r}.")
    return kept


def _balanced(strata: pd.Series, generator: np.random.RandomState) -> np.ndarray:
    """Places of all positive rows and of as many negative ones."""
    negative = strata.isin(["", "negative"]).to_numpy()
    positives, negatives = np.flatnonzero(~negative), np.flatnonzero(negative)
    if not len(positives) or not len(negatives):
        raise ValueError(
            f"The rule 'mgca_balanced' needs positive and negative training rows, found {len(positives)} and "
            f"{len(negatives)}."
        )
    chosen = generator.choice(negatives, min(len(positives), len(negatives)), replace=False)
    return np.concatenate([positives, chosen])


__all__ = ["FRACTION_RULES", "fraction_mask"]
