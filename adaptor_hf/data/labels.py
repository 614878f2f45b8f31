"""Policies for labels that a report leaves blank or uncertain, applied by name after loading."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import pandas as pd

CHEXPERT_LABELS = (
    "No Finding",
    "Enlarged Cardiomediastinum",
    "Cardiomegaly",
    "Lung Opacity",
    "Lung Lesion",
    "Edema",
    "Consolidation",
    "Pneumonia",
    "Atelectasis",
    "Pneumothorax",
    "Pleural Effusion",
    "Pleural Other",
    "Fracture",
    "Support Devices",
)
"""The 14 labels of the CheXpert labeller, in the order of CheXpert's tables."""

COMPETITION_LABELS = ("Atelectasis", "Cardiomegaly", "Consolidation", "Edema", "Pleural Effusion")
"""The five labels of the CheXpert competition."""

UNCERTAIN_MGCA = {
    "Atelectasis": 1.0,
    "Edema": 1.0,
    "Pleural Effusion": 1.0,
    "Cardiomegaly": 0.0,
    "Consolidation": 0.0,
}
"""What MGCA and GLoRIA make of -1 (CHEXPERT_UNCERTAIN_MAPPINGS)."""

LABEL_POLICIES = {
    "raw": "1 positive, 0 negative, -1 uncertain, NaN not mentioned: as in the table.",
    "mgca": "Blank is 0; -1 is 1 for Atelectasis, Edema and Pleural Effusion, 0 for Cardiomegaly and Consolidation, "
    "and unknown (NaN) for other labels, which MGCA and GLoRIA do not train on.",
    "ones": "Blank is 0, -1 is 1 (CheXpert's U-Ones; LoVT's U_pos).",
    "zeros": "Blank is 0, -1 is 0 (CheXpert's U-Zeros).",
    "ignore": "Blank is 0, -1 is unknown (NaN; CheXpert's U-Ignore).",
    "trx": "Blank and -1 are unknown (NaN), but all findings are 0 where No Finding is 1 (torchxrayvision).",
}
"""Name of each policy and what it does."""


def apply_policy(labels: pd.DataFrame, policy: str) -> pd.DataFrame:
    """
    Labels under a policy of `LABEL_POLICIES`; the frame given is not changed.

    Args:
        labels: A float column a label, values 1, 0, -1 (uncertain) or NaN (not mentioned).

    Raises:
        ValueError: No such policy, or a value that is none of the four.
    """
    if policy not in LABEL_POLICIES:
        raise ValueError(f"Unknown label policy {policy!r}. Choose one of: {', '.join(LABEL_POLICIES)}.")
    strange = labels.notna() & ~labels.isin([1.0, 0.0, -1.0])
    if strange.to_numpy().any():
        name = strange.columns[strange.any()][0]
        value = labels.loc[strange[name], name].iloc[0]
        raise ValueError(f"The label {name!r} has the value {value:g}, expected 1, 0, -1 or nothing.")
    if policy == "raw":
        return labels
    if policy == "trx":
        known = labels.where(labels >= 0)
        if "No Finding" in labels:
            healthy = labels["No Finding"] == 1
            findings = [name for name in labels if name not in ("No Finding", "Support Devices")]
            known.loc[healthy, findings] = known.loc[healthy, findings].fillna(0.0)
        return known
    uncertain = labels == -1
    filled = labels.fillna(0.0)
    if policy == "mgca":
        for name in labels:
            filled.loc[uncertain[name], name] = UNCERTAIN_MGCA.get(name, np.nan)
        return filled
    return filled.mask(uncertain, {"ones": 1.0, "zeros": 0.0, "ignore": np.nan}[policy])


def label_strata(labels: pd.DataFrame) -> pd.Series:
    """Name of each row's rarest positive label, "" where none is: what fractions are stratified by."""
    import pandas as pd

    positive = labels.to_numpy() == 1
    counts = np.where(positive, positive.sum(axis=0), np.iinfo(np.int64).max)
    names = np.array([*labels.columns, ""], dtype=object)
    rarest = np.where(positive.any(axis=1), counts.argmin(axis=1), len(labels.columns))
    return pd.Series(names[rarest], index=labels.index, dtype=object)


__all__ = [
    "CHEXPERT_LABELS",
    "COMPETITION_LABELS",
    "LABEL_POLICIES",
    "UNCERTAIN_MGCA",
    "apply_policy",
    "label_strata",
]
