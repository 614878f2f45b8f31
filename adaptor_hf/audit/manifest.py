"""
`manifest.json`: a SHA-256 for each input, split and file of a run, written by both scripts at their end.

It is no signature: who can change a result can change the manifest too. `python -m adaptor_hf.verify` therefore also
computes the numbers again.
"""

from __future__ import annotations

import fnmatch
import logging
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..embeddings.manifest import read_manifest
from ..embeddings.place import FOLDER, PRIVATE
from ..embeddings.verify import written_digests
from ..evaluation.results import RESULTS_FILE, RETRIEVAL_FILE, read_results
from ..evaluation.tasks import TASKS
from ..file_records import (
    MANIFEST_FILE,
    SUMS_FILE,
    TOWER_FOLDERS,
    check_model,
    content_sha256,
    read_json_object,
    read_run_manifest,
    read_sums,
    write_manifest,
)
from ..file_records import differences as changed_files
from ..files import file_sha256
from ..folder_lock import only_writer
from ..privacy.mode import is_private, key_name

if TYPE_CHECKING:
    from ..embeddings import EmbeddingCache

logger = logging.getLogger(__name__)

NOT_COVERED = {
    MANIFEST_FILE: "it has a digest of its own content",
    "checkpoint-*/*": "each has its own `checkpoint.json`, which `verify` compares; it may be deleted after the run",
    "*/embeddings/*": "a cache serves several runs and grows; the run names the files and settings that it read",
    "events.out.tfevents.*": "TensorBoard may write it until the process ends",
    "*.log": "written by the scheduler or the user, perhaps until after the run",
    "*.out": "as logs",
    "*.err": "as logs",
    "*.lock": "empty, and of the moment",
    "requeue": "for the job script, and of the moment",
    "progress*": "of the moment",
    "sweep.json": "a sweep's list of jobs, rewritten after each; says what is left to do",
    "*.damaged": "a file that was set aside",
    "*.earlier_probe": "a file that was set aside",
    ".*": "hidden files, among them what a killed process left",
    "*.partial": "what a killed process left",
    "*.tmp": "what a killed process left",
}
"""Files beside a run's own that the manifest leaves out, and why."""
_OF_TOWERS = tuple(f"{name}/*" for name in TOWER_FOLDERS)
_OF_CHECKPOINT = ("*", "controls/*/*", *_OF_TOWERS, *(f"controls/*/{pattern}" for pattern in _OF_TOWERS))
# Of a run whose towers trained, beside it the Adaptor on the towers as they started.
_OF_PRETRAINING = (*_OF_CHECKPOINT, *(f"frozen_towers/{pattern}" for pattern in _OF_CHECKPOINT))
# Beside `model` those of fine-tuned towers, such as `model-lora`.
_OF_DOWNSTREAM = ("*", "runs/*/*", "model*/*", *(f"model*/{pattern}" for pattern in _OF_TOWERS))
_SETTINGS = (
    "content", "dtype", "identity", "key", "max_text_length", "tower", "image_tower", "text_tower", "images", "texts",
)  # fmt: skip
"""What of a cache's `cache.json` stays the same when the cache grows."""


def write_pretraining_manifest(
    folder: str | os.PathLike,
    cache: EmbeddingCache,
    table: str | Sequence[str] | None = None,
    held_out: EmbeddingCache | None = None,
) -> Path:
    """
    Manifest of a pre-training run, when all its files are written.

    Args:
        folder (`str` or `PathLike`): Of the run.
        cache (`EmbeddingCache`): All rows; its files, ids and splits are named by digests.
        table (`str` or `Sequence[str]`, *optional*): What the pairs were read from; of several sources each.
        held_out (`EmbeddingCache`, *optional*): Of a run whose towers trained, what its retrieval was measured on.
    """
    folder = Path(folder)
    tables = [table] if table is None or isinstance(table, str) else list(table)
    caches = [_cache(folder, member) for member in cache.members]
    inputs = {
        "table": _table(tables[0]) if len(tables) == 1 else [_table(one) for one in tables],
        "cache": caches[0],
    }
    if len(caches) > 1:
        how = {name: cache.manifest[name] for name in ("names", "one_namespace")}
        inputs["cache"] = {"fingerprint": cache.fingerprint, "joined": caches} | how
    if held_out is not None:
        inputs["held_out"] = _cache(folder, held_out)
    files = {name: file_sha256(folder / name) for name in covered_files(folder, _OF_PRETRAINING)}
    return _write(folder, "train_pretrain", inputs, split_digests(cache), files)


def _cache(folder: Path, cache: EmbeddingCache) -> dict[str, Any]:
    files = cache.digests()
    return {
        "folder": relative_to_run(folder, cache.path),
        "fingerprint": cache.fingerprint,
        "files": files,
        "settings": cache_settings(cache.path.parent, sorted({name.partition("/")[0] for name in files})),
    }


def refuse_folder_of(script: str, folder: str | os.PathLike) -> None:
    """Raise ValueError if a folder has the manifest of the other script, which this one would overwrite."""
    path = Path(folder) / MANIFEST_FILE
    try:
        found = read_json_object(path).get("script") if path.is_file() else script
    except (OSError, ValueError):
        return
    if found != script and found in ("train_pretrain", "train_downstream"):
        raise ValueError(
            f"--output_dir is the folder of a finished {found}.py run, whose {MANIFEST_FILE} would be lost. Choose "
            "another --output_dir."
        )


def files_before(folder: str | os.PathLike) -> dict[str, str]:
    """SHA-256 of what lies in a downstream folder when a call starts; for `write_downstream_manifest`."""
    folder = Path(folder)
    if not folder.is_dir():
        return {}
    return {name: file_sha256(folder / name) for name in covered_files(folder, downstream_patterns())}


def write_downstream_manifest(
    folder: str | os.PathLike,
    models: Iterable[str],
    cache_dir: str | os.PathLike,
    table: str | None = None,
    before: Mapping[str, str] | None = None,
    check: str | None = None,
) -> Path:
    """
    Manifest of everything in a downstream folder, runs of earlier calls among it. A file that this call did not write
    keeps the digest that it had when it was written.

    Args:
        folder (`str` or `PathLike`): That holds `runs`.
        models (`Iterable[str]`): Checkpoints that were evaluated.
        cache_dir (`str` or `PathLike`): Of the embeddings.
        table (`str`, *optional*): What the rows were read from.
        before (`Mapping[str, str]`, *optional*): As of `files_before`, from the start of the call.
        check (`str`, *optional*): Which of the embeddings' files were compared with their digests.
    """
    folder, cache_dir, before = Path(folder), Path(cache_dir), before or {}
    # One after the other: the last of several commands in one folder finds the runs of all.
    with only_writer(folder, "manifest", what="process", strict=False, timeout=math.inf):
        earlier = _earlier(folder)
        digests = written_digests(cache_dir)
        used = [_model(folder, Path(model)) for model in models]
        places = {model["folder"] for model in used} - {None}
        kept = [model for model in earlier.get("inputs", {}).get("models", []) if model["folder"] not in places]
        inputs = {
            "table": _table(table),
            "cache": {
                "folder": relative_to_run(folder, cache_dir),
                "files": digests,
                "settings": cache_settings(cache_dir, sorted({name.partition("/")[0] for name in digests})),
            }
            | ({} if check is None else {"check": check}),
            "models": [model for number, model in enumerate([*kept, *used]) if model not in [*kept, *used][:number]],
        }
        splits = {}
        if any(folder.glob(f"runs/*/{RESULTS_FILE}")):
            for line in read_results(folder / "runs").lines:
                splits[line["test_set"] or line["dataset"]] = line["split_hash"]
        return _write(folder, "train_downstream", inputs, splits, _digests(folder, earlier.get("files", {}), before))


def _digests(folder: Path, earlier: Mapping[str, str], before: Mapping[str, str]) -> dict[str, str]:
    """Of each file the digest from when it was written: now, in an earlier call, or as its run's own record has it."""
    names = covered_files(folder, downstream_patterns())
    # What was missing when the call started is still missing.
    found = {name: digest for name, digest in earlier.items() if name not in names and name not in before}
    for name in names:
        now = file_sha256(folder / name)
        of_run = name.startswith("runs/") and Path(name).name != SUMS_FILE
        if before.get(name) == now and name in earlier:
            found[name] = earlier[name]
        elif not of_run:
            found[name] = now
        elif digest := _sums(folder / name).get(Path(name).name):
            found[name] = digest
        # A run without any record is left out, and verify names it.
    return found


def _sums(path: Path) -> dict[str, str]:
    try:
        return read_sums(path.parent) or {}
    except ValueError:
        return {}


def _earlier(folder: Path) -> dict[str, Any]:
    """The manifest of earlier calls; what cannot be read is none, and its runs' own records remain."""
    try:
        manifest = read_run_manifest(folder)
    except (OSError, ValueError):
        return {}
    return manifest if manifest["script"] == "train_downstream" else {}


def pretraining_patterns() -> tuple[str, ...]:
    """Names of what a pre-training run leaves, for `covered_files`."""
    return _OF_PRETRAINING


def downstream_patterns() -> tuple[str, ...]:
    """Names of what downstream runs leave, for `covered_files`."""
    return (*_OF_DOWNSTREAM, *dict.fromkeys(name for task in TASKS.values() for name in task.files))


def covered_files(folder: Path, patterns: Iterable[str]) -> list[str]:
    """Names, relative to a run's folder, of the files that its manifest lists."""
    found = {
        path.relative_to(folder).as_posix() for pattern in patterns for path in folder.glob(pattern) if path.is_file()
    }
    return sorted(name for name in found if why_not_covered(name) is None)


def why_not_covered(name: str) -> str | None:
    """Why a manifest leaves a file out, by its name relative to the run; None for those that it lists."""
    base = name.rpartition("/")[2]
    for pattern, why in NOT_COVERED.items():
        whole = "/" in pattern
        if fnmatch.fnmatchcase(f"/{name}" if pattern.startswith("*/") else name if whole else base, pattern):
            return why
    return None


def cache_settings(cache_dir: Path, folders: Iterable[str]) -> dict[str, str]:
    """A digest of each cache folder's settings: towers, reading of images, pooling, lengths of texts."""
    found = {}
    for name in folders:
        manifest = read_manifest(cache_dir / name)
        found[name] = content_sha256({key: manifest[key] for key in _SETTINGS if key in manifest})
    return found


def split_digests(cache: EmbeddingCache) -> dict[str, str]:
    """The split's hash over all rows as `all`, and that of each part's rows."""
    from ..data.splits import split_hash

    parts = {name: split_hash(cache.split(name).pairs) for name in sorted(cache.splits)}
    return {"all": split_hash(cache.pairs)} | parts


def relative_to_run(folder: Path, place: Path) -> str | None:
    """
    A path relative to the run where it lies inside, or in the cache beside it that runs share; elsewhere absolute, or
    None in private mode.
    """
    inside, place = folder.resolve(), place.resolve()
    if place.is_relative_to(inside):
        return place.relative_to(inside).as_posix()
    if any(place.is_relative_to(inside.parent / name) for name in (FOLDER, PRIVATE + FOLDER)):
        return f"../{place.relative_to(inside.parent).as_posix()}"
    return None if is_private() else str(place)


def _model(folder: Path, place: Path) -> dict[str, Any]:
    """Place of a checkpoint and digests of its files, as it was checked before its use; of a hub id neither."""
    if not place.is_dir():
        return {"folder": None, "sha256": None, "state": "unverified", "files": {}}
    try:
        state, files = check_model(place)
    except (OSError, ValueError) as error:
        # It was right when the call started; results must not be lost for what happened to it since.
        logger.warning("The model was changed during the run: %s", error)
        state, files = "changed", {}
    return {
        "folder": relative_to_run(folder, place),
        "sha256": files.get("model.safetensors"),
        "state": state,
        "files": files,
    }


def _table(table: str | None) -> dict[str, Any] | None:
    """Digest of a table that is one file; of a folder or a hub id None."""
    return {"sha256": file_sha256(Path(table))} if table is not None and Path(table).is_file() else None


def _write(folder: Path, script: str, inputs: dict, splits: dict[str, str], files: dict[str, str]) -> Path:
    content = {"script": script, "private_key": key_name(), "inputs": inputs, "splits": splits, "files": files}
    return write_manifest(folder, content)


__all__ = [
    "MANIFEST_FILE",
    "NOT_COVERED",
    "RETRIEVAL_FILE",
    "cache_settings",
    "changed_files",
    "covered_files",
    "downstream_patterns",
    "files_before",
    "pretraining_patterns",
    "read_run_manifest",
    "refuse_folder_of",
    "relative_to_run",
    "split_digests",
    "why_not_covered",
    "write_downstream_manifest",
    "write_pretraining_manifest",
]
