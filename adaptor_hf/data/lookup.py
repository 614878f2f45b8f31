"""Where the images of a data set are: in folders or in zips, under the name that its table gives or another folder."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from .archives import Member, list_zip
from .files import list_files, record_input

if TYPE_CHECKING:
    import pandas as pd


def paths_by_stem(
    root: Path, folders: Sequence[str] = (".",), zips: Sequence[str] = (), key: Callable[[str], str] | None = None
) -> dict[str, str]:
    """
    Path of the image of each base name without its suffix, relative to `root`; members of zips by their member path.

    Args:
        folders: Searched recursively with one scan.
        zips: Files under `root`; a file of a folder comes before a member of the same stem.
        key: What a stem is looked up by; None takes the stem itself. Of several images of one key the first path in
            alphabetical order is taken.

    Raises:
        ValueError: A zip is damaged or cut short.
    """
    found: dict[str, str] = {}
    for stem, paths in list_files(root, folders).by_stem().items():
        found.setdefault(key(stem) if key else stem, paths[0])
    for name in zips:
        for member, offset, size in list_zip(record_input(Path(root) / name)):
            stem = member.rpartition("/")[2].rpartition(".")[0]
            found.setdefault(key(stem) if key else stem, str(Member(name, member, offset, size)))
    return found


def locate(keys: pd.Series, found: dict[str, str], expected: pd.Series) -> pd.Series:
    """The path of each key, or where it should have been, so that a missing file is counted under that name."""
    return keys.map(found).fillna(expected).astype(object)


def likeliest_folder(root: Path, names: Sequence[str], folders: Sequence[str]) -> str:
    """The folder, "" or ending in "/", that holds most of a sample of the names; the first where none holds any."""
    sample = names[:: max(1, len(names) // 100)]
    hits = {folder: sum(os.path.isfile(os.path.join(root, folder, name)) for name in sample) for folder in folders}
    return max(folders, key=lambda folder: hits[folder])


__all__ = ["likeliest_folder", "locate", "paths_by_stem"]
