"""`cache.json` and the other JSON files of a cache: with a digest of their own fields, and read with care."""

import json
from pathlib import Path, PurePath

from ..files import read_json
from .columns import column_of
from .digests import json_digest
from .files import write_json

FORMAT = "adaptor_hf.embeddings"
CACHE_VERSION = 2
"""2: `digest`, and XXH3-128 beside SHA-256. Version 1 is read, too: its files have a SHA-256, its fields none."""
COLUMNS_VERSION = 3
"""3: `columns` beside the pooled vectors, or int8. What has neither is written as version 2, which older ones read."""
MANIFEST = "cache.json"
VECTOR_DTYPES = ("float16", "float32", "int8")
_FIELDS = {"content": str, "key": str, "rows": int, "shards": list}
_OF_CONTENT = {
    "pairs": {"excluded": int},
    "images": {"width": int, "dtype": str, "tower": dict, "identity": dict, "faults": dict},
}
_OF_CONTENT["texts"] = _OF_CONTENT["images"]
_FILE = {"file": str, "bytes": int, "sha256": str}
_SHARD = _FILE | {"rows": int}
_COLUMN = {"shape": list, "dtype": str, "shards": list}
_RESERVED = {"data", "embedding", "source", "digest", "num_tokens"}
_KINDS = {str: "a string", int: "a number from 0 on", list: "a list", dict: "an object"}


def write_record(path: Path, value: dict) -> dict:
    """Write an object with format, version and the digest of its fields; returns it as it was written."""
    version = COLUMNS_VERSION if _needs_columns(value) else CACHE_VERSION
    value = json.loads(json.dumps(value | {"format": FORMAT, "version": version}))
    value["digest"] = json_digest(value)
    write_json(path, value)
    return value


def read_record(path: Path, advice: str, *, check: bool = True) -> dict:
    """Read what `write_record` wrote.

    Args:
        path: the file.
        advice: a sentence for messages: what to do.
        check: compare the digest. A record of version 1 has none.

    Raises:
        FileNotFoundError: it is missing.
        ValueError: it is no such record, of another version, or its fields are not those that were written.
    """
    try:
        record = read_json(path)
    except ValueError as error:
        raise ValueError(f"{path} is damaged ({type(error).__name__}: {error}). {advice}") from error
    if not isinstance(record, dict) or record.get("format") != FORMAT:
        raise ValueError(f"{path} is not of format {FORMAT!r}. {advice}")
    version = record.get("version")
    if version not in (1, CACHE_VERSION, COLUMNS_VERSION) or isinstance(version, bool):
        raise ValueError(
            f"{path} was written by cache version {version}, this package reads versions 1 to {COLUMNS_VERSION}. Build "
            "the cache again, or install the version of adaptor_hf that wrote it"
        )
    if not check:
        return record
    if "digest" in record or version > 1:
        found, expected = json_digest(record), record.get("digest")
        if found != expected:
            raise ValueError(
                f"{path} is damaged or was edited: the SHA-256 of its fields is {found}, and {expected or 'none'} was "
                f"written. {advice}"
            )
    return record


def read_manifest(folder: Path, *, check: bool = True) -> dict:
    """Read and check the manifest of a cache folder.

    Args:
        folder: `images-<key>/`, `texts-<key>/` or `pairs-<key>/`.
        check: compare the digest of its fields.

    Raises:
        FileNotFoundError: the folder has no manifest.
        ValueError: the manifest is damaged, of another folder, or of another format or version.
    """
    path = folder / MANIFEST
    if not path.is_file():
        raise FileNotFoundError(f"{folder} is no embedding cache: {MANIFEST} is missing. Build it with build_cache")
    advice = rebuild(folder)
    manifest = read_record(path, advice, check=check)
    _check_fields(path, manifest, _FIELDS, advice)
    if manifest["content"] not in _OF_CONTENT:
        raise ValueError(f"{path} is damaged: content is {manifest['content']!r}. {advice}")
    _check_fields(path, manifest, _OF_CONTENT[manifest["content"]], advice)
    if manifest.get("dtype", "float16") not in VECTOR_DTYPES:
        raise ValueError(f"{path} is damaged: dtype is {manifest['dtype']!r}. {advice}")
    for name, fields in (("shards", _SHARD), ("files", _FILE)):
        _check_files(path, name, manifest.get(name, []), fields, advice)
    parts = [entry["rows"] for entry in manifest["shards"]]
    if (set(parts) != {manifest["rows"]}) if manifest["content"] == "pairs" else (sum(parts) != manifest["rows"]):
        raise ValueError(f"{path} is damaged: its files have {parts} rows, it says {manifest['rows']}. {advice}")
    if "columns" in manifest:
        _check_columns(path, manifest, advice)
    if manifest["version"] < COLUMNS_VERSION and _needs_columns(manifest):
        raise ValueError(
            f"{path} is damaged: version is {manifest['version']}, columns and int8 need {COLUMNS_VERSION}. {advice}"
        )
    for modality in ("images", "texts"):
        if manifest["content"] == "pairs" and modality in manifest:
            _check_fields(path, manifest, {modality: str}, advice)
            _check_name(path, manifest[modality], advice)
    name = f"{manifest['content']}-{manifest['key']}"
    if name not in (folder.name, folder.resolve().name):
        raise ValueError(f"{path} is of {name}: it was copied from another folder, or this one was renamed. {advice}")
    return manifest


def modality_files(manifest: dict) -> list[dict]:
    """Entries of all files of a manifest that should be there: shards, those of columns, and others; no lost ones."""
    columns = (entry for column in manifest.get("columns", {}).values() for entry in column["shards"])
    return [entry for entry in [*manifest["shards"], *columns, *manifest.get("files", [])] if not entry.get("lost")]


def lost_rows(manifest: dict) -> list[tuple[str, int, int]]:
    """
    Name of each file that `repair_cache` gave up, with its first row and last row + 1. A row that is lost in one file
    counts as lost in all: it is embedded again as a whole, behind the others.
    """
    found = []
    for shards in (manifest["shards"], *(column["shards"] for column in manifest.get("columns", {}).values())):
        stop = 0
        for entry in shards:
            start, stop = stop, stop + entry["rows"]
            if entry.get("lost"):
                found.append((entry["file"], start, stop))
    return found


def rebuild(folder: Path) -> str:
    """What to do when something in a cache folder is damaged."""
    kind = folder.name.partition("-")[0]
    if kind == "pairs":
        again = "what is embedded stays, only the pairs are written anew"
    else:
        again = f"only the {kind} of this tower are embedded anew"
    return f"Delete {folder} and run the same build or import again: {again}"


def repair(folder: Path) -> str:
    """What to do when a file of a modality's folder is damaged, and its manifest is not."""
    return (
        f"Run python -m adaptor_hf.embeddings repair {folder.parent}, which gives up the damaged files, and then the "
        f"same build again: only their {folder.name.partition('-')[0]} are embedded anew"
    )


def _needs_columns(manifest: dict) -> bool:
    return "columns" in manifest or manifest.get("dtype") == "int8"


def _check_files(path: Path, name: str, entries: list, fields: dict[str, type], advice: str) -> None:
    for entry in entries:
        if not isinstance(entry, dict):
            raise ValueError(f"{path} is damaged: {name} has an entry that is no object. {advice}")
        _check_fields(path, entry, fields, advice)
        _check_name(path, entry["file"], advice)


def _check_columns(path: Path, manifest: dict, advice: str) -> None:
    if manifest["content"] == "pairs" or not isinstance(manifest["columns"], dict) or not manifest["columns"]:
        raise ValueError(f"{path} is damaged: columns must be an object, not empty, of images or texts. {advice}")
    for name, entry in manifest["columns"].items():
        if not name.isidentifier() or name in _RESERVED or not isinstance(entry, dict):
            raise ValueError(f"{path} is damaged: {name!r} in columns is no column. {advice}")
        _check_fields(path, entry, _COLUMN, advice)
        try:
            column_of(name, entry)
        except ValueError as error:
            raise ValueError(f"{path} is damaged: {error}. {advice}") from error
        _check_files(path, name, entry["shards"], _SHARD, advice)
        parts = [shard["rows"] for shard in entry["shards"]]
        if sum(parts) != manifest["rows"] or not all(parts):
            raise ValueError(
                f"{path} is damaged: files of {name} have {parts} rows, it says {manifest['rows']}. {advice}"
            )
        if any(not shard["file"].startswith(f"{name}-") for shard in entry["shards"]):
            raise ValueError(f"{path} is damaged: {name} names files of another column. {advice}")


def _check_fields(path: Path, value: dict, fields: dict[str, type], advice: str) -> None:
    for name, kind in fields.items():
        found = value.get(name)
        if not isinstance(found, kind) or isinstance(found, bool) or (kind is int and found < 0):
            shown = found if isinstance(found, int | float) else f"of type {type(found).__name__}"
            raise ValueError(f"{path} is damaged: {name} is {shown}, expected {_KINDS[kind]}. {advice}")


def _check_name(path: Path, name: str, advice: str) -> None:
    if PurePath(name).name != name or name in ("", ".", ".."):
        raise ValueError(f"{path} is damaged: it names a file that does not lie beside it. {advice}")
