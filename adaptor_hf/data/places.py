"""Whether the places that options name are there, before anything is read."""

from __future__ import annotations

import difflib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ..privacy.mode import is_private
from .catalog import get_dataset

if TYPE_CHECKING:
    from .table_arguments import TableArguments


def check_table_options(arguments: TableArguments, table: str | Sequence[str] | None, option: str) -> None:
    """
    Check that a table or the folder of a public data set is there, and `image_root`.

    Args:
        arguments (`TableArguments`): Of a script.
        table (`str`, *optional*): Its table, or its tables.
        option (`str`): What the script calls that.

    Raises:
        FileNotFoundError: naming the option, and what lies beside it under a close name.
        ValueError: there is no such public data set.
    """
    for name in several(arguments.dataset):
        get_dataset(name)
    for root in several(arguments.data_root):
        check_folder("data_root", root)
    for one in several(table):
        check_table(option, one)
    check_folder("image_root", arguments.image_root)


def several(given: str | Sequence[str] | None) -> list[str]:
    """What an option names that takes one or several: none, one, or all of them."""
    return [] if given is None else [given] if isinstance(given, str) else list(given)


def check_table(option: str, table: str) -> None:
    """As [`check_table_options`], for one table: a file, a folder or a hub id."""
    from .table_files import is_hub_id

    if not os.path.exists(table) and not is_hub_id(table):
        raise FileNotFoundError(
            f"--{option} {table}: no such table. Expected a file, a folder, or a hub id such as owner/name."
            f"{close_by(table)}"
        )


def check_folder(option: str, folder: str | None) -> None:
    """Raise FileNotFoundError, naming the option, where a folder is given and is none."""
    if folder is not None and not os.path.isdir(os.path.expanduser(folder)):
        state = "is no folder" if os.path.exists(folder) else "does not exist"
        raise FileNotFoundError(f"--{option} {folder} {state}.{close_by(folder)}")


def close_by(path: str) -> str:
    """A sentence on what lies in the same folder under a close name; nothing in private mode."""
    parent = Path(path).expanduser().parent
    if is_private() or not parent.is_dir():
        return ""
    with os.scandir(parent) as entries:
        names = [entry.name for entry, _ in zip(entries, range(10_000), strict=False)]
    close = difflib.get_close_matches(Path(path).name, names, n=1)
    return f" Did you mean {parent / close[0]}?" if close else ""


__all__ = ["check_folder", "check_table", "check_table_options", "close_by", "several"]
