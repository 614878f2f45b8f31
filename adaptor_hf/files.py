"""Files that are whole or absent, and their digests."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from .tower_bundles_adaptor import file_sha256


@contextmanager
def written_aside(path: str | os.PathLike) -> Iterator[Path]:
    """
    A place beside `path` to write to: renamed to it at the end of the block, removed if the block fails.

    Raises:
        OSError: if it cannot be renamed.
    """
    path = Path(path)
    aside = path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}.partial")
    try:
        yield aside
        os.replace(aside, path)
    finally:
        aside.unlink(missing_ok=True)


def write_aside(path: str | os.PathLike, content: str | bytes) -> None:
    """Write a text (UTF-8) or bytes so that the file is whole or absent; an older one stays until then."""
    with written_aside(path) as aside:
        aside.write_bytes(content.encode("utf-8") if isinstance(content, str) else content)


__all__ = ["file_sha256", "write_aside", "written_aside"]
