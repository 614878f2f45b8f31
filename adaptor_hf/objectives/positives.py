"""Which rows of a batch belong together, and which are no negatives of each other."""

from collections.abc import Mapping

import torch

from .encoded import Encoded

POSITIVE_COLUMN = {"text": "text_row", "study": "study", "pair": None}


def positive_ids(rows: Mapping[str, torch.Tensor], positives: str) -> torch.Tensor | None:
    """
    `(B,)` ids by which rows of a batch are no negatives of each other; None for `"pair"`.

    Raises:
        ValueError: the data set does not give the column.
    """
    column = POSITIVE_COLUMN[positives]
    if column is not None and column not in rows:
        raise ValueError(
            f"positives {positives!r} go by {column}, which the data set does not give. Add it, or choose "
            f"{' or '.join(name for name in POSITIVE_COLUMN if name != positives)}."
        )
    return None if column is None else rows[column]


def matched_rows(encoded: Encoded) -> tuple[torch.Tensor, torch.Tensor]:
    """
    Pooled images and texts of a batch, row i of the one belonging to row i of the other.

    Raises:
        ValueError: the batch lacks a side, or says by index columns what belongs together.
    """
    sides = dict(encoded.sides())
    if missing := [name for name in ("image", "text") if name not in sides]:
        raise ValueError(f"the objective compares images with texts, and the batch has no {missing[0]} side.")
    if indexed := [f"{name}_index" for name in ("image", "text") if sides[name].index is not None]:
        raise ValueError(
            f"the batch pairs its sides by {' and '.join(indexed)}, which this objective does not read: it takes image "
            "i and text i of a batch for a pair. Leave the column away where that is so, or take another objective."
        )
    return sides["image"].pooled, sides["text"].pooled


__all__ = ["POSITIVE_COLUMN", "matched_rows", "positive_ids"]
