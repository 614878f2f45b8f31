"""How an option is declared: a dataclass field whose metadata say what `--help` and private mode need to know."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import MISSING, Field, asdict, field, fields
from pathlib import Path
from typing import Any

# What an option can hold, for private mode.
PATH = "path"
"""Places: cut out of messages even where they look like words, and keyed hashes in records."""
NAMED_PATH = "named_path"
"""NAME=PLACE: the same of what follows the first "="."""
NAME_OR_PATH = "name_or_path"
"""A name, such as a preset's, or a place: cut out of messages where it exists; in records where it has a slash."""
HIDDEN = "hidden"
"""Parts of the user's table, such as column names: keyed hashes in records."""
OPEN = "open"
"""Neither."""
PRIVACY = (PATH, NAMED_PATH, NAME_OR_PATH, HIDDEN, OPEN)

OWN_METADATA = ("group", "advanced", "privacy")
"""Of the metadata, what argparse does not know."""


def option(
    default: Any = MISSING,
    help: str = "",
    *,
    group: str,
    privacy: str | None = None,
    advanced: bool = False,
    **more: Any,
) -> Any:
    """
    A dataclass field that is an option of a script.

    Args:
        default: Its default; a list is copied. Without one the option is required.
        help (`str`): One line of `--help`.
        group (`str`): Title of the part of `--help` that it stands in.
        privacy (`str`, *optional*): What it can hold, one of `PRIVACY`. Every option of free text says so.
        advanced (`bool`, defaults to `False`): Rarely needed: only `--help_all` shows it.
        more: Passed to argparse, such as `choices`, `nargs`, `metavar`.

    Raises:
        ValueError: another `privacy`.
    """
    if privacy not in (*PRIVACY, None):
        raise ValueError(f"privacy is one of {', '.join(PRIVACY)}, got {privacy!r}.")
    metadata = {"help": help, "group": group, "advanced": advanced, "privacy": privacy, **more}
    if isinstance(default, list):
        return field(default_factory=default.copy, metadata=metadata)
    return field(default=default, metadata=metadata)


def own_metadata(field: Field) -> dict[str, Any]:
    """Of a field's metadata, what argparse does not know; None where it is not declared."""
    return {name: field.metadata.get(name) for name in OWN_METADATA}


def default_of(option: Field) -> Any:
    return option.default if option.default_factory is MISSING else option.default_factory()


def own_options(group: Any) -> Iterator[Field]:
    """The fields of a dataclass, or of its instance, that `option` declared."""
    return (item for item in fields(group) if item.init and "group" in item.metadata)


def hidden_options(group: Any) -> set[str]:
    """Names of the options that private mode hashes in records."""
    return {item.name for item in own_options(group) if item.metadata["privacy"] in (PATH, NAMED_PATH, HIDDEN)}


def path_values(*groups: Any) -> list[str]:
    """What among the values of options is a path, for `start_private_mode`."""
    found = []
    for group in groups:
        for item in own_options(group):
            value, privacy = getattr(group, item.name), item.metadata["privacy"]
            given = [str(one) for one in (value if isinstance(value, list) else [value]) if one]
            if privacy == NAMED_PATH:
                given = [one.partition("=")[2] for one in given]
            if privacy in (PATH, NAMED_PATH):
                found += given
            elif privacy == NAME_OR_PATH:
                # Of towers, also a folder after random: or timm:.
                given += [one.partition(":")[2] for one in given if ":" in one]
                found += [one for one in given if one and Path(one).exists()]
    return found


def values_of(group: Any) -> dict[str, Any]:
    """Values of all options of an instance, as a record of a run holds them."""
    return group.to_dict() if hasattr(group, "to_dict") else asdict(group)


__all__ = [
    "HIDDEN",
    "NAMED_PATH",
    "NAME_OR_PATH",
    "OPEN",
    "PATH",
    "PRIVACY",
    "default_of",
    "hidden_options",
    "option",
    "own_metadata",
    "own_options",
    "path_values",
    "values_of",
]
