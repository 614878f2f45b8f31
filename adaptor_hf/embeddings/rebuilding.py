"""What a rebuild leaves behind: rows that were embedded anew since, removed when nothing needs them."""

import shutil
from pathlib import Path

import numpy as np

from .digests import FileChecks
from .files import map_batch
from .manifest import MANIFEST, read_manifest, rebuild
from .pairs import ROWS_FILE
from .repair import give_up
from .shards import ModalityFolder


def remove_superseded(pairs: Path, folders: list[ModalityFolder]) -> None:
    """Remove the pairs that a rebuild replaced, and the files whose rows were all embedded anew and are in no pairs.

    Call with the lock held, when the new pairs are written and are those that are opened: up to then, and wherever
    this is killed, every cache that could be read can be read.

    Args:
        pairs: folder of the new pairs.
        folders: of their images and texts.

    Raises:
        ValueError, FileNotFoundError: other pairs are damaged, so that it cannot be said what they need.
    """
    replaced = read_manifest(pairs)["replaces"]
    users = []
    for folder in (place.parent for place in pairs.parent.glob(f"pairs-*/{MANIFEST}")):
        manifest = read_manifest(folder)
        if folder != pairs and replaced in (folder.name, manifest.get("replaces")):
            shutil.rmtree(folder)
        else:
            users.append((folder, manifest))
    for modality in folders:
        modality.reload()
        stale = modality.superseded()
        for folder, manifest in users:
            if manifest.get(modality.name) == modality.path.name:
                FileChecks().check(folder, manifest["shards"], rebuild(folder))
                rows = map_batch(folder / ROWS_FILE).column(f"{modality.name[:-1]}_row").to_numpy()
                stale[rows[rows >= 0]] = False
        give_up(modality.path, _files_within(modality.manifest, stale))
        modality.reload()


def _files_within(manifest: dict, rows: np.ndarray) -> set[str]:
    """Names of the files all rows of which are among these (n,) bool."""
    found = set()
    for shards in (manifest["shards"], *(column["shards"] for column in manifest.get("columns", {}).values())):
        stop = 0
        for entry in shards:
            start, stop = stop, stop + entry["rows"]
            if rows[start:stop].all() and not entry.get("lost"):
                found.add(entry["file"])
    return found
