"""
Records of files: their SHA-256 as they were written, and the comparison with what is there now.

Three records are read: `manifest.json` of a run, `checkpoint.json` of a training checkpoint, and `SHA256SUMS` of a
single downstream run, which `sha256sum -c` checks too. None is a signature: who changes files and record together is
not noticed.
"""

from __future__ import annotations

import fnmatch
import hashlib
import json
import logging
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from .files import file_sha256, parse_json, read_regular, write_aside

logger = logging.getLogger(__name__)

MANIFEST_FILE = "manifest.json"
CHECKPOINT_FILE = "checkpoint.json"
SUMS_FILE = "SHA256SUMS"
MAX_RECORD_BYTES = 64 * 1024**2
MANIFEST_VERSIONS = (1, 2)
LOADED = (
    "*.safetensors", "*.safetensors.index.json", "*.bin", "*.bin.index.json", "config.json", "*_config.json",
    "tokenizer.json", "*.model", "special_tokens_map.json", "added_tokens.json", "vocab.*", "merges.txt",
    "chat_template*", "*.py", "training_rows.key", "tower.json",
)  # fmt: skip
"""Files of a model's folder that decide what it computes, or what is known of its training rows."""
TOWER_FOLDERS = ("vision_tower", "text_tower")
"""Folders of a model's trained towers, in its own."""
MAY_BE_DELETED = ("training_rows.key",)
"""A secret that its owner may want to be rid of; where it is there it must be the one that was written."""
READ_ERRORS = (OSError, ValueError, TypeError, AttributeError, LookupError, ArithmeticError, RecursionError)
"""What a file that someone changed by hand may lead to: values of any kind, anywhere."""
_SHA256 = re.compile(r"[0-9a-f]{64}")
_checked: dict[Path, tuple[int, int, str]] = {}


class Record(NamedTuple):
    """
    What is recorded of a folder's files.

    Args:
        path (`Path`): The record itself.
        files (`dict[str, str]`): SHA-256 by name, relative to the folder.
        complete (`bool`): Whether every file that was there is in it; records of earlier versions hold a few.
    """

    path: Path
    files: dict[str, str]
    complete: bool


def read_json_object(path: str | os.PathLike) -> dict[str, Any]:
    """
    A record that is a JSON object, from whomever it comes.

    Raises:
        OSError: it cannot be read.
        ValueError: it is none: too large, no UTF-8, no JSON, nested too deep, or JSON of another kind.
    """
    data = read_regular(path, MAX_RECORD_BYTES)
    try:
        value = parse_json(data.decode("utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is damaged: no JSON in UTF-8 ({error}).") from None
    if not isinstance(value, dict):
        raise ValueError(f"{path} is damaged: a JSON {type(value).__name__}, expected an object.")
    return value


def write_manifest(folder: str | os.PathLike, content: Mapping[str, Any]) -> Path:
    """Write a run's `manifest.json`, with its version and a digest of its own content."""
    path = Path(folder) / MANIFEST_FILE
    manifest = dict(content) | {"version": MANIFEST_VERSIONS[-1]}
    manifest["sha256"] = content_sha256(manifest)
    write_aside(path, json.dumps(manifest, indent=1, sort_keys=True, ensure_ascii=False) + "\n")
    return path


def read_run_manifest(folder: str | os.PathLike) -> dict[str, Any]:
    """
    The manifest of a run, with all keys of the right kind.

    Raises:
        FileNotFoundError: there is none: the run did not end, or is older than manifests.
        ValueError: it is damaged, of another version, or no manifest of this package.
    """
    path = Path(folder) / MANIFEST_FILE
    if not path.is_file():
        raise FileNotFoundError(
            f"{path} is missing: the run did not come to its end, or an older version of this package made it."
        )
    manifest = read_json_object(path)
    version = manifest.get("version")
    if isinstance(version, int) and not isinstance(version, bool) and version > MANIFEST_VERSIONS[-1]:
        raise ValueError(f"{path} is of version {version}; this package reads up to {MANIFEST_VERSIONS[-1]}.")
    if fault := _manifest_fault(manifest):
        raise ValueError(f"{path} is damaged: {fault}.")
    return manifest


def forget_manifest(folder: str | os.PathLike) -> None:
    """Delete a run's manifest, before its model is replaced: half a new run must not look like a damaged one."""
    path = Path(folder) / MANIFEST_FILE
    try:
        if path.is_file() and _is_a_runs(path, own=True):
            path.unlink()
    except ValueError:
        logger.warning("%s cannot be read, and is left as it is.", path)


@contextmanager
def rewriting(path: str | os.PathLike, *, whole: bool = False) -> Iterator[None]:
    """
    Around a change that this package makes to a file in a run's folder after the run: the manifest gets its new digest.

    Args:
        path (`str` or `PathLike`): The file; its folder may have no manifest.
        whole (`bool`, defaults to `False`): Whether nothing of the old file stays. Where something stays, and the old
            file was not the recorded one, the manifest keeps its digest: `verify` must go on naming the damage.
    """
    path = Path(path)
    try:
        manifest = read_run_manifest(path.parent)
    except (OSError, ValueError):
        manifest = {"version": 1}
    recorded = manifest.get("files", {}).get(path.name)
    intact = whole or not path.is_file() or file_sha256(path) == recorded
    yield
    if manifest["version"] >= 2 and intact:
        files = manifest["files"] | {path.name: file_sha256(path)}
        write_manifest(path.parent, manifest | {"files": files})
    elif manifest["version"] >= 2:
        logger.warning("%s was not the file of %s before this change: verify will name it.", path.name, MANIFEST_FILE)


def _manifest_fault(manifest: Mapping[str, Any]) -> str | None:
    if type(manifest.get("version")) is not int or manifest["version"] not in MANIFEST_VERSIONS:
        return f"its version is {_shown(manifest.get('version'))}, expected one of {MANIFEST_VERSIONS}"
    if manifest.get("script") not in ("train_pretrain", "train_downstream"):
        return f"its script is {_shown(manifest.get('script'))}"
    inputs = manifest.get("inputs")
    cache = inputs.get("cache") if isinstance(inputs, dict) else None
    if not isinstance(cache, dict):
        return "it names no cache among its inputs"
    joined = cache.get("joined", [cache])
    if not isinstance(joined, list) or not joined or not all(isinstance(one, dict) for one in joined):
        return "its joined caches are no list of objects"
    names = cache.get("names", []) if "joined" in cache else [""]
    if not isinstance(names, list) or len(names) != len(joined) or not all(isinstance(name, str) for name in names):
        return "its joined caches have no name each"
    if not all(isinstance(one.get("folder"), str | None) for one in joined):
        return "the folder of the cache is no text"
    held_out = inputs.get("held_out", {"folder": None, "files": {}})
    if not isinstance(held_out, dict) or not isinstance(held_out.get("folder"), str | None):
        return "what it says of the held-out rows is no object with a folder"
    for one in (*joined, held_out):
        if fault := _files_fault({"files of the cache": one.get("files")}):
            return fault
    tables = {"files": manifest.get("files")}
    models = inputs.get("models", [])
    if not isinstance(models, list) or not all(isinstance(model, dict) for model in models):
        return "its models are no list of objects"
    for model in models:
        if not isinstance(model.get("folder"), str | None) or not isinstance(model.get("sha256"), str | None):
            return "a model has no folder or digest as text"
        tables["files of a model"] = model.get("files", {})
        if fault := _files_fault(tables):
            return fault
    if fault := _files_fault(tables):
        return fault
    splits = manifest.get("splits")
    if not isinstance(splits, dict) or not all(isinstance(value, str | None) for value in splits.values()):
        return "its splits are no object of texts"
    if manifest["version"] >= 2 and manifest.get("sha256") != content_sha256(manifest):
        return "the digest of its own content is another one"
    return None


def _files_fault(tables: Mapping[str, Any]) -> str | None:
    for what, files in tables.items():
        if not isinstance(files, dict):
            return f"its {what} are no object"
        for name, digest in files.items():
            if not isinstance(digest, str) or not _SHA256.fullmatch(digest):
                return f"its {what} have a digest that is no SHA-256"
            if not name or "\\" in name or "\0" in name or not _is_inside(name):
                return f"its {what} name a place outside of the folder"
    return None


def _is_inside(name: str) -> bool:
    path = PurePosixPath(name)
    return not path.is_absolute() and ".." not in path.parts


def _shown(value: Any) -> str:
    return repr(value)[:40]


def content_sha256(record: Mapping[str, Any]) -> str:
    """SHA-256 of a record's content but for its own `sha256`, whatever the order of its keys."""
    content = {name: value for name, value in record.items() if name != "sha256"}
    try:
        text = json.dumps(content, sort_keys=True)
    except RecursionError:
        return ""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def write_sums(folder: str | os.PathLike, digests: Mapping[str, str]) -> None:
    """Write `SHA256SUMS` of files in a folder, as `sha256sum` does."""
    lines = (f"{digest}  {name}\n" for name, digest in sorted(digests.items()))
    write_aside(Path(folder) / SUMS_FILE, "".join(lines))


def read_sums(folder: str | os.PathLike) -> dict[str, str] | None:
    """
    Digests of a folder's `SHA256SUMS` by name; None where there is none, as in runs of earlier versions.

    Raises:
        ValueError: it is damaged.
    """
    path = Path(folder) / SUMS_FILE
    if not path.is_file():
        return None
    found = {}
    lines = read_regular(path, MAX_RECORD_BYTES).decode("utf-8", "replace").splitlines()
    for number, line in enumerate(lines, start=1):
        match = re.fullmatch(r"([0-9a-f]{64})  ([^/\\\0]+)", line)
        if match is None or match[2] in ("..", "."):
            raise ValueError(f"{path.name} is damaged: line {number} is no digest and name.")
        found[match[2]] = match[1]
    if not found:
        raise ValueError(f"{path.name} is damaged: it is empty.")
    return found


def differences(folder: Path, expected: Mapping[str, str], record: str = "the manifest") -> list[str]:
    """A sentence for each file that is missing or has another SHA-256 than expected."""
    found = []
    for name, digest in expected.items():
        path = folder / name
        if not path.is_file():
            found += [f"{name} is missing."] if PurePosixPath(name).name not in MAY_BE_DELETED else []
        elif (now := file_sha256(path)) != digest:
            found.append(f"{name} is not the file of {record}: its SHA-256 is {now[:16]}..., expected {digest[:16]}...")
    return found


def record_of(folder: str | os.PathLike) -> Record | None:
    """
    The record of a model's folder: its own, or that of the run in which it lies (a control, a saved classifier). None
    for a folder that has none: downloaded, copied out of its run, saved by hand, or of a run that did not end.

    Raises:
        ValueError: a record in the folder itself is damaged.
    """
    folder = Path(os.path.abspath(folder))
    if (folder / CHECKPOINT_FILE).is_file():
        return Record(folder / CHECKPOINT_FILE, _checkpoint_digests(folder / CHECKPOINT_FILE), True)
    for place in (folder, *folder.parents[:2]):
        if not (place / MANIFEST_FILE).is_file() or not _is_a_runs(place / MANIFEST_FILE, place == folder):
            continue
        manifest = read_run_manifest(place)
        prefix = "" if place == folder else f"{folder.relative_to(place).as_posix()}/"
        inside = {name: value for name, value in manifest["files"].items() if name.startswith(prefix)}
        files = {name[len(prefix) :]: value for name, value in inside.items() if _is_of_model(name[len(prefix) :])}
        if files:
            return Record(place / MANIFEST_FILE, files, manifest["version"] >= 2)
    return None


def _is_of_model(name: str) -> bool:
    """Whether a file, by its name relative to a model's folder, is of the model and not of what lies beside it."""
    folder, slash, file = name.rpartition("/")
    return not slash or (folder in TOWER_FOLDERS and bool(file))


def _is_a_runs(path: Path, own: bool) -> bool:
    """Other programs write a manifest.json too; one in the model's own folder that nobody can read is named."""
    try:
        found = read_json_object(path)
    except ValueError:
        if own:
            raise
        return False
    return {"script", "files"} <= found.keys()


def _checkpoint_digests(path: Path) -> dict[str, str]:
    files = read_json_object(path).get("files")
    if not isinstance(files, dict):
        raise ValueError(f"{path} is damaged: it lists no files.")
    found = {name: entry.get("sha256") if isinstance(entry, dict) else None for name, entry in files.items()}
    if fault := _files_fault({"files": found}):
        raise ValueError(f"{path} is damaged: {fault}.")
    return found


class ModelCheck(NamedTuple):
    """
    What was found of a model's files.

    Args:
        state (`str`): `verified`: all are those of the record; `unverified`: there is no record of them.
        files (`dict[str, str]`): SHA-256 of each that decides what the model computes; none of a hub id.
    """

    state: str
    files: dict[str, str]


def check_model(place: str | os.PathLike) -> ModelCheck:
    """
    Compare the files of a model's folder with the record of its run, before it is used. Within a process a file whose
    size and time stay the same is read once.

    Args:
        place (`str` or `PathLike`): A folder, or a hub id, of which nothing is known here.

    Raises:
        OSError: a file is missing, or cannot be read.
        ValueError: a file is not the recorded one, was added since, or the record is damaged.
    """
    folder = Path(place)
    if not folder.is_dir():
        return ModelCheck("unverified", {})
    record = record_of(folder)
    files = {path.relative_to(folder).as_posix(): _sha256_once(path) for path in loaded_files(folder)}
    if record is None:
        return ModelCheck("unverified", files)
    advice = (
        f"Copy the file back from where the model comes from, or train again. If you changed it on purpose, use a copy "
        f"of the folder without {record.path.name}: its results then say that it is unverified."
    )
    for name, expected in record.files.items():
        if not is_loaded(name) or (PurePosixPath(name).name in MAY_BE_DELETED and name not in files):
            continue
        if name not in files:
            raise FileNotFoundError(f"{folder}: {name} is missing, which {record.path.name} lists. {advice}")
        if files[name] != expected:
            raise ValueError(
                f"{folder}: {name} is damaged or was changed: its SHA-256 is {files[name]}, and {record.path.name} "
                f"has {expected}. {advice}"
            )
    if record.complete and (added := sorted(files.keys() - record.files.keys())):
        raise ValueError(f"{folder}: {added[0]} is not in {record.path.name}: it was added since. {advice}")
    return ModelCheck("verified", files)


def is_loaded(name: str) -> bool:
    """Whether a file of a model's folder or of a trained tower in it, by its name, decides what the model computes."""
    return any(fnmatch.fnmatchcase(PurePosixPath(name).name, pattern) for pattern in LOADED)


def loaded_files(folder: Path) -> Iterable[Path]:
    towers = [folder / name for name in TOWER_FOLDERS if (folder / name / "tower.json").is_file()]
    return [
        path
        for place in (folder, *towers)
        for path in sorted(place.iterdir())
        if path.is_file() and is_loaded(path.name)
    ]


def _sha256_once(path: Path) -> str:
    state, path = path.stat(), path.resolve()
    known = _checked.get(path)
    if known is None or known[:2] != (state.st_size, state.st_mtime_ns):
        _checked[path] = known = (state.st_size, state.st_mtime_ns, file_sha256(path))
    return known[2]


__all__ = [
    "CHECKPOINT_FILE",
    "MANIFEST_FILE",
    "READ_ERRORS",
    "SUMS_FILE",
    "TOWER_FOLDERS",
    "ModelCheck",
    "Record",
    "check_model",
    "content_sha256",
    "differences",
    "forget_manifest",
    "is_loaded",
    "read_json_object",
    "read_run_manifest",
    "read_sums",
    "record_of",
    "rewriting",
    "write_manifest",
    "write_sums",
]
