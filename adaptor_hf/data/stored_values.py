"""Values that say what a cache keeps, as plain numbers and tuples: what means the same has the same key."""

from __future__ import annotations

import operator
import re
from collections.abc import Iterable
from typing import Any, Literal


def grid_side(name: str, value: Any) -> Literal["all"] | int | None:
    """
    "all" tokens, or the side of a grid of their means; None for none.

    Args:
        name: Of the option or argument, for the error; as of all functions here.
        value: Number or text.

    Raises:
        ValueError: It is neither.
    """
    text = str(value).strip()
    if value is None or text == "all":
        return None if value is None else "all"
    if not re.fullmatch(r"[1-9]\d{0,3}", text):
        raise ValueError(f"{name} {value!r}: expected all, or the side of a grid of means, such as 7.")
    return int(text)


def cells(name: str, value: Any) -> tuple[int, int] | None:
    """
    Rows and columns of cells, of a text such as 3x3 or a pair of numbers; None for none.

    Raises:
        ValueError: It is neither.
    """
    if value is None:
        return None
    numbers = re.split("[xX]", value.strip()) if isinstance(value, str) else value
    pair = list(numbers) if isinstance(numbers, Iterable) else []
    if len(pair) != 2 or not all(re.fullmatch(r"[1-9]\d{0,3}", str(number)) for number in pair):
        raise ValueError(f"{name} {value!r}: expected rows and columns of cells, such as 3x3, in Python (3, 3).")
    return int(pair[0]), int(pair[1])


def depths(name: str, values: Any) -> tuple[int, ...]:
    """
    Numbers of layers, from 1, each once.

    Raises:
        ValueError: They are others, or no list.
    """
    if isinstance(values, str) or not isinstance(values, Iterable):
        raise ValueError(f"{name} {values!r}: expected a list of numbers, such as [{values}].")
    given = list(values)
    said = f"{name} {' '.join(map(str, given))}"
    found = tuple(whole_number(name, value) for value in given)
    if any(value < 1 for value in found):
        raise ValueError(f"{said}: counted from 1.")
    if len(set(found)) < len(found):
        raise ValueError(f"{said}: each once.")
    return found


def whole_number(name: str, value: Any) -> int:
    """
    A whole number from 0.

    Raises:
        ValueError: It is none.
    """
    try:
        found = -1 if isinstance(value, bool) else operator.index(value)
    except TypeError:
        found = -1
    if found < 0:
        raise ValueError(f"{name} {value!r}: expected 0 or more, a whole number.")
    return found


def yes_or_no(name: str, value: Any) -> bool:
    """
    True or False.

    Raises:
        ValueError: It is neither.
    """
    if isinstance(value, str) or value not in (True, False):
        raise ValueError(f"{name} {value!r}: expected True or False.")
    return bool(value)


__all__ = ["cells", "depths", "grid_side", "whole_number", "yes_or_no"]
