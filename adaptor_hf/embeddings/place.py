"""Where a cache is kept when no folder is named: beside the output folder, so that the next run finds it."""

import functools
import logging
import os
import re
from pathlib import Path

from ..privacy.mode import is_private

logger = logging.getLogger(__name__)

CACHE_DIR = "ADAPTOR_CACHE_DIR"
"""The variable of the environment that names the folder of all caches."""
FOLDER = "embeddings"
PRIVATE = "private-"
"""Before the folder's name in private mode: what only its owner can read must not lie in a folder that others use."""
OUTPUTS = "outputs"
"""Where output folders lie in the documentation: a cache that is built before any run is kept there."""
_OF_A_CACHE = re.compile("(images|texts|pairs)-[0-9a-f]{16}")
# What a build that stopped early has left.
_BEFORE_A_CACHE = {"excluded.csv", "latest.json", "towers.json", "requeue"}


def place_of_cache(output_dir: str | os.PathLike | None = None, cache_dir: str | os.PathLike | None = None) -> Path:
    """
    The folder of a run's cache: the one that is named, else that of ADAPTOR_CACHE_DIR, else `embeddings` in the output
    folder where an earlier run has left a cache there, else `embeddings` beside the output folder, which other runs
    share. Where that cannot be written, or is no folder of a cache, it is `embeddings` in the output folder, which the
    log says. In private mode the folder that is shared is called `private-embeddings`.

    Args:
        output_dir: Of the run; None before there is one: `outputs/...`.
        cache_dir: What the user names.
    """
    if cache_dir is not None:
        return Path(cache_dir)
    before = PRIVATE if is_private() else ""
    if os.environ.get(CACHE_DIR):
        place = Path(os.environ[CACHE_DIR]).expanduser()
        return place.parent / (before + place.name)
    if output_dir is None:
        return Path(OUTPUTS, before + FOLDER)
    inside = Path(output_dir) / FOLDER
    if holds_cache(inside):
        return inside
    beside = Path(os.path.normpath(Path(output_dir) / os.pardir / (before + FOLDER)))
    if os.path.abspath(beside) == os.path.abspath(output_dir):
        return inside
    if (why := _unfit(beside)) is not None:
        _say(
            f"The embeddings are kept in the output folder, where other runs do not look for them: {beside} {why}. "
            f"Name a folder with --cache_dir or {CACHE_DIR}."
        )
        return inside
    return beside


def holds_cache(folder: str | os.PathLike) -> bool:
    """Whether a folder has a cache in it, whole or begun."""
    try:
        return any(_OF_A_CACHE.fullmatch(name) for name in os.listdir(folder))
    except OSError:
        return False


@functools.cache
def _say(text: str) -> None:
    logger.warning(text)


def _unfit(folder: Path) -> str | None:
    """Why a folder cannot take a cache; None where it can. Nothing is made."""
    if folder.is_dir():
        if not os.access(folder, os.R_OK | os.W_OK | os.X_OK):
            return "cannot be written"
        names = {name for name in os.listdir(folder) if not name.startswith(".")}
        return None if holds_cache(folder) or names <= _BEFORE_A_CACHE else "holds something else"
    if folder.exists() or folder.is_symlink():
        return "is no folder"
    parent = folder.parent
    while not parent.exists() and parent != parent.parent:
        parent = parent.parent
    return None if parent.is_dir() and os.access(parent, os.W_OK | os.X_OK) else "cannot be made"


__all__ = ["CACHE_DIR", "FOLDER", "PRIVATE", "holds_cache", "place_of_cache"]
