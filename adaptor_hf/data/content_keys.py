"""Keys of images and texts by what they hold, and the column of images block by block, without decoding."""

import hashlib
import os
from collections.abc import Iterable, Iterator

import numpy as np

from ..files import check_regular, open_regular
from .archives import container, image_source, parse_member, read_bytes

CHECKS = ("touched", "full", "off")
"""Which files of a cache of embeddings are compared with their digests before they are used; see `open_cache`."""
KEY_DTYPE = np.dtype("S16")  # 128-bit digests, as fixed-length bytes numpy can sort
BLOCK_ROWS = 2048
IMAGE_BLOCK_ROWS = 128  # images may be stored as bytes


def digest(data: bytes) -> bytes:
    """128-bit BLAKE2 digest."""
    return hashlib.blake2b(data, digest_size=16).digest()


def key_vector(digests: Iterable[bytes]) -> np.ndarray:
    """(n,) vector of 16-byte keys."""
    return np.frombuffer(b"".join(digests), dtype=KEY_DTYPE)


def text_key(text: str) -> bytes:
    """Key of a text: the digest of its UTF-8 bytes."""
    return digest(text.encode("utf-8", "surrogatepass"))


def file_key(path: str) -> bytes:
    """Key of an image file that costs one `stat`: the digest of absolute path, size and modification time.

    For a member of an archive (`adaptor_hf.data.archives`) size and time are the archive's.

    Raises:
        OSError: the file is missing or not a regular file.
    """
    found = os.stat(check_regular(container(path)))
    return digest(f"{os.path.abspath(path)}\0{found.st_size}\0{found.st_mtime_ns}".encode("utf-8", "surrogateescape"))


def content_key(path: str) -> bytes:
    """Key of the content of a file, or of a member of an archive."""
    if parse_member(path) is not None:
        return digest(read_bytes(path))
    with open_regular(path) as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).digest()


def image_reference(value) -> tuple[str | None, bytes | None]:
    """Path and bytes of a stored image: a path, or the struct of datasets.Image and RadiographImage."""
    if isinstance(value, dict):
        source = image_source(value)
        return value.get("path"), source if isinstance(source, bytes) else None
    return (str(value), None) if value is not None else (None, None)


def blocks(dataset, column: str, rows: int = BLOCK_ROWS) -> Iterator[tuple[int, list]]:
    """Start row and Python values of a column, block by block, without decoding."""
    part = dataset.select_columns([column])
    for start in range(0, len(part), rows):
        yield start, part[start : start + rows].column(column).to_pylist()


__all__ = [
    "BLOCK_ROWS",
    "CHECKS",
    "IMAGE_BLOCK_ROWS",
    "KEY_DTYPE",
    "blocks",
    "content_key",
    "digest",
    "file_key",
    "image_reference",
    "key_vector",
    "text_key",
]
