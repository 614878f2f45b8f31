"""Planned batches of texts, tokenised one ahead of the tower."""

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np


def prefetch(function: Callable[[Any], Any], items: Iterable[Any]) -> Iterator[Any]:
    """Results of `function` in order, computed one item ahead in a thread."""
    with ThreadPoolExecutor(1) as pool:
        future = None
        for item in items:
            upcoming = pool.submit(function, item)
            if future is not None:
                yield future.result()
            future = upcoming
        if future is not None:
            yield future.result()


class TextBatches:
    """Tokenises texts of a data set by row.

    Args:
        dataset: datasets.Dataset with the column `text`, formatted as Arrow.
        tokenizer: tokenizer of the tower.
        max_length: tokens a text is cut to, special tokens included.

    Attributes:
        unknown: tokens that the tokenizer did not know, of all texts that `lengths` has seen.
    """

    def __init__(self, dataset, tokenizer: Any, max_length: int) -> None:
        self.unknown = 0
        self.dataset = dataset.select_columns(["text"])
        self.tokenizer = tokenizer
        self.max_length = max_length

    def texts(self, rows: np.ndarray) -> list[str]:
        return self.dataset[rows].column("text").to_pylist()

    def lengths(self, rows: np.ndarray, block: int = 512) -> np.ndarray:
        """(n,) int32 token counts before truncation, special tokens included."""
        counts = np.empty(len(rows), dtype=np.int32)
        for start in range(0, len(rows), block):
            texts = self.texts(rows[start : start + block])
            encoded = self.tokenizer(texts, truncation=False, padding=False, return_attention_mask=False, verbose=False)
            counts[start : start + len(texts)] = [len(ids) for ids in encoded["input_ids"]]
            if self.tokenizer.unk_token_id is not None:
                self.unknown += sum(ids.count(self.tokenizer.unk_token_id) for ids in encoded["input_ids"])
        return counts

    def encode(self, rows: np.ndarray) -> dict:
        """Model inputs of these rows, cut to max_length and padded to the longest of the batch."""
        return dict(
            self.tokenizer(
                self.texts(rows), truncation=True, max_length=self.max_length, padding="longest", return_tensors="pt"
            )
        )
