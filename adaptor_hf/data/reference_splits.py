"""Splits of the reference codes: those that follow from a seed, and those that were published as files."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from .files import read_table

if TYPE_CHECKING:
    import pandas as pd

SPLIT_FILES_HELP = "Folder of LoVT's train.csv, validation.csv and test.csv, for split_scheme='lovt'."
"""Of the option `split_files`."""


def two_way_split(count: int, test_size: float | int, seed: int = 0) -> np.ndarray:
    """Split of each of `count` rows by sklearn's `train_test_split`: "train" and "validation"."""
    from sklearn.model_selection import train_test_split

    split = np.full(count, "train", dtype=object)
    split[train_test_split(np.arange(count), test_size=test_size, random_state=seed)[1]] = "validation"
    return split


def three_way_split(count: int, held_out: float | int, seed: int = 0) -> np.ndarray:
    """
    Split of each of `count` rows as MGCA and GLoRIA make it: `train_test_split` twice with the same seed.

    The first half of what is held out is "test", the second "validation".

    Args:
        held_out: Share or number of rows held out.
    """
    from sklearn.model_selection import train_test_split

    _, rest = train_test_split(np.arange(count), test_size=held_out, random_state=seed)
    test, validation = train_test_split(rest, test_size=0.5, random_state=seed)
    split = np.full(count, "train", dtype=object)
    split[test], split[validation] = "test", "validation"
    return split


def shipped_split(root: Path, folder: str | os.PathLike | None) -> pd.Series:
    """
    Splits as LoVT ships them: train.csv, validation.csv and test.csv with a column `ID`.

    Only the ids are read: LoVT's boxes of object-CXR have width and height exchanged.

    Args:
        root: Folder of the data set.
        folder: Where the three files are, absolute or relative to `root`; None is `root` itself.

    Returns:
        Series of split by id, in the order of the files: LoVT's fractions are the first rows.

    Raises:
        FileNotFoundError: A file is missing; the message says where to get it.
        ValueError: No column `ID`, or an id that is there twice.
    """
    import pandas as pd

    place = Path(os.path.join(root, folder or "."))
    parts = {}
    for split in ("train", "validation", "test"):
        try:
            frame = read_table(place, f"{split}.csv", columns=("ID",))
        except FileNotFoundError as error:
            raise FileNotFoundError(
                f"{error} The split of LoVT is published as files: take them from the folder datasets/ of its code "
                "(github.com/philip-mueller/lovt) and pass split_files=FOLDER."
            ) from None
        except ValueError as error:
            raise ValueError(
                f"{place}: {error} Expected LoVT's own {split}.csv; pass split_files=FOLDER if it lies elsewhere."
            ) from None
        parts[split] = pd.Series(split, index=pd.Index(frame["ID"], dtype=object), dtype=object)
    joined = pd.concat(list(parts.values()))
    twice = joined.index[joined.index.duplicated()]
    if len(twice):
        raise ValueError(f"{place}: {len(twice)} ids are in the split files twice, expected once each.")
    return joined


def follow_split(rows: pd.DataFrame, split: pd.Series) -> tuple[pd.DataFrame, dict[str, int]]:
    """
    Rows in the order of a split by `image_id`, with its `split`; and the counts of rows and ids that have no partner.

    Args:
        rows: With `image_id`, each once.
        split: As `shipped_split` gives it.
    """
    known = split[split.index.isin(rows["image_id"])]
    ordered = rows.set_index("image_id", drop=False).loc[known.index]
    ordered["split"] = known.to_numpy()
    dropped = {
        "not in the split's files": int((~rows["image_id"].isin(split.index)).sum()),
        "in the split's files, not in the tables": len(split) - len(known),
    }
    return ordered.reset_index(drop=True), {rule: count for rule, count in dropped.items() if count}


def check_size(found: int, expected: int, who: str) -> list[str]:
    """A note if a split that follows from a seed is made of another number of rows than the reference's."""
    if found == expected:
        return []
    return [f"{who}'s split is made of {expected:,} rows, here are {found:,}: this is not the same split."]


__all__ = ["SPLIT_FILES_HELP", "check_size", "follow_split", "shipped_split", "three_way_split", "two_way_split"]
