"""From the rows of a cache back to the rows of the table that it was built from."""

from itertools import count
from typing import Any

import numpy as np

from ..data.content_keys import blocks
from .reader import EmbeddingCache
from .table import merge_splits, read_ids


def rows_of_table(view: EmbeddingCache, dataset: Any) -> np.ndarray:
    """The row of a table behind each row of a cache: excluded rows have left the others their order, not their numbers.

    Args:
        view: of the cache, or of some of its rows.
        dataset: what the cache was built from, with all its rows, as `build_cache` took it.

    Returns:
        (n,) int64 rows of `dataset`, of its splits one after the other.

    Raises:
        ValueError: it is not what the cache was built from.
    """
    table, splits = merge_splits(dataset)
    whole = view.whole()
    known = whole.pairs.with_format("arrow")[:]
    ids = read_ids(table, splits)
    names = [name for name in ids.column_names if name in known.column_names and name != "targets"]
    of_table = zip(count(), *(ids.column(name).to_pylist() for name in names))
    found = np.empty(len(whole), dtype=np.int64)
    for number, wanted in enumerate(zip(*(known.column(name).to_pylist() for name in names), strict=True)):
        found[number] = next((row for row, *values in of_table if tuple(values) == wanted), -1)
    if (found < 0).any() or not _same_texts(table, found, whole.text_rows):
        raise ValueError(
            f"the table has not the {len(whole):,} rows that the embedding cache was built from, in their order: it "
            "was changed meanwhile. Start the run again, which embeds what is new"
        )
    return found[view.rows]


def _same_texts(table: Any, rows: np.ndarray, text_rows: np.ndarray) -> bool:
    """Whether two rows have the same text where the cache says so, and there alone."""
    if "text" not in table.column_names:
        return True
    numbers: dict[str | None, int] = {}
    codes = [numbers.setdefault(text, len(numbers)) for _, values in blocks(table, "text") for text in values]
    pairs = np.stack([np.array(codes, dtype=np.int64)[rows], text_rows])[:, text_rows >= 0]
    kinds = np.unique(pairs, axis=1).shape[1]
    return all(len(np.unique(side)) == kinds for side in pairs)
