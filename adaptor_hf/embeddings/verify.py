"""Checks a whole cache against what was written."""

import logging
import os
from pathlib import Path

from .digests import FileChecks
from .files import map_batches
from .keys import check_key, check_tower
from .manifest import MANIFEST, modality_files, read_manifest, rebuild, repair
from .pairs import latest_pairs
from .pieces import read_piece
from .reader import EmbeddingCache
from .shards import check_aliases
from .source import read_towers

logger = logging.getLogger(__name__)


def verify_cache(path: str | os.PathLike) -> dict[str, int]:
    """Compare every file of a cache folder with the digests that were taken when it was written, by SHA-256.

    Also the pieces of a build that is under way, and whether pairs and embeddings belong together. The list
    `excluded.csv` of the cache folder itself is a copy for readers, and is not compared.

    Args:
        path: cache folder, with one or several caches in it.

    Returns:
        Rows of each folder that was checked, and pieces of each unfinished build, by `<folder>/building-<plan>`.

    Raises:
        FileNotFoundError: no cache there, or a file is missing (named).
        ValueError: a file is damaged (named), or of another version.
    """
    path = Path(path)
    folders = [folder for folder in sorted(path.glob("*-*")) if folder.is_dir() and folder.name[0] != "."]
    checked = {}
    for folder in folders:
        for build in sorted(folder.glob("building-*")):
            records = sorted(build.glob("*/piece-*.json"))
            for record in records:
                read_piece(record.with_suffix(".arrow"), "The next build computes it again")
            checked[f"{folder.name}/{build.name}"] = len(records)
        if not (folder / MANIFEST).exists() and any(folder.glob("building-*")):
            continue  # a build that was interrupted; nothing is committed
        manifest = read_manifest(folder)
        advice = rebuild(folder) if manifest["content"] == "pairs" else repair(folder)
        files = modality_files(manifest)
        FileChecks("full").check(folder, files, advice, "sha256")
        for shard in (entry for entry in files if "rows" in entry):
            rows = sum(len(batch) for batch in map_batches(folder / shard["file"]))
            if rows != shard["rows"]:
                raise ValueError(
                    f"{folder / shard['file']} has {rows} rows, its manifest says {shard['rows']}. {rebuild(folder)}"
                )
        if manifest["content"] != "pairs":
            check_key(folder, manifest, rebuild(folder))
            check_tower(folder, manifest["tower"], manifest["identity"], rebuild(folder))
            check_aliases(folder, manifest["version"])
        checked[folder.name] = manifest["rows"]
    if not checked:
        raise FileNotFoundError(f"{path} holds no embedding cache")
    for name in checked:
        if name.startswith("pairs-"):
            EmbeddingCache(path / name, checks=FileChecks().done_elsewhere())  # its files were compared above
    latest_pairs(path)
    read_towers(path)
    return checked


def written_digests(path: str | os.PathLike) -> dict[str, str]:
    """SHA-256, as written, of the files of all finished caches in a folder, by their names relative to it.

    They come from the manifests, whose own digests are compared; the files are not read. A damaged manifest, of what
    was not used, is named in a warning and left out.

    Args:
        path: cache folder; one that is not there has no files.
    """
    found = {}
    for folder in sorted(place.parent for place in Path(path).glob(f"*-*/{MANIFEST}")):
        if folder.name.startswith("."):
            continue
        try:
            manifest = read_manifest(folder)
        except ValueError as error:
            logger.warning("%s. Its files are left out of the run's manifest", str(error).removesuffix("."))
            continue
        for entry in modality_files(manifest):
            found[f"{folder.name}/{entry['file']}"] = entry["sha256"]
    return found
