"""Patients shared out evenly over strata: nested fractions of a split."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .ids import canonical_id
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
            ids = rows[f"{kind}_id"].map(lambda value: canonical_id(value) if isinstance(value, str) else value)
            groups = groups.where(groups.notna(), (f"{kind}:" + ids.astype(object)).where(ids.notna(), None))
    if groups.isna().any():
        groups = groups.where(groups.notna(), "row:" + pd.Series(rows.index.astype(str), index=rows.index))
    return groups


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


__all__ = ["nested_fraction", "patient_groups"]
