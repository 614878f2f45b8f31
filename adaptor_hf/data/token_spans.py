"""Which tokens the words and the sentences of a text are."""

from __future__ import annotations

from typing import Any

import numpy as np

from .report_sentences import sentence_spans

SPANS = ("words", "sentences")


def spans_of_text(encoding: Any, text: str, name: str) -> np.ndarray:
    """
    The words or the sentences of a text in its tokens.

    A word is what the tokenizer's pre-tokenizer calls one, put together from its pieces, and not only white space; for
    most tokenizers a mark is a word of its own.
    A sentence is one of `sentence_spans`; a token belongs to the one in which its first character is that is not white
    space. Of a word or sentence that was cut, what is left counts. Special tokens belong to neither.

    Args:
        encoding: What a fast tokenizer gives for the text (`BatchEncoding.encodings[i]`), padded or not.
        name: "words" or "sentences".

    Returns:
        int16 (spans, 2), the first token and the last one + 1, padding not counted.
    """
    return {"words": _words, "sentences": _sentences}[name](encoding, text)


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


__all__ = ["SPANS", "spans_of_text"]
