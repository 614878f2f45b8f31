"""The real sample as tables: pairs for pre-training and one table a readout, with paths relative to the sample."""

import json
import os
import sys
from pathlib import Path

import datasets
import pandas as pd

from adaptor_hf.data.split_rule import SplitRule
from adaptor_hf.data.tables import load_pairs
from adaptor_hf.tasks.data import load_table, split_table

ALIAS = ["validation=test"]


def sample_root() -> Path:
    """
    Folder of the real sample, from `ADAPTOR_REALBENCH`.

    Raises:
        SystemExit: it is not set, or has no metadata.csv.
    """
    root = Path(os.environ.get("ADAPTOR_REALBENCH", ""))
    if not os.environ.get("ADAPTOR_REALBENCH") or not (root / "metadata.csv").is_file():
        sys.exit("Set ADAPTOR_REALBENCH to the folder of the real sample (metadata.csv, images, masks).")
    return root


def pairs_table(protocol: dict) -> datasets.Dataset:
    """Pairs with a split on every row: the sample's `val` is `test`, validation comes from the training patients."""
    from adaptor_hf.data.splits import rename_splits, split_training_rows

    source = sample_root() / "metadata.csv"
    pairs = rename_splits(load_pairs(source, filters=[f"dataset={protocol['pretraining']['pairs']}"]), ALIAS)
    return split_training_rows(pairs, protocol["data"]["validation_fraction"], protocol["data"]["split_seed"])


def readout_rows(readout: dict) -> pd.DataFrame:
    """Rows of the sample that a readout uses, with a column `label` of 0 and 1 (none for masks)."""
    rows = pd.read_csv(sample_root() / "metadata.csv", dtype=str)
    rows = rows[rows["dataset"] == readout["dataset"]]
    labels = rows["labels"].map(json.loads)
    if "site" in readout:
        keep = labels.map(lambda values: values.get("site") == readout["site"])
        rows, labels = rows[keep], labels[keep]
    if "label" in readout:
        return rows.assign(label=labels.map(lambda values: values[readout["label"]]).astype(int))
    if "positive" in readout:
        rows = rows[rows["view"].isin([*readout["positive"], *readout["negative"]])]
        return rows.assign(label=rows["view"].isin(readout["positive"]).astype(int))
    return rows[rows["mask"].notna()]


def readout_parts(name: str, readout: dict, protocol: dict, folder: Path) -> tuple[dict[str, datasets.Dataset], str]:
    """Train, validation and test rows of a readout, and the hash of their split."""
    rows = readout_rows(readout)
    folder.mkdir(parents=True, exist_ok=True)
    table = folder / f"{name}.csv"
    columns = ["image", "patient_id", "split"]
    rows[[*columns, "label" if "label" in rows else "mask"]].to_csv(table, index=False)
    loaded = load_table(
        table,
        label_columns=["label"] if "label" in rows else [],
        mask_column=None if "label" in rows else "mask",
        image_root=sample_root(),
        patient_column="patient_id",
        split_column="split",
    )
    data = protocol["data"]
    rule = SplitRule(seed=data["split_seed"], validation_fraction=data["validation_fraction"], test_fraction=0.2)
    return split_table(loaded, rule, split_alias=ALIAS)
