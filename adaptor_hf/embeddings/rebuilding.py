"""What rebuilds leave behind: rows that were embedded anew since, removed one build later, when runs have read them."""

import logging
import shutil
from pathlib import Path

import numpy as np

from .digests import FileChecks
from .files import map_batch
from .manifest import MANIFEST, read_manifest, rebuild
from .pairs import ROWS_FILE, latest_pairs
from .repair import give_up
from .shards import ModalityFolder

logger = logging.getLogger(__name__)


def remove_superseded(cache_dir: Path, folders: list[ModalityFolder]) -> None:
    """Remove the pairs that earlier rebuilds replaced, and the files whose rows were all embedded anew and are in no
    pairs. What is damaged keeps all of it, with a warning.

    Call with the lock held, before anything is computed: what this build itself replaces stays until the next one, for
    runs that read it. Wherever this is killed, every cache that could be read can be read, but those that go.

    Args:
        cache_dir: folder of the pairs.
        folders: images and texts that this build adds to.
    """
    try:
        for modality in folders:
            modality.reload()
        rebuilt = [modality for modality in folders if modality.rebuilt]
        if rebuilt:
            _remove(cache_dir, rebuilt)
    except (ValueError, FileNotFoundError) as error:
        logger.warning("%s. What rebuilds replaced is kept", str(error).removesuffix("."))


def _remove(cache_dir: Path, folders: list[ModalityFolder]) -> None:
    manifests = {place.parent: read_manifest(place.parent) for place in sorted(cache_dir.glob(f"pairs-*/{MANIFEST}"))}
    opened, names = latest_pairs(cache_dir), {modality.path.name for modality in folders}
    newest: dict[str, Path] = {}
    # A killed build may have written pairs that are not opened yet: then both stay.
    for folder in sorted(manifests, key=lambda folder: sum(manifests[folder].get("rebuilt", {}).values())):
        newest[manifests[folder].get("replaces", folder.name)] = folder
    for folder, manifest in list(manifests.items()):
        of_these = names & {manifest.get("images"), manifest.get("texts")}
        if of_these and folder not in newest.values() and folder.name != opened:
            shutil.rmtree(folder)
            del manifests[folder]
    for modality in folders:
        stale = modality.superseded()
        for folder, manifest in manifests.items():
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
