"""Which rows of a batch are no negatives of each other."""

from collections.abc import Mapping

import torch

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


__all__ = ["POSITIVE_COLUMN", "positive_ids"]
