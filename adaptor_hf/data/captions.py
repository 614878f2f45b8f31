"""Captions of general image-text sets: which of an image's captions are used, and the tokens that stand for names."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING

from .positive import spelling_key

if TYPE_CHECKING:
    import pandas as pd

logger = logging.getLogger(__name__)

CAPTION_CHOICES = ("all", "first", "random")

NAME_TOKENS = {"<PERSON>": "a person", "<person>": "a person", "<usr>": "a user", "<USR>": "a user"}
"""What replaces a person's name or handle in CC12M and RedCaps, and the words it may be replaced with."""

CAPTIONS_HELP = (
    '"all": a row for each caption of an image; "first": one row an image with its first caption; "random": one row an '
    "image with a caption drawn by `seed` (SLIP draws anew each time an image is read)"
)
NAME_TOKENS_HELP = '"keep": as they stand; "words": "a person", "a user"; "remove": left out'


def choose_captions(rows: pd.DataFrame, choice: str, seed: int) -> pd.DataFrame:
    """
    A row for each caption that is used; `rows["text"]` holds a list of captions each.

    Empty captions are left out; an image without any stays as one row without text.

    Raises:
        ValueError: `choice` is none of `CAPTION_CHOICES`.
    """
    import numpy as np

    if choice not in CAPTION_CHOICES:
        raise ValueError(f"captions must be one of {', '.join(CAPTION_CHOICES)}, got {choice!r}.")
    long = rows.explode("text", ignore_index=False)
    long["text"] = clean_whitespace(long["text"])
    filled = long["text"].notna()
    # An image whose captions are all empty keeps its first, None.
    long = long[filled | (~long.index.isin(long.index[filled]) & ~long.index.duplicated())]
    if choice == "all":
        return long.reset_index(drop=True)
    if choice == "first":
        return long[~long.index.duplicated()].reset_index(drop=True)
    order = np.random.default_rng(seed).permutation(len(long))
    drawn = long.iloc[order]
    return drawn[~drawn.index.duplicated()].sort_index().reset_index(drop=True)


def clean_whitespace(texts: pd.Series) -> pd.Series:
    """Line breaks and runs of blanks become one blank, outer ones go; what then is no text (`MISSING_WORDS`), None."""
    import pandas as pd
    import pyarrow as pa
    import pyarrow.compute as pc

    from .missing import without_missing

    cells = pa.array(texts, pa.string(), from_pandas=True)
    cells = without_missing(pc.replace_substring_regex(cells, r"[\s\pZ]+", " "), strip=True)
    return pd.Series(cells.to_numpy(zero_copy_only=False), index=texts.index, dtype=object)


def replace_name_tokens(texts: pd.Series, how: str) -> pd.Series:
    """
    Keep, spell out or remove `NAME_TOKENS`.

    Raises:
        ValueError: `how` is none of "keep", "words" and "remove".
    """
    if how not in ("keep", "words", "remove"):
        raise ValueError(f'name_tokens must be "keep", "words" or "remove", got {how!r}.')
    if how == "keep":
        return texts
    for token, words in NAME_TOKENS.items():
        texts = texts.str.replace(token, words if how == "words" else "", regex=False)
    return clean_whitespace(texts)


def term_labels(terms: Sequence[Sequence[str]], training: Sequence[bool], min_count: int):
    """
    Multi-label targets from a list of terms for each row.

    Args:
        terms: The terms of each row; a term that comes twice counts once. Spellings that differ in case or spaces are
            one term, in the most frequent of them.
        training: Which rows are counted; all where none is.
        min_count: A term is a label if at least so many training rows have it.

    Returns:
        DataFrame of float 0 and 1, a column a label in alphabetical order, and the list of labels.

    Raises:
        ValueError: No term is frequent enough.
    """
    import numpy as np
    import pandas as pd

    counted = np.asarray(training, dtype=bool)
    counted = counted if counted.any() else np.ones(len(terms), dtype=bool)
    lengths = np.fromiter(map(len, terms), dtype=np.int64, count=len(terms))
    pairs = pd.DataFrame(
        {
            "row": np.repeat(np.arange(len(terms)), lengths),
            "term": pd.Series([term for row in terms for term in row], dtype=object),
        }
    )
    pairs["term"] = _one_spelling(pairs["term"])
    pairs = pairs.drop_duplicates()
    counts = pairs[counted[pairs["row"]]]["term"].value_counts()
    names = sorted(counts.index[counts >= min_count])
    if not names:
        raise ValueError(
            f"No term is in at least {min_count} training rows (label_min_count); the most frequent is in "
            f"{counts.max() if len(counts) else 0}. Lower label_min_count."
        )
    column = {name: position for position, name in enumerate(names)}
    pairs = pairs[pairs["term"].isin(column)]
    values = np.zeros((len(terms), len(names)), dtype=np.float32)
    values[pairs["row"].to_numpy(), pairs["term"].map(column).to_numpy(dtype=np.int64)] = 1
    return pd.DataFrame(values, columns=names), names


def _one_spelling(terms: pd.Series) -> pd.Series:
    keys = {term: spelling_key(term) for term in terms.unique()}
    best: dict[str, str] = {}
    several = set()
    # The most frequent comes first, of equals the first in order.
    for term in terms.value_counts().sort_index().sort_values(ascending=False, kind="stable").index:
        if best.setdefault(keys[term], term) != term:
            several.add(keys[term])
    if several:
        logger.info("%d terms have several spellings: each is one label, in the most frequent.", len(several))
    return terms.map({term: best[key].strip() for term, key in keys.items()})


__all__ = [
    "CAPTIONS_HELP",
    "CAPTION_CHOICES",
    "NAME_TOKENS",
    "NAME_TOKENS_HELP",
    "choose_captions",
    "clean_whitespace",
    "replace_name_tokens",
    "term_labels",
]
