"""Gives up damaged shards, so that a build embeds their rows again and no others."""

import os
from pathlib import Path

from ..folder_lock import only_writer
from .digests import FileChecks
from .manifest import MANIFEST, read_manifest, write_record


def repair_cache(path: str | os.PathLike) -> dict[str, int]:
    """Delete the shards of a cache folder that are damaged, and note in their manifests that their rows are lost.

    Other rows keep their numbers. The same builds embed the lost rows again; pairs that need one do not open before.
    Damaged pairs, and names of moved images, need no repair: a build writes them anew.

    Args:
        path: cache folder, with one or several caches in it.

    Returns:
        Rows of each shard that was given up, by its name relative to `path`; missing ones are among them.

    Raises:
        FileNotFoundError: no cache there.
        ValueError: a manifest is damaged, or the damaged embeddings were imported.
        BlockingIOError: another process builds in it.
        OSError: the folder cannot be written.
    """
    path = Path(path)
    folders = sorted({place.parent for name in ("images", "texts") for place in path.glob(f"{name}-*/{MANIFEST}")})
    if not folders:
        raise FileNotFoundError(f"{path} holds no embedding cache")
    lost: dict[str, int] = {}
    with only_writer(path, "build", what="build", option="cache_dir", strict=False):
        for folder in folders:
            lost |= {f"{folder.name}/{name}": rows for name, rows in _give_up(folder).items()}
    return lost


def _give_up(folder: Path) -> dict[str, int]:
    manifest = read_manifest(folder)
    damaged = []
    for shard in manifest["shards"]:
        try:
            FileChecks("full").check(folder, [shard], "", "sha256")
        except (FileNotFoundError, ValueError):
            damaged.append(shard)
    if not damaged:
        return {}
    if manifest["identity"].get("library") == "external":
        raise ValueError(f"{folder / damaged[0]['file']} is damaged and was imported. Delete {folder} and import again")
    shards = [shard | {"lost": True} if shard in damaged else shard for shard in manifest["shards"]]
    # First what says so: a kill in between leaves a file that is not read.
    write_record(folder / MANIFEST, manifest | {"shards": shards})
    for shard in damaged:
        (folder / shard["file"]).unlink(missing_ok=True)
    return {shard["file"]: shard["rows"] for shard in damaged}
