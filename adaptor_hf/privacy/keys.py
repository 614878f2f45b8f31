"""Keyed hashes of ids, and the key file they need."""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import os
import secrets
import stat
from pathlib import Path

from ..files import aside_of, open_regular

KEY_BYTES = 32
_HEX_CHARACTERS = 24


def load_key(path: str | os.PathLike, create: bool = False) -> bytes:
    """
    The secret key of a file; ids hashed with one key are the same in every table and run.

    Args:
        path: Text file with the key as 64 hexadecimal characters. Keep it out of what is shared, and keep it: without
            it new tables do not fit old ones. Whoever has it can find the hash of any id they know.
        create: Write a new random key, readable by its owner only (mode 0600), where there is no file.

    Returns:
        32 bytes.

    Raises:
        FileNotFoundError: No such file, and `create` is False.
        ValueError: The file holds no such key.
        PermissionError: Others than the owner may read or write the file.
    """
    path = Path(path)
    if create:
        _write_new_key(path)
    try:
        with open_regular(path) as file:
            mode = os.fstat(file.fileno()).st_mode
            content = file.read(4 * KEY_BYTES)
    except FileNotFoundError:
        raise FileNotFoundError(f"{path}: no such key file. Name the file that holds the key of the ids.") from None
    if stat.S_IMODE(mode) & 0o077:
        raise PermissionError(f"{path}: others than its owner may read this key. Run `chmod 600` on it.")
    try:
        key = bytes.fromhex(content.decode("ascii").strip())
    except ValueError:
        key = b""
    if len(key) != KEY_BYTES:
        raise ValueError(
            f"{path}: not a key. Expected {2 * KEY_BYTES} hexadecimal characters; let a new file be made instead."
        )
    return key


def keyed_hash(value: str, key: bytes) -> str:
    """
    HMAC-SHA256 of an id under a key, as 24 hexadecimal characters (96 bits).

    Without a key a hash of a short id is no secret: all ids can be tried. White space around the id does not count.

    Raises:
        ValueError: The key has fewer than 16 bytes.
    """
    if len(key) < 16:
        raise ValueError(f"A key of {len(key)} bytes is too short: make one with load_key(path, create=True).")
    return hmac.new(key, value.strip().encode("utf-8"), hashlib.sha256).hexdigest()[:_HEX_CHARACTERS]


def _write_new_key(path: Path) -> None:
    # Linked into place when whole, so that two processes that start together end with one key.
    if path.exists():
        return
    aside = aside_of(path)
    descriptor = os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(descriptor, "w", encoding="ascii") as file:
            file.write(secrets.token_hex(KEY_BYTES) + "\n")
        with contextlib.suppress(FileExistsError):
            os.link(aside, path)
    finally:
        os.unlink(aside)


__all__ = ["KEY_BYTES", "keyed_hash", "load_key"]
