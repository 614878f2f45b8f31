"""How well a text tower's vocabulary and length fit the reports: shares of cut texts and of unknown tokens."""

from collections.abc import Sequence
from typing import NamedTuple

from transformers import PreTrainedTokenizerBase


class Coverage(NamedTuple):
    """Of a sample of texts. `tokens_per_word` counts words between spaces; far over 2 hints at another language."""

    texts: int
    cut: float
    unknown: float
    tokens_per_word: float


def text_coverage(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], max_length: int) -> Coverage:
    """
    Tokenizes texts without cutting them.

    Args:
        tokenizer: Of the text tower.
        texts: A sample of the reports; empty texts count.
        max_length: Tokens, special ones included, after which a text is cut.

    Returns:
        Share of texts that are cut, share of the tokens that are unknown, and tokens a word. NaN-free: 0 where there is
        nothing to count.

    Raises:
        ValueError: no texts.
    """
    if not texts:
        raise ValueError("no texts to look at: the sample is empty.")
    # A text longer than the tower takes is what is counted here, so the tokenizer need not warn of it.
    encoded = tokenizer(list(texts), truncation=False, add_special_tokens=False, verbose=False)["input_ids"]
    special = tokenizer.num_special_tokens_to_add()
    tokens = sum(map(len, encoded))
    unknown = sum(ids.count(tokenizer.unk_token_id) for ids in encoded) if tokenizer.unk_token_id is not None else 0
    words = sum(len(text.split()) for text in texts)
    cut = sum(len(ids) + special > max_length for ids in encoded)
    return Coverage(len(texts), cut / len(texts), unknown / max(tokens, 1), tokens / max(words, 1))


def describe_coverage(name: str, coverage: Coverage, max_length: int) -> str:
    """One line without any of the texts."""
    return (
        f"{name}: of {coverage.texts:,} reports {coverage.cut:.1%} are cut at {max_length} tokens, "
        f"{coverage.unknown:.2%} of the tokens are unknown to the tower, {coverage.tokens_per_word:.1f} tokens a word"
    )


__all__ = ["Coverage", "describe_coverage", "text_coverage"]
