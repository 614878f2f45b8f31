"""Planned batches of texts, tokenised one ahead of the tower."""

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from ..data.token_spans import SPANS, spans_of_text
from .columns import Ragged
from .stored import StoredTexts


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
        stored: with words or sentences, `encode` also gives their spans.

    Attributes:
        unknown: tokens that the tokenizer did not know, of all texts that `lengths` has seen.
    """

    def __init__(self, dataset, tokenizer: Any, max_length: int, stored: StoredTexts | None = None) -> None:
        self.unknown = 0
        self.stored = stored or StoredTexts()
        check_span_range(max_length, self.stored)
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
        """Model inputs of these rows, cut to max_length and padded to the longest of the batch; with `stored` also
        `words` and `sentences`, see `token_spans`."""
        texts = self.texts(rows)
        encoded = self.tokenizer(
            texts, truncation=True, max_length=self.max_length, padding="longest", return_tensors="pt"
        )
        return dict(encoded) | token_spans(encoded, texts, self.stored)


def check_span_range(max_length: int, stored: StoredTexts) -> None:
    """
    Raises:
        ValueError: A text may have more tokens than spans can count.
    """
    if (stored.words or stored.sentences) and max_length > np.iinfo(np.int16).max:
        raise ValueError(
            f"words and sentences are stored as int16, and max_text_length is {max_length:,}. Take at most "
            f"{np.iinfo(np.int16).max:,}, or leave them out."
        )


def token_spans(encoded: Any, texts: list[str], stored: StoredTexts) -> dict[str, Ragged]:
    """
    Which tokens the words and sentences of texts are, as `stored` asks for them; see `adaptor_hf.data.token_spans`.

    Args:
        encoded: What a fast tokenizer gives for the texts, padded or not.

    Returns:
        `words` and `sentences`: rows of int16 (spans, 2), the first token and the last one + 1, padding not counted.
    """
    found = {}
    for name in SPANS:
        if getattr(stored, name):
            found[name] = _ragged([spans_of_text(*pair, name) for pair in zip(encoded.encodings, texts, strict=True)])
    return found


def _ragged(rows: list[np.ndarray]) -> Ragged:
    offsets = np.cumsum([0, *map(len, rows)], dtype=np.int64)
    return Ragged(np.concatenate(rows) if rows else np.empty((0, 2), np.int16), offsets)
