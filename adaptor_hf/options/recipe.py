"""Which recipe a command line names."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ..configs import SUFFIXES, find_recipe, list_recipes


def split_recipe(words: Sequence[str], kind: str = "pretrain") -> tuple[Path | None, list[str]]:
    """
    Path of the recipe that a command line names, as its first word (a file) or by `--recipe`, and the other words.

    Args:
        words (`Sequence[str]`): Of the command line, without the program.
        kind (`str`, defaults to `"pretrain"`): `pretrain` or `downstream`.

    Raises:
        FileNotFoundError, ValueError: as [`find_recipe`]; also `ValueError` for two recipes, or `--recipe` without one.
    """
    given, rest = [], []
    words = iter(words)
    for number, word in enumerate(words):
        option, equals, value = word.partition("=")
        if number == 0 and word.endswith(SUFFIXES) and not word.startswith("-"):
            given.append(word)
            continue
        if option != "--recipe":
            rest.append(word)
            continue
        if not equals and (value := next(words, None)) is None:
            raise ValueError(f"--recipe needs a name ({', '.join(list_recipes(kind))}) or a file.")
        given.append(value)
    if len(given) > 1:
        raise ValueError(f"One recipe a command, got {' and '.join(given)}. Options after it override its values.")
    return (find_recipe(given[0], kind) if given else None), rest


__all__ = ["split_recipe"]
