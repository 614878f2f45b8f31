"""The text of a recipe's file, if a person can have written it: small, and not a few lines that stand for much."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from ..files import read_regular

MAX_BYTES = 1 << 20
MAX_VALUES = 20_000
MAX_DEPTH = 20


def recipe_text(path: str | os.PathLike) -> str:
    """
    Text of a YAML or JSON recipe, without a byte-order mark.

    Raises:
        OSError: no such file, no regular file, or it cannot be read.
        ValueError: no UTF-8, over `MAX_BYTES`; as YAML: nested deeper than `MAX_DEPTH`, or of over
            `MAX_VALUES` values, those counted each time that an alias (`*name`) repeats them. It names the file.
    """
    try:
        text = read_regular(path, MAX_BYTES).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 at byte {error.start}: save it as UTF-8.") from None
    if Path(path).suffix != ".json":
        _check(text, path)
    return text


def _check(text: str, path: str | os.PathLike) -> None:
    """Lists that repeat lists ten times, ten levels deep, are ten thousand million values in half a kilobyte."""
    import yaml

    counts: list[int] = [0]
    named: dict[str, int] = {}
    opened: list[str | None] = []
    try:
        # Events come one at a time: nothing is built, and no depth is recursion.
        for event in yaml.parse(text, yaml.SafeLoader):
            if isinstance(event, yaml.CollectionStartEvent):
                opened.append(event.anchor)
                counts.append(1)
                if len(opened) > MAX_DEPTH:
                    raise ValueError(f"{path} is nested deeper than {MAX_DEPTH} levels, which no recipe is.")
            elif isinstance(event, yaml.CollectionEndEvent):
                _close(counts, named, opened.pop())
            elif isinstance(event, yaml.AliasEvent):
                # Of what is not closed yet it is a part of itself; of nothing the reader says so.
                counts[-1] += named.get(event.anchor, MAX_VALUES + 1 if event.anchor in opened else 0)
            elif isinstance(event, yaml.ScalarEvent):
                counts[-1] += 1
                named |= {event.anchor: 1} if event.anchor else {}
            if counts[-1] > MAX_VALUES:
                raise ValueError(
                    f"{path} has over {MAX_VALUES:,} values, counted each time that an alias (*name) repeats them, or "
                    "an alias of what holds it. Write out what the recipe means."
                )
    except yaml.YAMLError:
        # The reader says where.
        return


def _close(counts: list[int], named: dict[str, Any], anchor: str | None) -> None:
    count = counts.pop()
    counts[-1] += count
    if anchor:
        named[anchor] = count


__all__ = ["recipe_text"]
