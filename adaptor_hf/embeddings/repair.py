"""Gives up damaged shards, so that a build embeds their rows again and no others."""

import os
from pathlib import Path

from ..folder_lock import only_writer
from .digests import FileChecks
from .manifest import MANIFEST, modality_files, read_manifest, write_record


def repair_cache(path: str | os.PathLike) -> dict[str, int]:
    """Delete damaged files of embeddings in a cache folder, and note in their manifests that their rows are lost.

    Other rows keep their numbers. The same builds embed the lost rows again; pairs that need one do not open before.
    Damaged pairs, and names of moved images, need no repair: a build writes them anew.

    Args:
        path: cache folder, with one or several caches in it.

    Returns:
        Rows of each file that was given up, by its name relative to `path`; missing ones are among them.

    Raises:
        FileNotFoundError: no cache there.
        ValueError: a manifest is damaged, or the damaged embeddings were imported.
        BlockingIOError: another process builds in it.
        OSError: the folder cannot be written.
    """
    path = Path(path)
    folders = sorted({place.parent for name in ("images", "texts") for place in path.glob(f"{name}-*/{MANIFEST}")})
    # Of a build that was not finished nothing is given up: it computes damaged pieces again.
    if not folders and not any(path.glob("*-*/building-*")):
        raise FileNotFoundError(f"{path} holds no embedding cache")
    lost: dict[str, int] = {}
    with only_writer(path, "build", what="build", option="cache_dir", strict=False):
        for folder in folders:
            lost |= {f"{folder.name}/{name}": rows for name, rows in _give_up(folder).items()}
    return lost


def _give_up(folder: Path) -> dict[str, int]:
    manifest = read_manifest(folder)
    damaged = []
    for entry in modality_files(manifest):
        try:
            FileChecks("full").check(folder, [entry], "", "sha256")
        except (FileNotFoundError, ValueError):
            damaged.append(entry)
    if damaged and manifest["identity"].get("library") == "external":
        raise ValueError(f"{folder / damaged[0]['file']} is damaged and was imported. Delete {folder} and import again")
    give_up(folder, {entry["file"] for entry in damaged})
    return {entry["file"]: entry["rows"] for entry in damaged}


def give_up(folder: Path, files: set[str]) -> None:
    """Note in the manifest of images or texts that these files are lost, and delete them."""
    if not files:
        return
    manifest = read_manifest(folder)

    def noted(shards: list[dict]) -> list[dict]:
        return [shard | {"lost": True} if shard["file"] in files else shard for shard in shards]

    changed = {"shards": noted(manifest["shards"])}
    if "columns" in manifest:
        columns = manifest["columns"].items()
        changed["columns"] = {name: entry | {"shards": noted(entry["shards"])} for name, entry in columns}
    # First what says so: a kill in between leaves a file that is not read.
    write_record(folder / MANIFEST, manifest | changed)
    for name in files:
        (folder / name).unlink(missing_ok=True)
