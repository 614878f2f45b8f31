"""List what a PACS export may consist of: files of any name, members of zips, and the references of a DICOMDIR."""

from __future__ import annotations

import os
import stat
import zipfile
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import NamedTuple

from ...files import is_folder, open_regular
from ..archives import Member
from ..dicom import is_deflated, quiet_pydicom
from ..files import outside_root

MAX_DICOMDIR_BYTES = 1 << 28


class WalkedFile(NamedTuple):
    """A file or a member of a zip."""

    name: str
    """Relative to the root, with "/"; of a member "archive.zip::member"."""
    path: str
    """What `read_image` opens: absolute."""
    size: int
    """Bytes, of a member when unpacked."""
    state: str
    """Changes when the file, or the archive, changes."""
    fault: str | None = None
    """One of `FAULTS`, where it is not worth opening."""


def walk(root: Path, skip: Path | None = None) -> Iterator[WalkedFile]:
    """
    Everything under a folder, in the order of its names; links to folders are followed, each folder is listed once.

    Args:
        root: Folder.
        skip: Folder that is left out: where the index itself is written.
    """
    skip = None if skip is None else Path(os.path.realpath(skip))
    stack, seen = [str(root)], set()
    while stack:
        folder = stack.pop()
        try:
            where = os.stat(folder)
            entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
        except OSError:
            yield _file(root, folder, None, "unreadable")
            continue
        if (where.st_dev, where.st_ino) in seen or Path(os.path.realpath(folder)) == skip:
            continue
        seen.add((where.st_dev, where.st_ino))
        folders = []
        for entry in entries:
            if entry.name.startswith("."):
                yield _file(root, entry.path, None, "hidden")
            elif is_folder(entry):
                folders.append(entry.path)
            else:
                yield from look_at(root, entry.path)
        stack += reversed(folders)


def look_at(root: Path, path: str) -> Iterator[WalkedFile]:
    """A file, or the members of a zip."""
    try:
        status = os.stat(path)
    except OSError as error:
        yield _file(root, path, None, "gone" if isinstance(error, FileNotFoundError) else "unreadable")
        return
    fault = None
    if not stat.S_ISREG(status.st_mode):
        fault = "not_a_file"
    elif status.st_size == 0:
        fault = "empty"
    elif path != path.rstrip() or path != path.encode("utf-8", "ignore").decode():
        fault = "file_name"
    if fault is None and path.lower().endswith(".zip"):
        yield from _members(root, path, status)
    else:
        yield _file(root, path, status, fault)


def _file(root: Path, path: str, status: os.stat_result | None, fault: str | None) -> WalkedFile:
    name = os.path.relpath(path, root).replace(os.sep, "/")
    # A name that is no text can be shown only with its bytes replaced.
    name = name.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
    return WalkedFile(name, path, status.st_size if status else 0, _state(status) if status else "", fault)


def _members(root: Path, path: str, status: os.stat_result) -> Iterator[WalkedFile]:
    archive = _file(root, path, status, None)
    try:
        with open_regular(path) as stream, zipfile.ZipFile(stream) as file:
            entries = [entry for entry in file.infolist() if not entry.is_dir()]
    except Exception:
        # A damaged directory of a zip is met with every kind of exception.
        yield archive._replace(fault="broken_archive")
        return
    outside = outside_root(_series([entry.filename for entry in entries]))
    for entry, leads_out in zip(entries, outside, strict=True):
        base = entry.filename.replace("\\", "/").rpartition("/")[2]
        fault = None
        if leads_out:
            fault = "unsafe_member"
        elif base.startswith(".") or entry.filename.startswith("__MACOSX/"):
            fault = "hidden"
        elif entry.flag_bits & 1:
            fault = "encrypted_member"
        elif entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            fault = "packed_member"
        elif entry.file_size == 0:
            fault = "empty"
        elif entry.filename != entry.filename.encode("utf-8", "ignore").decode():
            fault = "file_name"
        member = Member(path, entry.filename, entry.header_offset, entry.compress_size)
        name = f"{archive.name}::{entry.filename.encode('utf-8', 'replace').decode()}"
        yield WalkedFile(name, str(member), entry.file_size, f"{_state(status)} {entry.header_offset}", fault)


def _series(names: list[str]):
    import pandas as pd

    return pd.Series(names, dtype=object)


def _state(status: os.stat_result) -> str:
    return f"{status.st_mtime_ns} {status.st_size}"


def referenced_files(path: str | os.PathLike) -> list[str]:
    """
    Files that a DICOMDIR names, relative to its folder, with "/".

    Raises:
        ValueError: It is damaged, too large, or a reference leads out of its folder. The message names no reference.
    """
    import pydicom

    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        data = file.read(min(size, MAX_DICOMDIR_BYTES))
    if size > MAX_DICOMDIR_BYTES or is_deflated(data):
        raise ValueError(f"{path}: a DICOMDIR of over {MAX_DICOMDIR_BYTES:,} bytes, or deflated.")
    names = []
    try:
        with quiet_pydicom():
            dataset = pydicom.dcmread(BytesIO(data), force=True)
            for record in dataset.DirectoryRecordSequence:
                parts = record.get("ReferencedFileID")
                if parts:
                    parts = [parts] if isinstance(parts, str) else [str(part) for part in parts]
                    names.append("/".join(part.strip() for part in parts))
    except Exception as error:
        raise ValueError(f"{path}: not a DICOMDIR that can be read ({type(error).__name__}).") from None
    if names and outside_root(_series(names)).any():
        raise ValueError(f"{path}: a reference of this DICOMDIR leads out of its folder, which is refused.")
    return names


__all__ = ["WalkedFile", "look_at", "referenced_files", "walk"]
