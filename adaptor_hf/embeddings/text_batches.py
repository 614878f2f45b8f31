"""Planned batches of texts, tokenised one ahead of the tower."""

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from ..data.report_sentences import sentence_spans
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
    Which tokens the words and sentences of texts are, as `stored` asks for them.

    A word is what the tokenizer's pre-tokenizer calls one, put together from its pieces, and not only white space; for
    most tokenizers a mark is a word of its own.
    A sentence is one of `sentence_spans`; a token belongs to the one in which its first character is that is not white
    space. Of a word or sentence that was cut, what is left counts. Special tokens belong to neither.

    Args:
        encoded: What a fast tokenizer gives for the texts, padded or not.

    Returns:
        `words` and `sentences`: rows of int16 (spans, 2), the first token and the last one + 1, padding not counted.
    """
    found = {}
    for name, spans_of in (("words", _words), ("sentences", _sentences)):
        if getattr(stored, name):
            found[name] = _ragged([spans_of(*pair) for pair in zip(encoded.encodings, texts, strict=True)])
    return found


def _words(encoding: Any, text: str) -> np.ndarray:
    numbers = np.array([-1 if word is None else word for word in encoding.word_ids])
    ends = {}
    for number, (start, stop) in zip(numbers, encoding.offsets, strict=True):
        ends[number] = (ends.get(number, (start, stop))[0], stop)
    # Byte-level tokenizers have words of white space.
    blank = [number for number, (start, stop) in ends.items() if not text[start:stop].strip()]
    numbers[np.isin(numbers, blank)] = -1
    return _runs(encoding, numbers)


def _sentences(encoding: Any, text: str) -> np.ndarray:
    starts, stops = np.array(sentence_spans(text), dtype=np.int64).reshape(-1, 2).T
    pieces = [text[start:stop] for start, stop in encoding.offsets]
    blanks = [len(piece) - len(piece.lstrip()) for piece in pieces]
    firsts = np.array([start for start, _ in encoding.offsets]) + blanks
    numbers = np.searchsorted(starts, firsts, side="right") - 1
    # Before the first sentence the number is -1, which takes the 0 behind the ends.
    inside = firsts < np.append(stops, 0)[numbers]
    is_text = np.array([bool(piece.strip()) for piece in pieces]) & (np.array(encoding.special_tokens_mask) == 0)
    return _runs(encoding, np.where(inside & is_text, numbers, -1))


def _runs(encoding: Any, numbers: np.ndarray) -> np.ndarray:
    """(spans, 2) int16 of the tokens with the same number of 0 or more; padding on the left is not counted."""
    numbers = numbers[np.array(encoding.attention_mask, dtype=bool)]
    _, starts = np.unique(numbers, return_index=True)
    ends = len(numbers) - np.unique(numbers[::-1], return_index=True)[1]
    spans = np.stack([starts, ends], axis=1)[numbers[starts] >= 0]
    return spans.astype(np.int16)


def _ragged(rows: list[np.ndarray]) -> Ragged:
    offsets = np.cumsum([0, *map(len, rows)], dtype=np.int64)
    return Ragged(np.concatenate(rows) if rows else np.empty((0, 2), np.int16), offsets)
