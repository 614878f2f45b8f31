"""Which runs are private, by their manifests: what is made of others would carry their names on."""

from __future__ import annotations

import os
from pathlib import Path

from ..files import read_json
from .mode import speaks_privately

_MANIFEST, _RECORDS = "manifest.json", ("results.jsonl", "run.json", "retrieval.json")
# runs/NAME/results.jsonl lies two folders below its manifest.
_LEVELS = 3


def check_private_runs(place: str | os.PathLike) -> None:
    """
    Where private mode was asked for, refuse runs that are not private.

    Args:
        place (`str` or `PathLike`): Folder of a run or of many, or a file of results.

    Raises:
        ValueError: with their number, and what to do.
    """
    if not speaks_privately():
        return
    place = Path(place)
    found = [place] if place.is_file() else [path for name in _RECORDS for path in place.rglob(name)]
    others = [path for path in found if not _is_private(path)]
    if others:
        raise ValueError(
            f"{len(others)} of {len(found)} files of results or records are not of a private run: what is made of them "
            "would have their names and places. Make the runs anew with --private and --key_file, or run this where "
            "only you read it, without private mode (docs/privacy.md)."
        )


def _is_private(path: Path) -> bool:
    for folder in list(path.absolute().parents)[:_LEVELS]:
        if (folder / _MANIFEST).is_file():
            try:
                return bool(read_json(folder / _MANIFEST)["private_key"])
            except (OSError, ValueError, KeyError, TypeError):
                return False
    return False


__all__ = ["check_private_runs"]
