"""Files and folders that are whole or absent, and digests of files."""

from __future__ import annotations

import csv
import glob
import hashlib
import os
import platform
import re
import secrets
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from .tower_bundles_adaptor import file_sha256


@contextmanager
def written_aside(path: str | os.PathLike, *, sync: bool = False, mode: int | None = None) -> Iterator[Path]:
    """
    A place beside `path` to write to: renamed to it at the end of the block, removed if the block fails. A file that is
    there stays until then; a link is replaced, not followed. Of several writers the last one's file stays, whole.

    Args:
        sync (`bool`): Wait for the disk before the renaming, for files whose name says that they are whole: after a
            power cut a new name may stand on an empty file.
        mode (`int`, *optional*): Permissions from the first byte on, such as `0o600`; else those of any new file.

    Raises:
        OSError: if it cannot be written or renamed.
    """
    path = Path(path)
    aside = aside_of(path, clear=False)
    try:
        if mode is not None:
            os.close(os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode))
        yield aside
        if sync:
            with open(aside, "r+b") as file:
                os.fsync(file.fileno())
        os.replace(aside, path)
    finally:
        aside.unlink(missing_ok=True)


def write_aside(path: str | os.PathLike, content: str | bytes, *, sync: bool = False) -> None:
    """Write a text (UTF-8) or bytes so that the file is whole or absent; an older one stays until then."""
    with written_aside(path, sync=sync) as aside:
        aside.write_bytes(content.encode("utf-8") if isinstance(content, str) else content)


@contextmanager
def folder_written_aside(path: str | os.PathLike) -> Iterator[Path]:
    """
    A new folder of the same name in a hidden one beside `path`: it takes its place at the end of the block, and is
    removed if the block fails. `path` may be an empty folder.

    Raises:
        OSError: if it cannot be written or renamed, as where `path` has something in it.
    """
    path = Path(path)
    hidden = aside_of(path)
    aside = hidden / path.name
    try:
        aside.mkdir(parents=True)
        yield aside
        if path.is_dir():
            path.rmdir()
        os.rename(aside, path)
    finally:
        shutil.rmtree(hidden, ignore_errors=True)


def write_csv(path: str | os.PathLike, header: Iterable[str], rows: Iterable[Iterable]) -> None:
    """Write a table as UTF-8 with commas and Unix line ends, straight to its place."""
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(header)
        writer.writerows(rows)


def remove_dead_partials(folder: str | os.PathLike, other_machines_pid: int | None = None) -> None:
    """
    Delete, at any depth, what killed processes of this machine were writing aside. What a living one writes stays.

    Args:
        other_machines_pid (`int`, *optional*): A process of another machine that is known to have ended: its too.
    """
    for place, folders, files in os.walk(folder):
        for name in [name for name in folders + files if name.endswith(".partial")]:
            _remove_if_dead(Path(place, name), other_machines_pid)


def _remove_if_dead(path: Path, other_machines_pid: int | None) -> None:
    import psutil

    if (match := _ASIDE.fullmatch(path.name)) is None:
        return
    here, pid = match[1] == _machine(), int(match[2])
    if (here and not psutil.pid_exists(pid)) or (not here and pid == other_machines_pid):
        shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)


_ASIDE = re.compile(r"\..+\.([0-9a-f]{4})-(\d+)-[0-9a-f]{8}\.partial", re.DOTALL)


def aside_of(path: str | os.PathLike, *, clear: bool = True) -> Path:
    """
    A name beside `path` to write to, which no other process, thread or machine uses.

    Args:
        clear (`bool`): Delete what killed processes of this machine left under such names of `path`; for a folder with
            very many files, which would have to be listed, not.
    """
    path = Path(path)
    for left in path.parent.glob(f".{glob.escape(path.name)}.*.partial") if clear else ():
        _remove_if_dead(left, None)
    return path.with_name(f".{path.name}.{_machine()}-{os.getpid()}-{secrets.token_hex(4)}.partial")


def _machine() -> str:
    """Four hex digits for this machine, or container: where numbers of processes mean the same."""
    namespace = Path("/proc/self/ns/pid")
    numbers = os.stat(namespace).st_ino if namespace.exists() else 0
    return hashlib.sha256(f"{platform.node()} {numbers}".encode()).hexdigest()[:4]


__all__ = [
    "aside_of",
    "file_sha256",
    "folder_written_aside",
    "remove_dead_partials",
    "write_aside",
    "write_csv",
    "written_aside",
]
