"""Files and folders that are whole or absent, and digests of files."""

from __future__ import annotations

import csv
import errno
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
from typing import Any, TextIO

from .regular_files_adaptor import (
    check_all_regular,
    check_regular,
    open_regular,
    parse_json,
    printable,
    read_json,
    read_regular,
)
from .tower_bundles_adaptor import file_sha256

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_FULL_IN_WORDS = re.compile(r"\(os error (\d+)\)|\[errno (\d+)\]", re.IGNORECASE)  # of Rust, and of Arrow
# How torch, safetensors and Pillow fail to write when they do not say why.
_UNSAID = re.compile(
    r"inline_container|PytorchStreamWriter|iostream error|encoder error|SafetensorError|\d+ requested and \d+ written"
)
_FULL_BYTES = 1 << 20
# What spreadsheet programs run as a formula, in wide letters too, unless it is a number. Quotes before it are counted.
_SIGNS = "'*[=+\\-@\t\r\n\uff1d\uff0b\uff0d\uff20]."
_FORMULA = re.compile(_SIGNS, re.DOTALL)
MARKED = f"(?s)^'{_SIGNS}"
"""Pattern of a cell that `csv_cell` has marked with an apostrophe."""
# Also with an interval or a deviation behind it, as in tables of results.
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?[†*%]*( ?[(\[±][\d\s.,;±()\[\]†*%–+-]*)?")


def is_folder(entry: os.DirEntry) -> bool:
    """Whether an entry of a folder is one too, or a link to one; of a link in a circle Python raises an error."""
    try:
        return entry.is_dir()
    except OSError:
        return False


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
        with full_disk_named(path):
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
        with full_disk_named(path):
            aside.mkdir(parents=True)
            yield aside
            if path.is_dir():
                path.rmdir()
            os.rename(aside, path)
    finally:
        shutil.rmtree(hidden, ignore_errors=True)


@contextmanager
def full_disk_named(path: str | os.PathLike) -> Iterator[None]:
    """
    Where a block that writes fails because the disk is full, whatever a library says of it, name the path.

    Raises:
        OSError: with `errno` of a full disk (or quota, or too large a file); the message says what is kept and what to
            do. Other errors pass.
    """
    try:
        yield
    except Exception as error:
        if (code := full_disk_code(error, path)) is None:
            raise
        raise OSError(
            code,
            f"{os.strerror(code)}: {printable(path)} cannot be written. Nothing half-written is kept, and what was "
            "there before is as it was. Free space and give the same command again, or write to another disk",
        ) from error


def full_disk_code(error: BaseException, path: str | os.PathLike) -> int | None:
    """The system's number of a full disk, a spent quota or too large a file, if an error of writing there is one."""
    if isinstance(error, OSError) and error.errno in _FULL:
        return error.errno
    for found in _FULL_IN_WORDS.finditer(str(error)):
        if (code := int(found[1] or found[2])) in _FULL:
            return code
    unsaid = _UNSAID.search(f"{type(error).__name__}: {error}")
    free = _free_bytes(path) if unsaid else None
    return errno.ENOSPC if free is not None and free < _FULL_BYTES else None


def write_csv(path: str | os.PathLike, header: Iterable[str], rows: Iterable[Iterable]) -> None:
    r"""
    Write a table as UTF-8 with commas and Unix line ends, straight to its place; cells are written by `csv_cell`, and
    bytes of a name that are no UTF-8 as `\udcff`.
    """
    with full_disk_named(path), open(path, "w", newline="", encoding="utf-8", errors="backslashreplace") as file:
        write_csv_to(file, header, rows)


def write_csv_to(file: TextIO, header: Iterable[str], rows: Iterable[Iterable]) -> None:
    """As `write_csv`, to an open text file."""
    # Cells with a line end of any system are quoted: csv quotes those of its own.
    writer = csv.writer(_UnixLines(file), lineterminator="\r\n")
    writer.writerow([csv_cell(name) for name in header])
    writer.writerows([csv_cell(value) for value in row] for row in rows)


class _UnixLines:
    def __init__(self, file: TextIO) -> None:
        self.file = file

    def write(self, row: str) -> int:
        return self.file.write(row.removesuffix("\r\n") + "\n")


def csv_cell(value: Any) -> Any:
    """
    A value as it is written to a CSV file that people open in a spreadsheet program.

    A text that such a program would run as a formula (it begins with `=`, `+`, `-`, `@`, a tab or a line end, and is no
    number) gets an apostrophe before it; so does one that begins with apostrophes and then such a sign, so that
    `plain_cell` gives back every text as it was.
    """
    if isinstance(value, str) and _FORMULA.match(value) and not _NUMBER.fullmatch(value):
        return f"'{value}"
    return value


def plain_cell(text: str) -> str:
    """The text of which `csv_cell` made this one."""
    return text[1:] if text[:1] == "'" and _FORMULA.match(text) else text


def _free_bytes(path: str | os.PathLike) -> int | None:
    for folder in Path(path).absolute().parents:
        try:
            return shutil.disk_usage(folder).free
        except OSError:
            continue
    return None


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
    "check_all_regular",
    "check_regular",
    "csv_cell",
    "file_sha256",
    "folder_written_aside",
    "full_disk_code",
    "full_disk_named",
    "is_folder",
    "open_regular",
    "parse_json",
    "plain_cell",
    "printable",
    "read_json",
    "read_regular",
    "remove_dead_partials",
    "write_aside",
    "write_csv",
    "write_csv_to",
    "written_aside",
]
