"""
Files whose names come from others: opened only where they are regular files, read within a limit, named in print.

A named pipe blocks who opens it, `/dev/zero` and files of `/proc` never end, and a name may hold line breaks or a
terminal's escape codes.
This file is flat on purpose: it is copied beside a checkpoint as remote code.
"""

import errno
import json
import os
import stat
from functools import cache
from typing import Any, BinaryIO

MAX_TEXT_BYTES = 1 << 28
"""Largest text or JSON file that is read whole, 256 MiB."""
_SHOWN_CHARACTERS = 500
_KINDS = (
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISFIFO, "a pipe"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
    (stat.S_ISSOCK, "a socket"),
)


def printable(name: str | bytes | os.PathLike) -> str:
    """
    A name as it may be printed: what is no printable character (line breaks, escape codes, marks that turn the
    direction of writing, bytes that are no UTF-8) as Python escapes it, and of a very long one the beginning.
    """
    text = os.fsdecode(name)
    if len(text) > _SHOWN_CHARACTERS:
        return f"{printable(text[:_SHOWN_CHARACTERS])}... ({len(text):,} characters)"
    if text.isprintable():
        return text
    return "".join(sign if sign.isprintable() else sign.encode("unicode_escape").decode() for sign in text)


def check_regular(path: str | os.PathLike, max_bytes: int | None = None) -> str | os.PathLike:
    """
    A path for a library that opens it by its name, if it leads to a regular file; `open_regular` is safer.

    Args:
        max_bytes (`int`, *optional*): Largest size.

    Returns:
        The path.

    Raises:
        FileNotFoundError: no such file.
        OSError: a pipe, a device, a socket or a folder; or its state cannot be read.
        ValueError: a NUL character in the path, or a larger file.
    """
    try:
        state = os.stat(path)
    except ValueError:
        raise ValueError(f"{printable(path)}: not a path (it has a NUL character). Correct the name.") from None
    except OSError as error:
        if error.errno in (errno.ENAMETOOLONG, errno.ELOOP):
            raise OSError(error.errno, error.strerror, printable(path)) from None
        raise
    _check(state, path, max_bytes)
    return path


def open_regular(path: str | os.PathLike, max_bytes: int | None = None) -> BinaryIO:
    """
    Open a regular file to read its bytes, without waiting for the other end of a pipe or touching a device.

    Raises:
        As `check_regular`.
    """
    check_regular(path, max_bytes)
    file = open(path, "rb", opener=_without_waiting)  # noqa: SIM115
    try:
        # Since it was looked at the name may have come to stand for something else.
        _check(os.fstat(file.fileno()), path, max_bytes)
    except BaseException:
        file.close()
        raise
    return file


def check_all_regular(folder: str | os.PathLike) -> str | os.PathLike:
    """
    A folder for a library that opens files in it by their names, if all in it are regular files or folders.

    Raises:
        As `check_regular`, but for links that lead nowhere: a library finds no file there.
    """
    for place, _, names in os.walk(folder):
        for name in names:
            path = os.path.join(place, name)
            if os.path.exists(path):
                check_regular(path)
    return folder


def check_model_folder(folder: str | os.PathLike) -> None:
    """As `check_all_regular`, of the files right in a folder of a model; the id of a model on the Hub passes."""
    for name in os.listdir(folder) if os.path.isdir(folder) else ():
        path = os.path.join(folder, name)
        if os.path.exists(path) and not os.path.isdir(path):
            check_regular(path)


def read_regular(path: str | os.PathLike, max_bytes: int = MAX_TEXT_BYTES) -> bytes:
    """
    Content of a regular file, at most as long as it was when it was opened. Raises as `check_regular`.
    """
    with open_regular(path, max_bytes) as file:
        return file.read(os.fstat(file.fileno()).st_size)


def parse_json(text: str | bytes) -> Any:
    """
    Values of a JSON text.

    Raises:
        ValueError: not JSON, nested deeper than Python's stack, or with numbers of thousands of digits.
    """
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("nested too deeply to be read") from None


def read_json(path: str | os.PathLike, max_bytes: int = MAX_TEXT_BYTES) -> Any:
    """Values of a JSON file. Raises as `check_regular` and `parse_json`, which does not name the file."""
    return parse_json(read_regular(path, max_bytes))


def _without_waiting(path: str, flags: int) -> int:
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_NOCTTY", 0))


@cache
def _system_devices() -> frozenset[int]:
    """Devices of files that the system makes up while they are read: some block, some never end."""
    return frozenset(os.stat(place).st_dev for place in ("/proc", "/sys") if os.path.ismount(place))


def _check(state: os.stat_result, path: str | os.PathLike, max_bytes: int | None) -> None:
    if not stat.S_ISREG(state.st_mode) or state.st_dev in _system_devices():
        kind = next((name for is_kind, name in _KINDS if is_kind(state.st_mode)), "a file of the system's own")
        advice = " What comes through it can be read once only: write it to a file first." if kind == "a pipe" else ""
        raise OSError(f"{printable(path)}: not a file but {kind}, expected a regular file.{advice}")
    if max_bytes is not None and state.st_size > max_bytes:
        raise ValueError(
            f"{printable(path)}: {state.st_size:,} bytes, over the limit of {max_bytes:,} for such a file."
        )


__all__ = [
    "MAX_TEXT_BYTES",
    "check_all_regular",
    "check_model_folder",
    "check_regular",
    "open_regular",
    "parse_json",
    "printable",
    "read_json",
    "read_regular",
]
