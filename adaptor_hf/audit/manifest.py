"""
`manifest.json`: a SHA-256 for each input, split and result of a run, written by both scripts at their end.

It is no signature: who can change a result can change the manifest too. `python -m adaptor_hf.verify` therefore also
computes the numbers again.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..data.training_rows import TRAINING_ROWS_FILE
from ..embeddings.files import write_json
from ..evaluation.results import RETRIEVAL_FILE
from ..evaluation.tasks import TASKS
from ..files import file_sha256
from ..privacy.mode import is_private, key_name

if TYPE_CHECKING:
    from ..embeddings import EmbeddingCache

MANIFEST_FILE = "manifest.json"
VERSION = 1
_OF_PRETRAINING = (
    "model.safetensors",
    "config.json",
    "run.json",
    "training_args.json",
    RETRIEVAL_FILE,
    TRAINING_ROWS_FILE,
    "controls/*/model.safetensors",
)
_OF_DOWNSTREAM = ("runs/*/predictions.parquet", "runs/*/results.jsonl")


def write_pretraining_manifest(folder: str | os.PathLike, cache: EmbeddingCache, table: str | None = None) -> Path:
    """
    Manifest of a pre-training run, when all its files are written.

    Args:
        folder (`str` or `PathLike`): Of the run.
        cache (`EmbeddingCache`): All rows; its files, ids and splits are named by digests.
        table (`str`, *optional*): What the pairs were read from.
    """
    folder = Path(folder)
    inputs = {"table": _table(table), "cache": {
        "folder": relative_to_run(folder, cache.path), "fingerprint": cache.fingerprint, "files": cache.digests(),
    }}  # fmt: skip
    return _write(folder, "train_pretrain", inputs, split_digests(cache), _OF_PRETRAINING)


def write_downstream_manifest(
    folder: str | os.PathLike,
    models: Iterable[str],
    cache_dir: str | os.PathLike,
    table: str | None = None,
    check: str = "touched",
) -> Path:
    """
    Manifest of everything in a downstream folder, runs of earlier calls among it.

    Args:
        folder (`str` or `PathLike`): That holds `runs`.
        models (`Iterable[str]`): Checkpoints that were evaluated.
        cache_dir (`str` or `PathLike`): Of the embeddings.
        table (`str`, *optional*): What the rows were read from.
        check (`str`, defaults to `"touched"`): Which of the embeddings' files were compared with their digests.
    """
    from ..embeddings.verify import written_digests
    from ..evaluation.results import RESULTS_FILE, read_results

    folder, cache_dir = Path(folder), Path(cache_dir)
    weights = [Path(model) / "model.safetensors" for model in models]
    inputs = {
        "table": _table(table),
        "cache": {"folder": relative_to_run(folder, cache_dir), "files": written_digests(cache_dir), "check": check},
        "models": [_model(folder, path) for path in weights],
    }
    splits = {}
    if any(folder.glob(f"runs/*/{RESULTS_FILE}")):
        for line in read_results(folder / "runs").lines:
            splits[line["test_set"] or line["dataset"]] = line["split_hash"]
    files = dict.fromkeys(name for task in TASKS.values() for name in task.files)
    return _write(folder, "train_downstream", inputs, splits, (*_OF_DOWNSTREAM, *files))


def split_digests(cache: EmbeddingCache) -> dict[str, str]:
    """The split's hash over all rows as `all`, and that of each part's rows."""
    from ..data.splits import split_hash

    parts = {name: split_hash(cache.split(name).pairs) for name in sorted(cache.splits)}
    return {"all": split_hash(cache.pairs)} | parts


def read_run_manifest(folder: str | os.PathLike) -> dict[str, Any]:
    """
    Raises:
        FileNotFoundError: there is none: the run did not end, or is older than manifests.
        ValueError: it is damaged, or of another version.
    """
    path = Path(folder) / MANIFEST_FILE
    if not path.is_file():
        raise FileNotFoundError(
            f"{path} is missing: the run did not come to its end, or an older version of this package made it."
        )
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
        version = manifest["version"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is damaged ({type(error).__name__}: {error}).") from error
    if version != VERSION:
        raise ValueError(f"{path} is of version {version}; this package reads version {VERSION}.")
    return manifest


def changed_files(folder: Path, expected: Mapping[str, str]) -> list[str]:
    """A sentence for each file that is missing or has another SHA-256 than expected."""
    found = []
    for name, digest in expected.items():
        path = folder / name
        if not path.is_file():
            found.append(f"{name} is missing.")
        elif file_sha256(path) != digest:
            found.append(f"{name} is not the file of the manifest: its SHA-256 is another one.")
    return found


def relative_to_run(folder: Path, place: Path) -> str | None:
    """A path relative to the run where it lies inside; elsewhere absolute, or None in private mode."""
    inside, place = folder.resolve(), place.resolve()
    if place.is_relative_to(inside):
        return place.relative_to(inside).as_posix()
    return None if is_private() else str(place)


def _model(folder: Path, weights: Path) -> dict[str, Any]:
    """Place and digest of a checkpoint's weights; of a hub id neither."""
    if not weights.is_file():
        return {"folder": None, "sha256": None}
    return {"folder": relative_to_run(folder, weights.parent), "sha256": file_sha256(weights)}


def _table(table: str | None) -> dict[str, Any] | None:
    """Digest of a table that is one file; of a folder or a hub id None."""
    return {"sha256": file_sha256(Path(table))} if table is not None and Path(table).is_file() else None


def _write(folder: Path, script: str, inputs: dict, splits: dict[str, str], patterns: Iterable[str]) -> Path:
    names = sorted(path.relative_to(folder).as_posix() for pattern in patterns for path in folder.glob(pattern))
    manifest = {
        "version": VERSION,
        "script": script,
        "private_key": key_name(),
        "inputs": inputs,
        "splits": splits,
        "files": {name: file_sha256(folder / name) for name in names},
    }
    path = folder / MANIFEST_FILE
    write_json(path, manifest)
    return path


__all__ = [
    "MANIFEST_FILE",
    "changed_files",
    "read_run_manifest",
    "relative_to_run",
    "split_digests",
    "write_downstream_manifest",
    "write_pretraining_manifest",
]
