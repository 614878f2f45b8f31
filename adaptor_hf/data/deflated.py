"""DICOM files of the deflated transfer syntax (PS3.5, A.5), unpacked within a bound: few bytes may hold gigabytes."""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from typing import BinaryIO

from .archives import MAX_MEMBER_BYTES

MAX_UNPACKED_BYTES = MAX_MEMBER_BYTES
"""Largest data set that is unpacked."""

_CHUNK = 1 << 16
_PLAIN = b"1.2.840.10008.1.2.1\0"


class DeflatedError(ValueError):
    """What cannot be unpacked; `large` where it is too much, else it is damaged."""

    def __init__(self, found: str, large: bool):
        super().__init__(found)
        self.large = large


def unpacked(stream: BinaryIO, limit: int = MAX_UNPACKED_BYTES) -> tuple[bytes, int]:
    """
    A deflated file as one of explicit VR, little endian, as far as it can be unpacked.

    Args:
        stream: Seekable, of such a file (`adaptor_hf.data.dicom.is_deflated`).
        limit: Bytes of the result that are kept; the rest is counted alone.

    Returns:
        The file's bytes, and how many it has. A file that is cut off ends early.

    Raises:
        DeflatedError: It has over `MAX_UNPACKED_BYTES`, or is damaged.
    """
    stream.seek(0)
    head = _plain_head(stream)
    parts, size = [head], len(head)
    for chunk in _chunks(stream):
        if size < limit:
            parts.append(chunk[: limit - size])
        size += len(chunk)
        if size > MAX_UNPACKED_BYTES:
            raise DeflatedError(f"over {MAX_UNPACKED_BYTES:,} bytes when unpacked", large=True)
    return b"".join(parts)[:limit], size


def _plain_head(stream: BinaryIO) -> bytes:
    """Preamble and meta header that the unpacked file has; the stream is then where the packed data start."""
    from pydicom.filereader import read_dataset, read_preamble

    read_preamble(stream, force=True)
    meta = read_dataset(stream, False, True, stop_when=lambda tag, vr, length: tag >> 16 != 0x0002)
    elements = [_element(0x0010, _PLAIN)]
    if kind := str(meta.get("MediaStorageSOPClassUID") or ""):
        elements.insert(0, _element(0x0002, kind.encode("ascii", "ignore")))
    return bytes(128) + b"DICM" + b"".join(elements)


def _element(number: int, uid: bytes) -> bytes:
    uid += bytes(len(uid) % 2)
    return b"\2\0" + number.to_bytes(2, "little") + b"UI" + len(uid).to_bytes(2, "little") + uid


def _chunks(stream: BinaryIO) -> Iterator[bytes]:
    unpacker = zlib.decompressobj(-zlib.MAX_WBITS)
    try:
        packed = stream.read(_CHUNK)
        while not unpacker.eof:
            chunk = unpacker.decompress(packed, _CHUNK)
            packed = unpacker.unconsumed_tail or stream.read(_CHUNK)
            if chunk:
                yield chunk
            elif not packed:
                # Cut off: whoever reads on finds too little.
                return
    except zlib.error:
        raise DeflatedError("packed data that cannot be unpacked", large=False) from None


__all__ = ["MAX_UNPACKED_BYTES", "DeflatedError", "unpacked"]
