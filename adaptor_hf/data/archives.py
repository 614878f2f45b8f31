"""Images inside tar and zip archives, read where they lie: nothing is unpacked, no handle stays open.

An image's path may name a member, "shards/00000.tar::000000012.jpg@1536+20480": the archive, the member, and where its
data (zip: its local header) starts and how many bytes are stored. Such a path is plain text: it pickles, survives
`map` and `save_to_disk`, and costs one open and one seek to read.
"""

from __future__ import annotations

import os
import re
import struct
import tarfile
import zipfile
import zlib
from typing import NamedTuple

from ..files import open_regular, printable, read_regular

MAX_FILE_BYTES = 1 << 30
"""Largest file of one image or report that is read."""
MAX_MEMBER_BYTES = 1 << 28
"""Largest member that is read, unpacked: a small deflated member can unpack to any size."""

_MEMBER = re.compile(r"(.+?\.(?:tar|zip))::(.+)@(\d+)\+(\d+)", re.DOTALL | re.IGNORECASE)
_ZIP_LOCAL_HEADER = struct.Struct("<4s2xHH8xLL2H")
_STORED, _DEFLATED = 0, 8


class Member(NamedTuple):
    """A member of an archive: `offset` in bytes of its data (zip: of its local header), `size` in bytes as stored."""

    archive: str
    name: str
    offset: int
    size: int

    def __str__(self) -> str:
        return f"{self.archive}::{self.name}@{self.offset}+{self.size}"


def parse_member(path: str) -> Member | None:
    """The member that a path names, or None for the path of a file."""
    match = _MEMBER.fullmatch(path) if "::" in path else None
    return match and Member(match[1], match[2], int(match[3]), int(match[4]))


def stored_image(path: str) -> dict:
    """
    The struct of an image column for a path.

    A member has empty bytes, not None: `datasets` looks up the size of the file of an image without bytes, and there is
    no file of a member's name.
    """
    return {"bytes": b"" if parse_member(path) else None, "path": path}


def image_source(value: dict) -> bytes | str | None:
    """What an image column's struct is read from: its bytes, else its path; of a member the path."""
    data, path = value.get("bytes"), value.get("path")
    if data is None or (data == b"" and path and parse_member(path)):
        return path
    return data


def container(path: str) -> str:
    """The file that must be there to read this path: the archive of a member, or the path itself."""
    member = parse_member(path)
    return path if member is None else member.archive


def read_bytes(path: str | os.PathLike) -> bytes:
    """
    Content of a file or of a member of an archive.

    Raises:
        OSError: No such file, no regular file (a pipe, a device, a folder), or it cannot be read.
        ValueError: The file is over `MAX_FILE_BYTES`; or the member is not where the path says (the archive was changed
            or cut short), is encrypted or packed in another way than stored or deflated, or is over `MAX_MEMBER_BYTES`.
    """
    member = parse_member(os.fspath(path))
    if member is None:
        return read_regular(path, MAX_FILE_BYTES)
    return read_member(member)


def read_member(member: Member, limit: int | None = None) -> bytes:
    """Content of a member, unpacked; with a `limit` its first bytes only. Raises as `read_bytes`."""
    name = printable(f"{member.archive}::{member.name}")
    if limit is None and member.size > MAX_MEMBER_BYTES:
        raise ValueError(f"{name}: {member.size:,} bytes, over the limit of {MAX_MEMBER_BYTES:,} for one image.")
    with open_regular(member.archive) as file:
        file.seek(member.offset)
        method = _STORED
        if member.archive.lower().endswith(".zip"):
            method = _skip_local_header(file, member, name)
        # What is stored is at most a little longer than what it unpacks to.
        wanted = member.size if limit is None else min(member.size, limit + (limit >> 10) + 64)
        # Python allocates all that is asked for, also where a damaged zip's directory says too much.
        data = file.read(min(wanted, os.fstat(file.fileno()).st_size))
    if len(data) != wanted:
        raise ValueError(f"{name}: the archive ends {wanted - len(data):,} bytes too early. Download it again.")
    if limit is not None:
        return data[:limit] if method == _STORED else _inflate_start(data, limit, name)
    return data if method == _STORED else _inflate(data, name)


def list_tar(path: str | os.PathLike) -> tuple[list[tuple[str, int, int]], str | None]:
    """
    Name, offset and size of each file in a tar, in order, and what is wrong with the tar's end, or None.

    A tar that is cut short lists the members that are whole.

    Raises:
        ValueError: This is no uncompressed tar.
    """
    members: list[tuple[str, int, int]] = []
    length, end = os.stat(path).st_size, 0
    try:
        with open_regular(path) as file, tarfile.open(fileobj=file, mode="r:") as tar:
            while (entry := tar.next()) is not None:
                if entry.offset_data + entry.size > length:
                    return members, "the tar is cut short"
                if entry.isreg():
                    members.append((entry.name, entry.offset_data, entry.size))
                end = entry.offset_data + -(-entry.size // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE
                # The list that tarfile keeps of all it has seen grows without end.
                tar.members = []
    except tarfile.ReadError as error:
        if not members:
            raise ValueError(
                f"{os.fspath(path)}: not an uncompressed tar ({error}). Compressed archives have no place to seek to: "
                "unpack the compression (gunzip), or download the file again."
            ) from None
        return members, f"the tar is cut short ({error})"
    with open_regular(path) as file:
        file.seek(end)
        # A whole tar ends with empty blocks; tarfile takes half a header for the end, too.
        whole = file.read(tarfile.BLOCKSIZE) == tarfile.NUL * tarfile.BLOCKSIZE
    return members, None if whole else "the tar is cut short"


def list_zip(path: str | os.PathLike) -> list[tuple[str, int, int]]:
    """
    Name, offset of the local header and stored size of each file in a zip.

    Raises:
        ValueError: This is no zip, or one that is cut short.
    """
    try:
        with open_regular(path) as file, zipfile.ZipFile(file) as archive:
            return [
                (entry.filename, entry.header_offset, entry.compress_size)
                for entry in archive.infolist()
                if not entry.is_dir()
            ]
    except zipfile.BadZipFile as error:
        raise ValueError(f"{os.fspath(path)}: not a whole zip ({error}). Download it again.") from None


def _skip_local_header(file, member: Member, name: str) -> int:
    """Move to the member's data and return how it is packed."""
    header = file.read(_ZIP_LOCAL_HEADER.size)
    if len(header) < _ZIP_LOCAL_HEADER.size or header[:4] != b"PK\x03\x04":
        raise ValueError(f"{name}: not at byte {member.offset} of the zip, which was changed. Load the data set again.")
    _, flags, method, _, _, name_length, extra_length = _ZIP_LOCAL_HEADER.unpack(header)
    if flags & 1:
        raise ValueError(f"{name}: the member is encrypted. Unpack the zip with its password first.")
    if method not in (_STORED, _DEFLATED):
        raise ValueError(f"{name}: packed with method {method}, expected stored (0) or deflated (8). Unpack the zip.")
    file.seek(name_length + extra_length, os.SEEK_CUR)
    return method


def _inflate_start(data: bytes, limit: int, name: str) -> bytes:
    try:
        return zlib.decompressobj(-15).decompress(data, limit)
    except zlib.error as error:
        raise ValueError(f"{name}: the member is damaged ({error}). Download the zip again.") from None


def _inflate(data: bytes, name: str) -> bytes:
    unpacker = zlib.decompressobj(-15)
    try:
        content = unpacker.decompress(data, MAX_MEMBER_BYTES + 1)
    except zlib.error as error:
        raise ValueError(f"{name}: the member is damaged ({error}). Download the zip again.") from None
    if len(content) > MAX_MEMBER_BYTES:
        raise ValueError(f"{name}: unpacks to over {MAX_MEMBER_BYTES:,} bytes, the limit for one image.")
    if not unpacker.eof:
        raise ValueError(f"{name}: the member's data end too early. Download the zip again.")
    return content


__all__ = [
    "MAX_FILE_BYTES",
    "MAX_MEMBER_BYTES",
    "Member",
    "container",
    "list_tar",
    "list_zip",
    "parse_member",
    "read_bytes",
    "read_member",
]
