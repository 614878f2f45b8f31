"""Patients shared out evenly over strata: to splits, and to nested fractions of a split."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from .splits import uniform

if TYPE_CHECKING:
    import pandas as pd


def patient_groups(rows: pd.DataFrame) -> pd.Series:
    """What may not be torn apart, a name a row: the patient, else the study, else the image."""
    import pandas as pd

    groups = pd.Series(None, index=rows.index, dtype=object)
    for kind in ("patient", "study", "image"):
        # The kind is part of the name: patient 7 and study 7 are not one group.
        if f"{kind}_id" in rows:
            ids = rows[f"{kind}_id"]
            groups = groups.where(groups.notna(), (f"{kind}:" + ids.astype(object)).where(ids.notna(), None))
    if groups.isna().any():
        groups = groups.where(groups.notna(), "row:" + pd.Series(rows.index.astype(str), index=rows.index))
    return groups


def split_by_patient(
    groups: pd.Series, strata: pd.Series, *, validation_fraction: float, test_fraction: float, seed: int
) -> pd.Series:
    """
    A split for each row: whole groups, of each stratum its share to within one group.

    A group with rows of several strata counts for the one that the fewest groups have. Which groups go where follows
    from a hash of their names and the seed: the order of the rows and the machine do not matter. The totals are
    `round(share * groups)`; train gets a group first, validation second, test third.

    Args:
        groups: Group of each row, see `patient_groups`.
        strata: Stratum of each row, text.
        validation_fraction, test_fraction: Shares of groups in [0, 1), together under 1.

    Returns:
        Series of "train", "validation" and "test" with the index of `groups`.

    Raises:
        ValueError: Impossible shares.
    """
    if not (0 <= validation_fraction < 1 and 0 <= test_fraction < 1 and validation_fraction + test_fraction < 1):
        raise ValueError(
            "validation_fraction and test_fraction are shares of patients in [0, 1) with a sum under 1, got "
            f"{validation_fraction} and {test_fraction}."
        )
    order = _ordered_groups(groups, strata, "stratified split", seed)
    names, total = order["group"].to_numpy(), len(order)
    wanted = {"validation": validation_fraction, "test": test_fraction}
    counts = {name: round(share * total) for name, share in wanted.items()}
    spare = total - 1
    for name, share in wanted.items():
        if share > 0:
            counts[name] = min(max(counts[name], 1), spare)
            spare -= counts[name]
    split = np.full(total, "train", dtype=object)
    for name in ("test", "validation"):
        free = np.flatnonzero(split == "train")
        split[free[_evenly(len(free), counts[name], uniform("offset", seed, name))]] = name
    return groups.map(dict(zip(names, split, strict=True)))


def nested_fraction(groups: pd.Series, strata: pd.Series, fraction: float, seed: int) -> pd.Series:
    """
    Mask of the rows of `round(fraction * groups)` whole groups (at least one), of each stratum its share.

    Nested: with one seed the rows of 1 % are among those of 10 %.
    """
    order = _ordered_groups(groups, strata, "stratified fraction", seed)
    size = order.groupby("stratum")["group"].transform("size")
    offset = order["stratum"].map({name: uniform("offset", seed, name) for name in order["stratum"].unique()})
    # One fixed order of all groups, in which each stratum is spread evenly, makes every share nested.
    place = (order.groupby("stratum").cumcount() + offset) / size
    ranked = order.assign(place=place).sort_values(["place", "uniform", "group"])
    return groups.isin(set(ranked["group"].iloc[: max(1, round(fraction * len(ranked)))]))


def _ordered_groups(groups: pd.Series, strata: pd.Series, purpose: str, seed: int) -> pd.DataFrame:
    """A row a group with `group`, `stratum`, `uniform`, in an order that depends on names and seed alone."""
    import pandas as pd

    pairs = pd.DataFrame({"group": groups.to_numpy(), "stratum": strata.to_numpy()}).drop_duplicates()
    pairs["groups"] = pairs.groupby("stratum")["group"].transform("size")
    pairs = pairs.sort_values(["groups", "stratum"]).drop_duplicates("group")
    pairs["uniform"] = [uniform(purpose, seed, group) for group in pairs["group"]]
    return pairs.sort_values(["stratum", "uniform", "group"], ignore_index=True)


def _evenly(total: int, count: int, offset: float) -> np.ndarray:
    """Mask of `count` of `total` places, evenly spaced."""
    if not count:
        return np.zeros(total, bool)
    steps = [math.floor(place * count / total + offset) for place in range(total + 1)]
    return np.diff(steps) > 0


__all__ = ["nested_fraction", "patient_groups", "split_by_patient"]
