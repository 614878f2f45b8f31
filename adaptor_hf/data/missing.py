"""Words that mean "no value": one list for ids, splits, reports, labels, ages and sexes, whatever wrote the table."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from functools import cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pyarrow as pa

MISSING_WORDS = (
    "",
    # pandas.
    "nan", "-nan", "nat", "none", "<na>", "1.#ind", "-1.#ind", "1.#qnan", "-1.#qnan",
    # R.
    "na", "n/a",
    # SQL, and what its tools write.
    "null", "<null>", "(null)", "[null]", "\\n",
    # Excel and LibreOffice, in English, German, French, Spanish, Portuguese and Italian; a formula that failed.
    "#n/a", "#n/a n/a", "#na", "#nv", "#n/d", "#null!", "#value!", "#wert!", "#valeur!", "#ref!", "#bezug!", "#div/0!",
    "#name?", "#num!", "#zahl!",
    # SAS and Stata.
    ".",
)  # fmt: skip
"""Cells without a value, in lower case; cells are compared stripped and in any case. "-" is none: it may mean
"negative". "unknown" is none either: where it means that, name it with `missing_words`."""


def missing_words(more: Iterable[str] = ()) -> frozenset[str]:
    """
    `MISSING_WORDS`, and more words of the user's.

    Raises:
        TypeError: `more` is one string: its letters would be the words.
    """
    if isinstance(more, str):
        raise TypeError(f"missing words are a list, got one string. Pass [{more!r}].")
    return _words(tuple(more))


@cache
def _words(more: tuple[str, ...]) -> frozenset[str]:
    return frozenset(MISSING_WORDS) | {word.strip().lower() for word in more}


def is_missing(value: Any, more: Iterable[str] = ()) -> bool:
    """Whether a cell has no value: None, NaN, NaT, pandas.NA, blank, or a word of `missing_words(more)`."""
    if value is None:
        return True
    if isinstance(value, str):
        # The longest word is short, and a report is long.
        return value.strip().lower() in missing_words(more)
    try:
        return bool(value != value) or bool(more and str(value).lower() in missing_words(more))
    except TypeError:
        # The comparison of pandas.NA has no truth.
        return True


def without_missing(column: pa.ChunkedArray, strip: bool, more: Sequence[str] = ()) -> pa.ChunkedArray:
    """
    A column of text with None for cells without a value; the others exact, or stripped of white space.

    Args:
        column (`pa.ChunkedArray`): Of strings.
        strip (`bool`): Whether to strip the cells that stay.
        more (`Sequence[str]`): Words beside `MISSING_WORDS`.
    """
    import pyarrow.compute as pc

    if strip:
        column = pc.utf8_trim_whitespace(column)
    return pc.if_else(pc.match_substring_regex(column, _pattern(missing_words(more))), None, column)


@cache
def _pattern(words: frozenset[str]) -> str:
    longest_first = sorted(words, key=lambda word: (-len(word), word))
    return r"(?i)^[\s\pZ]*(?:" + "|".join(map(re.escape, longest_first)) + r")[\s\pZ]*$"


__all__ = ["MISSING_WORDS", "is_missing", "missing_words", "without_missing"]
