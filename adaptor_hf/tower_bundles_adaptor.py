"""Towers in a folder that was carried to a machine without network: `python -m adaptor_hf.towers bundle` writes it.

A bundle is a folder of tower folders with one manifest.json, which says of each tower where it came from, what its
terms are, and the SHA-256 of every file. This file only reads bundles. It is flat on purpose: it is copied beside a
checkpoint as remote code.
"""

import hashlib
import os
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from .regular_files_adaptor import open_regular, read_json, read_regular

MANIFEST = "manifest.json"
FORMAT = "adaptor_hf towers 1"
TOWERS_DIR = "ADAPTOR_TOWERS_DIR"
FACTS = ("revision", "license", "pretraining_data")

_checked: dict[str, tuple] = {}


class BundledTower(NamedTuple):
    """A tower of a bundle: its folder, and its entry in the manifest."""

    folder: Path
    entry: dict[str, Any]


def read_manifest(folder: str | os.PathLike) -> dict[str, dict[str, Any]]:
    """Entries of a bundle by name.

    Raises:
        OSError: there is no such folder, or it has no manifest.
        ValueError: the manifest is damaged, of another format, or names a place outside of the bundle.
    """
    file = Path(folder) / MANIFEST
    if not file.is_file():
        raise FileNotFoundError(
            f"{folder} is no bundle of towers: it has no {MANIFEST}. Make one where there is network: "
            "python -m adaptor_hf.towers bundle NAME --to DIR"
        )
    try:
        content = read_json(file)
        if content["format"] != FORMAT:
            raise ValueError(f"its format is {content['format']!r}, expected {FORMAT!r}")
        for entry in content["towers"].values():
            for name in (entry["folder"], *entry["files"]):
                if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts or "\\" in name:
                    raise ValueError(f"it names a place outside of the bundle: {name!r}")
        return content["towers"]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{file} is no manifest of this package: {error}. Make the bundle again.") from error


def use_towers_dir(folder: str | os.PathLike) -> None:
    """Look for towers in this bundle first, in this process and those that it starts (ADAPTOR_TOWERS_DIR).

    Raises:
        OSError, ValueError: as `read_manifest`.
    """
    read_manifest(folder)
    os.environ[TOWERS_DIR] = os.path.abspath(folder)


def find_bundled(spec: dict[str, Any], towers_dir: str | os.PathLike | None = None) -> BundledTower | None:
    """The tower of a spec in a bundle, its files checked; None without bundle, or where it does not have the tower.

    Args:
        spec: a tower spec. It is found by preset, else by library and name.
        towers_dir: the bundle; by default the one named by ADAPTOR_TOWERS_DIR.

    Raises:
        OSError: there is no bundle, it has another revision, or a file is missing, changed or not in the manifest.
        ValueError: as `read_manifest`.
    """
    towers_dir = towers_dir or os.environ.get(TOWERS_DIR)
    if not towers_dir:
        return None
    for name, entry in read_manifest(towers_dir).items():
        if not _is_of(entry, spec):
            continue
        if spec.get("revision") not in (None, entry["revision"]):
            raise OSError(
                f"tower {name!r}: the bundle {towers_dir} has revision {entry['revision']}, and {spec['revision']} is "
                "asked for. Bundle that one, or name no revision."
            )
        folder = Path(towers_dir) / entry["folder"]
        check_files(name, folder, entry["files"])
        return BundledTower(folder, entry)
    return None


def _is_of(entry: dict[str, Any], spec: dict[str, Any]) -> bool:
    if spec.get("preset") and entry["preset"] == spec["preset"]:
        return True
    return entry["name_or_path"] == spec["name_or_path"] and spec.get("library") in (None, entry["library"])


def entry_of_folder(folder: str | os.PathLike) -> dict[str, Any] | None:
    """What a manifest in a tower's folder, or in the one above it, says of the folder; its files are checked.

    Raises:
        OSError, ValueError: as `find_bundled`.
    """
    folder = Path(os.path.abspath(folder))
    for place in (folder, folder.parent):
        if not (place / MANIFEST).is_file() or not _is_ours(place / MANIFEST):
            continue
        for name, entry in read_manifest(place).items():
            if place / entry["folder"] == folder:
                check_files(name, folder, entry["files"])
                return entry
    return None


def hub_source(folder: str | os.PathLike) -> tuple[str | None, str | None]:
    """Hub id and commit of a folder that a Hub client downloaded, where its place or the client's notes say so.

    Returns:
        The id of a folder in the client's cache, and the commit; of a folder that was downloaded with `local_dir`, None
        and the commit; else None and None.
    """
    folder = Path(os.path.realpath(folder))
    if folder.parent.name == "snapshots" and folder.parents[1].name.startswith("models--"):
        return folder.parents[1].name.removeprefix("models--").replace("--", "/", 1), folder.name
    notes = sorted((folder / ".cache" / "huggingface" / "download").glob("*.metadata"))
    commits = {read_regular(note).decode("utf-8", "replace").partition("\n")[0].strip() for note in notes}
    return None, commits.pop() if len(commits) == 1 else None


def card_facts(folder: str | os.PathLike) -> dict[str, Any]:
    """`license` and `pretraining_data` as the card in a folder (README.md) states them; without it nothing."""
    file = Path(folder) / "README.md"
    if not file.is_file():
        return {}
    from huggingface_hub import ModelCard

    try:
        data = ModelCard(read_regular(file).decode("utf-8"), ignore_metadata_errors=True).data
    except Exception:
        # Others wrote this file. The YAML parser's errors have a base class that flat files do not import.
        return {}
    # `license: other` says nothing but where to look.
    named = data.get("license_name") if data.license == "other" else data.license
    sets = [data.datasets] if isinstance(data.datasets, str) else data.datasets
    facts = {"license": named, "pretraining_data": sets}
    return {name: value for name, value in facts.items() if value}


def _is_ours(file: Path) -> bool:
    """Other programs write a manifest.json too."""
    try:
        return str(read_json(file).get("format", "")).startswith("adaptor_hf towers")
    except (ValueError, AttributeError):
        return False


def check_files(name: str, folder: Path, files: dict[str, dict[str, Any]]) -> None:
    """Compares a tower's folder with its entry: the same files, sizes and SHA-256. Unchanged files are read once.

    Raises:
        OSError: naming the first file that is missing, changed or unknown.
    """
    again = "Copy the bundle again, or make it again: python -m adaptor_hf.towers bundle."
    found = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}
    found.pop(MANIFEST, None)
    if missing := sorted(files.keys() - found.keys()):
        raise FileNotFoundError(f"tower {name!r}: {folder} lacks {missing[0]}. {again}")
    if unknown := sorted(found.keys() - files.keys()):
        raise OSError(f"tower {name!r}: {folder} has {unknown[0]}, which its manifest does not know. {again}")
    for part, path in sorted(found.items()):
        state = path.stat()
        seen = (state.st_size, state.st_mtime_ns, files[part]["sha256"])
        if _checked.get(str(path)) == seen:
            continue
        if state.st_size != files[part]["size"] or file_sha256(path) != files[part]["sha256"]:
            raise OSError(f"tower {name!r}: {path} is not the file that was bundled (size or SHA-256). {again}")
        _checked[str(path)] = seen


def give_weights_the_mode_of_config(folder: str | os.PathLike) -> None:
    """Who may read a saved model's config.json may read its weights: safetensors writes them for the owner alone."""
    config = Path(folder) / "config.json"
    if not config.is_file():
        return
    mode = config.stat().st_mode & 0o777
    for path in Path(folder).glob("model*.safetensors"):
        if path.stat().st_mode & 0o777 != mode:
            path.chmod(mode)


def file_sha256(path: Path) -> str:
    """Hexadecimal SHA-256 of a file."""
    with open_regular(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
