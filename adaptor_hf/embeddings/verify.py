"""Checks a whole cache against its checksums."""

import os
from pathlib import Path

from .files import check_files, map_batches, read_manifest


def verify_cache(path: str | os.PathLike) -> dict[str, int]:
    """Compute the SHA-256 of every committed file of a cache folder again and compare.

    Args:
        path: cache folder, with one or several caches in it.

    Returns:
        Rows of each folder that was checked.

    Raises:
        FileNotFoundError: no cache there, or a file is missing (named).
        ValueError: a file is damaged (named), or of another version.
    """
    folders = [folder for folder in sorted(Path(path).glob("*-*")) if folder.is_dir() and folder.name[0] != "."]
    checked = {}
    for folder in folders:
        if not (folder / "cache.json").exists() and any(folder.glob("building-*")):
            continue  # a build that was interrupted; nothing is committed
        manifest = read_manifest(folder)
        check_files(folder, manifest["shards"], force=True)
        for shard in manifest["shards"]:
            map_batches(folder / shard["file"])
        checked[folder.name] = manifest["rows"]
    if not checked:
        raise FileNotFoundError(f"{path} holds no embedding cache")
    return checked
