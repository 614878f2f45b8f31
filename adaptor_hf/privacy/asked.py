"""Whether private mode is asked for, found before anything of a command line or a recipe is parsed or said."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..configs import SUFFIXES, read_words
from ..files import open_regular

ENVIRONMENT = "ADAPTOR_PRIVATE"
_YES, _NO = ("1", "true", "yes", "y", "t", "on"), ("", "0", "false", "no", "n", "f", "off")
_OPTION = "--private"
_MAX_RECIPE_BYTES = 1 << 20


def environment_asks() -> bool:
    """
    Whether `ADAPTOR_PRIVATE` asks for private mode.

    Raises:
        ValueError: it says neither yes nor no. The message has not what it says.
    """
    value = os.environ.get(ENVIRONMENT, "").strip().lower()
    if value not in (*_YES, *_NO):
        raise ValueError(
            f"{ENVIRONMENT} says neither yes nor no. Expected 1, true, yes or on for private mode; 0, false, no or off "
            "without it; or unset it."
        )
    return value in _YES


def asked_for(words: Sequence[str]) -> bool:
    """
    Whether the environment, a command line or its recipe asks for private mode. What cannot be understood, such as a
    recipe that is no YAML and mentions it, counts as asking: the command then says whether it has understood.

    Args:
        words (`Sequence[str]`): Of the command line, without the program.

    Raises:
        ValueError: as [`environment_asks`].
    """
    if environment_asks():
        return True
    given = list(_values_given(words))
    if given:
        return given[-1].strip().lower() not in _NO or given[-1] == ""
    return any(_recipe_asks(path) for path in _recipes(words)) or any(map(_mentions, _options_beside_the_script()))


def _values_given(words: Sequence[str]) -> Iterator[str]:
    """What follows each `--private`, however it is abbreviated; "" where nothing does."""
    for number, word in enumerate(words):
        if word == "--":
            return
        name, equals, value = word.partition("=")
        if len(name) > 2 and _OPTION.startswith(name):
            after = words[number + 1] if number + 1 < len(words) else ""
            # A flag of a command takes no value: what follows may be an argument.
            yield value if equals else after if after.lower() in (*_YES, *_NO) else ""


def _recipes(words: Sequence[str]) -> Iterator[Path]:
    """Files of options: the first word of a script, what follows `--recipe`, or the plan of a sweep."""
    named = [word for word in (words[1:2] if words[:1] == ["sweep"] else words[:1]) if word.endswith(SUFFIXES)]
    for number, word in enumerate(words):
        if word == "--recipe":
            named += words[number + 1 : number + 2]
        elif word.startswith("--recipe="):
            named.append(word.partition("=")[2])
    return (Path(name) for name in named)


def _options_beside_the_script() -> Iterator[Path]:
    """`HfArgumentParser` reads options from a file beside a script, such as train_pretrain.args."""
    if sys.argv and sys.argv[0] and (script := Path(sys.argv[0])).name:
        yield script.with_suffix(".args")


def _recipe_asks(path: Path) -> bool:
    try:
        return path.is_file() and _asks(read_words(path))
    except Exception:
        # No recipe, or one that stands for too much: the command says so.
        return _mentions(path)


def _asks(value: Any) -> bool:
    if isinstance(value, list):
        return any(map(_asks, value))
    if not isinstance(value, Mapping):
        return False
    own = value.get("private")
    return (own is not None and str(own).strip().lower() not in _NO) or any(map(_asks, value.values()))


def _mentions(path: Path) -> bool:
    try:
        with open_regular(path) as file:
            return b"private" in file.read(_MAX_RECIPE_BYTES)
    except OSError:
        return False


__all__ = ["ENVIRONMENT", "asked_for", "environment_asks"]
