"""What is in a cache: digests of the content of image files, and what is stored beside the pooled vectors."""

from __future__ import annotations

import logging
import os
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..data.content_keys import IMAGE_BLOCK_ROWS, KEY_DTYPE, blocks, content_key, digest, image_reference, key_vector
from ..privacy.mode import key_name, keyed_digests
from ..progress import progress
from .columns import column_of
from .digests import FileChecks
from .files import key_view, map_batch
from .lookup import find_keys
from .manifest import MANIFEST, read_manifest, repair
from .table import image_key

if TYPE_CHECKING:
    from datasets import Dataset

    from .reader import EmbeddingCache

logger = logging.getLogger(__name__)

SHOWN_FROM = 5000  # files; fewer take seconds


def content_digests(
    dataset: Dataset, cache_dir: str | os.PathLike | None = None, *, check: str = "touched"
) -> np.ndarray:
    """
    Digest of each row's image file, as a cache's `image_digests` has them.

    Args:
        dataset (`datasets.Dataset`): With a column `image`, which is not decoded.
        cache_dir (`str` or `PathLike`, *optional*): Where embeddings are kept: files that were embedded there, and are
            as they were, are not read again.
        check (`str`, defaults to `"touched"`): As of `open_cache`.

    Returns:
        `np.ndarray` of shape `(n,)` and dtype `S16`; empty for an image that cannot be read. Keyed in private mode.
    """
    known, contents = _known(cache_dir, FileChecks(check))
    found = np.zeros(len(dataset), KEY_DTYPE)
    missing: list[tuple[int, str]] = []
    for start, values in blocks(dataset.with_format("arrow"), "image", IMAGE_BLOCK_ROWS):
        sources, places = [], []
        for offset, value in enumerate(values):
            path, data = image_reference(value)
            if data is not None:
                found[start + offset] = keyed_digests(key_vector([digest(data)]))[0]
            elif path:
                sources.append(image_key(value)[0])
                places.append((start + offset, path))
        rows = find_keys(known, keyed_digests(key_vector(sources))) if sources else []
        for row, (place, path) in zip(rows, places, strict=True):
            if row >= 0:
                found[place] = contents[row]
            else:
                missing.append((place, path))
    if missing:
        with progress(len(missing), "comparing image files", shown=len(missing) > SHOWN_FROM) as bar:
            for place, path in missing:
                # The task that reads the image says what is wrong with it.
                with suppress(OSError):
                    found[place] = keyed_digests(key_vector([content_key(path)]))[0]
                bar.update(1)
    return found


def stored_fields(cache: EmbeddingCache) -> dict[str, dict[str, Any]]:
    """Of each column beside the pooled vectors its shape, dtype, size in megabytes and further fields, by name."""
    return {
        name: {
            "shape": entry["shape"],
            "dtype": entry["dtype"],
            "megabytes": round(sum(shard["bytes"] for shard in entry["shards"] if not shard.get("lost")) / 1e6, 1),
        }
        | column_of(name, entry).info
        for manifest in cache.modality_manifests().values()
        for name, entry in manifest.get("columns", {}).items()
    }


def _known(cache_dir: str | os.PathLike | None, checks: FileChecks) -> tuple[np.ndarray, np.ndarray]:
    """Source keys and content digests of all images that were embedded in a folder under the key that is in force."""
    none = np.empty(0, KEY_DTYPE)
    sources, contents = [none], [none]
    for folder in sorted(Path(cache_dir).glob("images-*")) if cache_dir is not None else ():
        if not (folder / MANIFEST).is_file():
            continue
        try:
            manifest = read_manifest(folder, check=checks.metadata)
            checks.check(folder, manifest["shards"], repair(folder))
        except (FileNotFoundError, ValueError) as error:
            logger.warning("%s. It is not used here: image files are read instead", str(error).removesuffix("."))
            continue
        identity = manifest.get("identity", {})
        if identity.get("private") != key_name() or identity.get("library") == "external":
            continue
        for shard in (shard for shard in manifest["shards"] if not shard.get("lost")):
            batch = map_batch(folder / shard["file"])
            sources.append(key_view(batch, "source"))
            contents.append(key_view(batch, "digest"))
    return np.concatenate(sources), np.concatenate(contents)


__all__ = ["content_digests", "stored_fields"]
