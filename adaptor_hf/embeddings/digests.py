"""Digests of a cache's files: taken from what is written, as it is written, and compared before a file is used."""

import hashlib
import json
import os
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, BinaryIO

import xxhash

from ..data.content_keys import CHECKS
from ..files import open_regular

_SEAL = 16
_HASHES = {"xxh3": xxhash.xxh3_128, "sha256": hashlib.sha256}
_NAMES = {"xxh3": "XXH3-128", "sha256": "SHA-256"}


class DigestedFile:
    """A binary file to write to, that knows the digests of what it was given, whatever the disk makes of it.

    Args:
        file: open for writing.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._states = {name: make() for name, make in _HASHES.items()}
        self._size = 0

    def write(self, data: Any) -> int:
        for state in self._states.values():
            state.update(data)
        written = self._file.write(data)
        self._size += written
        return written

    def flush(self) -> None:
        self._file.flush()

    @property
    def closed(self) -> bool:
        return self._file.closed

    def entry(self) -> dict[str, Any]:
        """Size in bytes, XXH3-128 and SHA-256 of all that was written, the digests as hexadecimal digits."""
        return {"bytes": self._size} | {name: state.hexdigest() for name, state in self._states.items()}

    def seal(self, place: str) -> None:
        """Write a digest of all before it and of the file's place at the end, for `check_seal`."""
        state = self._states["xxh3"].copy()
        state.update(place.encode("utf-8"))
        self.write(state.digest())


def data_entry(data: bytes) -> dict[str, Any]:
    """Size, XXH3-128 and SHA-256 of bytes, as `DigestedFile.entry`."""
    return {"bytes": len(data)} | {name: make(data).hexdigest() for name, make in _HASHES.items()}


def file_entry(path: Path) -> dict[str, Any]:
    """Size and XXH3-128 of a file that another library has written, as `DigestedFile.entry`."""
    return {"bytes": path.stat().st_size, "xxh3": _digest((path, "xxh3", ""))}


def json_digest(value: dict) -> str:
    """SHA-256 of an object's fields but `digest`, in canonical JSON: sorted names, no spaces."""
    fields = {name: item for name, item in value.items() if name != "digest"}
    text = json.dumps(fields, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(text.encode("utf-8")).hexdigest()


def place_of(path: Path) -> str:
    """What a sealed file is sealed for: its folder and name, so that one of another place is no substitute."""
    return f"{path.parent.name}/{path.name}"


def check_seal(path: Path, advice: str) -> None:
    """Compare a sealed file with the digest at its end.

    Raises:
        FileNotFoundError: the file is missing.
        ValueError: it is cut off, damaged, or was sealed as another file.
    """
    state = xxhash.xxh3_128()
    with open_regular(path) as file:
        left = path.stat().st_size - _SEAL
        while left > 0 and (block := file.read(min(left, 1 << 20))):
            state.update(block)
            left -= len(block)
        found = file.read()
    state.update(place_of(path).encode("utf-8"))
    if state.digest() != found:
        raise ValueError(
            f"{path} is damaged, cut off, or of another place: its XXH3-128 is {state.hexdigest()}, and "
            f"{found.hex() or 'nothing'} was written at its end. {advice}"
        )


class FileChecks:
    """Compares files with their entries in a manifest, each once: in one call of `build_cache` or one opened cache.

    A later call compares again. Size and time of a file do not say that its content is the same.

    Args:
        mode: one of `CHECKS`.
    """

    def __init__(self, mode: str = "touched") -> None:
        if mode not in CHECKS:
            raise ValueError(f"check must be one of {', '.join(CHECKS)}, got {mode!r}")
        self.mode = mode
        self.files = mode != "off"
        self._done: set[tuple[Path, str]] = set()

    def done_elsewhere(self) -> "FileChecks":
        """For a process that opens what another one on this machine has just checked: manifests only."""
        other = FileChecks(self.mode)
        other.files = False
        return other

    @property
    def metadata(self) -> bool:
        """Whether manifests are compared with their digest."""
        return self.mode != "off"

    def check(self, folder: Path, entries: Iterable[dict], advice: str, algorithm: str | None = None) -> None:
        """Compare files of a folder: sizes, and unless `off` digests.

        Args:
            folder: where they are.
            entries: `file`, `bytes`, and `xxh3`, `sha256` or both. One that is `lost` has no file.
            advice: a sentence for messages: what to do.
            algorithm: "sha256" or "xxh3"; None takes XXH3-128 where the entry has it.

        Raises:
            FileNotFoundError: a file is missing.
            ValueError: size or digest differ.
            OSError: a file cannot be read.
        """
        entries = [entry for entry in entries if not entry.get("lost")]
        check_sizes(folder, entries, advice)
        if not self.files:
            return
        todo = []
        for entry in entries:
            name = algorithm or ("xxh3" if "xxh3" in entry else "sha256")
            if (folder / entry["file"], entry[name]) not in self._done:
                todo.append((folder / entry["file"], name, entry[name]))
        if not todo:
            return
        # Hashing and reading release the interpreter's lock, and a file is read in blocks: memory stays small.
        with ThreadPoolExecutor(_threads(len(todo))) as pool:
            for found, (path, name, expected) in zip(pool.map(_digest, todo), todo, strict=True):
                if found != expected:
                    raise ValueError(
                        f"{path} is damaged: its {_NAMES[name]} is {found}, and {expected} was written. {advice}"
                    )
                self._done.add((path, expected))


def _threads(files: int) -> int:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(4, cores, files))


def _digest(item: tuple[Path, str, str]) -> str:
    path, name, _ = item
    try:
        with open_regular(path) as file:
            return hashlib.file_digest(file, _HASHES[name]).hexdigest()
    except OSError as error:
        raise OSError(error.errno, f"{path} cannot be read: {error.strerror or error}") from error


def check_sizes(folder: Path, entries: Iterable[dict], advice: str) -> None:
    """Compare the sizes of files of a folder with their entries; as `FileChecks.check` without digests."""
    for entry in entries:
        path = folder / entry["file"]
        try:
            size = path.stat().st_size
        except FileNotFoundError:
            raise FileNotFoundError(f"{path} is missing from the cache. Copy it back. {advice}") from None
        if size != entry["bytes"]:
            raise ValueError(
                f"{path} has {size} bytes, the manifest says {entry['bytes']}: it is truncated or was replaced. "
                f"{advice}"
            )
