"""Files and folders that are whole or absent, and digests of files."""

from __future__ import annotations

import csv
import os
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
    aside = _aside(path)
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
    hidden = _aside(path)
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


def _aside(path: Path) -> Path:
    # Threads, and machines that share a folder, may have the same process id.
    return path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}.partial")


__all__ = ["file_sha256", "folder_written_aside", "write_aside", "write_csv", "written_aside"]
