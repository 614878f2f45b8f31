"""Which of two classes is the positive one: by words that leave no doubt, or by the user's choice."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence

PAIRS = (
    ("0", "1"), ("0.0", "1.0"), ("false", "true"), ("f", "t"), ("no", "yes"), ("n", "y"), ("negative", "positive"),
    ("neg", "pos"), ("-", "+"), ("absent", "present"), ("nein", "ja"), ("non", "oui"), ("no", "si"), ("no", "sí"),
    ("normal", "abnormal"), ("benign", "malignant"), ("control", "case"),
)  # fmt: skip
"""Negative and positive class of pairs that leave no doubt."""

NEGATIVE_WORDS = ("negative", "normal", "healthy", "absent", "no finding", "no findings", "unremarkable", "gesund",
                  "unauffällig", "sain")  # fmt: skip
"""Classes that are the negative one whatever the other is called, short of a word that says nothing."""

VAGUE_WORDS = ("unknown", "unclear", "uncertain", "indeterminate", "equivocal", "other", "others", "undefined",
               "unbekannt")  # fmt: skip
"""Classes that may mean that the class is not known."""

_DENIAL = re.compile(r"(?:no|non|not|without|kein|keine|ohne|sans|sin)[\s_-]+(?P<what>.+)")


def spelling_key(name: str) -> str:
    """A class name without its case, outer and repeated spaces, and compatibility forms of characters (NFKC)."""
    return " ".join(unicodedata.normalize("NFKC", str(name)).casefold().split())


def boolean_words(values: Sequence[str]) -> dict[str, float] | None:
    """0 and 1 of each value, where all are one of `PAIRS` that only says no and yes; else None."""
    keys = {value: spelling_key(value) for value in values}
    for negative, positive in PAIRS[:14]:
        if keys and set(keys.values()) <= {negative, positive}:
            return {value: float(key == positive) for value, key in keys.items()}
    return None


def sure_positive(names: Sequence[str]) -> str | None:
    """The positive one of two class names, where words leave no doubt; else None."""
    keys = [spelling_key(name) for name in names]
    for negative, positive in PAIRS:
        if set(keys) == {negative, positive}:
            return names[keys.index(positive)]
    for place, key in enumerate(keys):
        other = keys[1 - place]
        denied = _DENIAL.fullmatch(key)
        if denied is not None and denied["what"] == other:
            return names[1 - place]
        if key in NEGATIVE_WORDS and other not in (*NEGATIVE_WORDS, *VAGUE_WORDS):
            return names[1 - place]
    return None


def is_negative(name: str) -> bool:
    """Whether a class is certainly the negative one: a denial, a word such as "normal", or the 0 of a label."""
    key = spelling_key(name)
    words = {*NEGATIVE_WORDS, *(negative for negative, _ in PAIRS)}
    return key in words or key.endswith(" = 0") or _DENIAL.fullmatch(key) is not None


def choose_positive(names: Sequence[str], wanted: str | None, source: str, *, declared: bool = False) -> int:
    """
    Number, 0 or 1, of the positive one of two classes.

    Args:
        names (`Sequence[str]`): The two.
        wanted (`str`, *optional*): The user's choice, in any case.
        source (`str`): What has these classes, for the message.
        declared (`bool`, defaults to `False`): The second is declared as the positive one, as public data sets do.

    Raises:
        ValueError: neither the user nor the words say it, or the user names another class.
    """
    if wanted is not None:
        keys = [spelling_key(name) for name in names]
        if wanted in names or keys.count(spelling_key(wanted)) == 1:
            return list(names).index(wanted) if wanted in names else keys.index(spelling_key(wanted))
        raise ValueError(
            f"--positive_label {wanted!r} is no class of {source}. Its classes: {names[0]!r}, {names[1]!r}."
        )
    if declared:
        return 1
    positive = sure_positive(names)
    if positive is None:
        raise ValueError(
            f"{source} has the two classes {names[0]!r} and {names[1]!r}, and nothing says which is the positive one. "
            f"Say it with --positive_label {names[0]!r} or --positive_label {names[1]!r}."
        )
    return list(names).index(positive)


__all__ = [
    "NEGATIVE_WORDS",
    "PAIRS",
    "VAGUE_WORDS",
    "boolean_words",
    "choose_positive",
    "is_negative",
    "spelling_key",
    "sure_positive",
]
