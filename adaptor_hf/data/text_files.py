"""The bytes of a text file as UTF-8, whatever encoding it has; files that are no text are refused as what they are."""

from __future__ import annotations

import logging
import mmap
import os
from functools import cache
from pathlib import Path

import pyarrow as pa

from ..files import check_regular, open_regular, printable

logger = logging.getLogger(__name__)

_UNPACKED_BYTES, _UNPACKED_TIMES, _PIECE_BYTES = 1 << 28, 200, 1 << 24
_COMPRESSED = (".gz", ".bz2", ".zst", ".lz4")
_MARKS = {  # UTF-32's little-endian mark begins with that of UTF-16
    b"\xff\xfe\x00\x00": "utf-32",
    b"\x00\x00\xfe\xff": "utf-32",
    b"\xff\xfe": "utf-16",
    b"\xfe\xff": "utf-16",
}
_UTF8_MARK = b"\xef\xbb\xbf"
_EXCEL = "In Excel: Save as, CSV UTF-8."
_PAGE = "a web page: a download that failed, or a table saved as HTML. Export the table as CSV in UTF-8."
_NO_TEXT = {
    b"PK\x03\x04": f"a zip file, as an Excel workbook (.xlsx) or OpenDocument table (.ods) is. {_EXCEL}",
    b"\xd0\xcf\x11\xe0": f"an old Excel workbook (.xls). {_EXCEL}",
    b"PAR1": "a Parquet file. Give it the ending .parquet.",
    b"\x1f\x8b": "compressed with gzip. Give it the ending .gz.",
    b"%PDF": "a PDF file. Export the table as CSV in UTF-8.",
    b"<!doctype html": _PAGE,
    b"<html": _PAGE,
    b"version https://git-lfs": "a pointer of Git LFS, not the file itself. Run `git lfs pull` where it came from.",
}


def suffix_of(path: Path) -> str:
    """Last suffix in lower case, under a .gz."""
    return (path.with_suffix("") if path.suffix.lower() == ".gz" else path).suffix.lower()


def read_utf8(
    path: Path, encoding: str | None = None, *, fallback: str | None = None
) -> tuple[bytes | mmap.mmap, int, str]:
    """
    A text file's content in UTF-8. A file that has it already is mapped, not read.

    Args:
        path: Also compressed, by its ending.
        encoding: A name that Python knows. None takes UTF-8, or UTF-16 and UTF-32 with a byte-order mark.
        fallback: Encoding of a file that is none of these; None refuses it.

    Returns:
        The content, the place where it begins (after a byte-order mark) and the name of the encoding. Whether mapped
        content is UTF-8 to its end is not looked at where `encoding` and `fallback` are None: see `decoded`.

    Raises:
        FileNotFoundError: No such file.
        OSError: The file cannot be read or unpacked.
        ValueError: The file is no text, or not of that encoding. The message says where.
    """
    data = _content(path)
    head = bytes(data[:1024])
    for magic, what in _NO_TEXT.items():
        if head.lstrip()[: len(magic)].lower() == magic.lower():
            raise ValueError(f"{path}: this is no text table but {what}")
    marked = next((name for mark, name in _MARKS.items() if head.startswith(mark)), None)
    if encoding is None and marked is None:
        if (nul := data.find(b"\0")) >= 0:
            raise ValueError(f"{path}, line {_line(data, nul)}: {_about_nul(head, nul)}")
        if fallback is not None and not _is_utf8(data):
            say_once(str(path), f"The table is not UTF-8: it is read as {shown(fallback)}.")
            return _recoded(bytes(data), fallback, path), 0, fallback
        return data, len(_UTF8_MARK) if head.startswith(_UTF8_MARK) else 0, "utf-8"
    if encoding is None:
        say_once(str(path), f"The table is read as {shown(marked)}, by its byte-order mark.")
        return _recoded(bytes(data), marked, path), 0, marked
    name = _known(encoding)
    if marked is not None and not name.startswith(marked):
        raise ValueError(f"{path}: it has the byte-order mark of {shown(marked)}, so it is not {encoding}. Leave out "
                         "--encoding (encoding= in Python).")  # fmt: skip
    if name == "utf-8":
        decoded(data, path)
        return data, len(_UTF8_MARK) if head.startswith(_UTF8_MARK) else 0, name
    return _recoded(bytes(data), marked or name, path), 0, name


def decoded(data: bytes | mmap.mmap, path: Path) -> str:
    """
    UTF-8 as text, without a byte-order mark.

    Raises:
        ValueError: Not UTF-8. The message names the line and what to do.
    """
    data = bytes(data)
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        # The codec counts without the mark that it took off.
        start = error.start + (len(_UTF8_MARK) if data.startswith(_UTF8_MARK) else 0)
        cut = (
            " The file may be cut off there." if start > len(data) - 4 and error.reason.startswith("unexpected") else ""
        )
        raise ValueError(
            f"{path}, line {_line(data, start)}: byte 0x{data[start]:02x} at offset {start} is not UTF-8.{cut} Say "
            "which encoding the file has with --encoding (encoding= in Python): windows-1252 is that of Excel's plain "
            "CSV in Western Europe, windows-1250 in Central Europe, windows-1251 of Cyrillic. Or export it as CSV "
            "UTF-8."
        ) from None


@cache
def say_once(path: str, message: str) -> None:
    """Log how a file is read, once a file; the path is not in the message."""
    logger.info("%s", message)


def shown(encoding: str) -> str:
    """An encoding's name as people write it."""
    return "Windows-" + encoding[2:] if encoding.startswith("cp125") else encoding.upper()


def _content(path: Path) -> bytes | mmap.mmap:
    if path.suffix.lower() in _COMPRESSED:
        return _unpacked(path)
    with open_regular(path) as file:
        if os.fstat(file.fileno()).st_size == 0:
            return b""
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)


def _unpacked(path: Path) -> bytes:
    """Content of a compressed file, if it is no more than a table can be: a few bytes unpack to any number."""
    limit = max(_UNPACKED_BYTES, _UNPACKED_TIMES * os.stat(check_regular(path)).st_size)
    pieces, length = [], 0
    with pa.input_stream(str(path), compression="detect") as stream:
        while piece := stream.read(_PIECE_BYTES):
            pieces.append(piece)
            length += len(piece)
            if length > limit:
                raise ValueError(
                    f"{printable(path)}: unpacks to over {limit:,} bytes, {_UNPACKED_TIMES} times its size or more, as "
                    "no table does. Unpack it first if you trust it."
                )
    return b"".join(pieces)


def _is_utf8(data: bytes | mmap.mmap) -> bool:
    try:
        bytes(data).decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True


def _known(encoding: str) -> str:
    import codecs

    try:
        name = codecs.lookup(encoding.strip()).name
        "".encode(name)
    except (LookupError, TypeError):
        raise ValueError(
            f"The encoding {encoding!r} (--encoding) is unknown. Expected a name such as utf-8, utf-16, windows-1252, "
            "windows-1250, latin-1, mac-roman, shift_jis or gb18030."
        ) from None
    return "utf-8" if name == "utf-8-sig" else name


def _recoded(data: bytes, encoding: str, path: Path) -> bytes:
    try:
        return data.decode(encoding).removeprefix("\ufeff").encode("utf-8")
    except UnicodeDecodeError as error:
        line = data[: error.start].decode(encoding, "replace").count("\n") + 1
        cut = " The file may be cut off there." if "truncated" in error.reason else ""
        raise ValueError(
            f"{path}, line {line}: byte 0x{data[error.start]:02x} at offset {error.start} is not {shown(encoding)}, as "
            f"which it was to be read.{cut} Name the right encoding with --encoding (encoding= in Python), or export "
            "the table as CSV UTF-8."
        ) from None


def _about_nul(head: bytes, place: int) -> str:
    """What to say of a NUL byte: text of UTF-16 without a mark has one beside each letter."""
    for name, nuls in () if not head.strip(b"\0") else (("utf-16-le", head[1::2]), ("utf-16-be", head[::2])):
        if len(nuls) > 1 and nuls.count(0) > 0.7 * len(nuls):
            said = f"this looks like {shown(name)} without a byte-order mark."
            return f"{said} Pass --encoding {name} (encoding= in Python)."
    return (
        f"a NUL byte at offset {place}, which no text has. The file is damaged (cut off and filled up), or is no text: "
        "export it again as CSV UTF-8."
    )


def _line(data: bytes | mmap.mmap, place: int) -> int:
    return bytes(data[:place]).count(b"\n") + 1


__all__ = ["decoded", "read_utf8", "say_once", "shown", "suffix_of"]
