"""What was read of each header, kept beside the table, so that an index that was killed goes on from there."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from ...files import full_disk_named, open_regular, parse_json
from ...privacy.mode import is_private, key_name, private_name
from ...privacy.vocabulary import listed_word
from ..dicom_headers import Fault

VERSION = 2
_IDS = ("uid", "patient", "study", "key")
_WORDS = ("modality", "view", "body_part", "photometric", "intent")
_UIDS = ("sop_class", "syntax")


class HeaderState:
    """
    Facts or fault of each object by its name, in a file of JSON lines that is only added to.

    In private mode names and ids are keyed hashes before anything is written, and words that are on no list of the
    standard are `OTHER`, so the file names nobody.

    Args:
        path: Of the file; None keeps nothing.
        on: Keyword that reports are joined on: facts read for another one do not count.
    """

    def __init__(self, path: Path | None, on: str):
        self.path = path
        self.known: dict[str, tuple[str, Any]] = {}
        self._file = None
        if path is None:
            return
        # Words were kept as they are in earlier files of private mode.
        listed = {"listed": True} if is_private() else {}
        first = json.dumps({"version": VERSION, "on": on, "private": key_name()} | listed)
        length = self._read(first)
        if length == 0:
            path.unlink(missing_ok=True)
        else:
            # A line that a kill has cut short goes; the next one is written in its place.
            os.truncate(path, length)
        with full_disk_named(path):
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600 if is_private() else 0o666)
            self._file = os.fdopen(descriptor, "a", encoding="utf-8")
            if length == 0:
                self._file.write(first + "\n")

    def get(self, name: str, state: str) -> dict[str, Any] | Fault | None:
        """Facts or fault of an object that is as it was, else None."""
        before, result = self.known.get(private_name(name), ("", None))
        return result if before == state else None

    def add(self, rows: list[tuple[str, str, dict[str, Any] | Fault]]) -> list[dict[str, Any] | Fault]:
        """Keep name, state and result of some objects; returns the results with hashed ids, as `get` gives them."""
        rows = [(private_name(name), state, _hashed(result)) for name, state, result in rows]
        if self._file is not None:
            with full_disk_named(self.path):
                self._file.writelines(json.dumps(row, ensure_ascii=False, separators=(",", ":")) + "\n" for row in rows)
                self._file.flush()
        return [result for _, _, result in rows]

    def close(self) -> None:
        if self._file is not None:
            with full_disk_named(self.path):
                self._file.close()

    def _read(self, first: str) -> int:
        """Read what is there; gives the bytes of its whole lines, 0 where it is of other settings."""
        length = 0
        try:
            with open_regular(self.path) as file:
                for line in file:
                    if length == 0:
                        if line.decode("utf-8", "replace") != first + "\n":
                            return 0
                    elif not line.endswith(b"\n"):
                        break
                    else:
                        name, state, result = parse_json(line)
                        self.known[name] = (state, Fault(*result) if isinstance(result, list) else result)
                    length += len(line)
        except FileNotFoundError:
            return 0
        except (ValueError, TypeError):
            # A line that is no JSON: what comes before it is good, and is kept.
            pass
        return length


def _hashed(result: dict[str, Any] | Fault) -> dict[str, Any] | Fault:
    if isinstance(result, Fault) or not is_private():
        return result
    listed = {name: listed_word(result[name], name) for name in _WORDS}
    listed["image_type"] = [listed_word(word, "image_type") for word in result["image_type"]]
    uids = {name: result[name] if _is_registered(result[name]) else "private" for name in _UIDS if result[name]}
    return result | {name: private_name(result[name]) for name in _IDS if result[name]} | listed | uids


def _is_registered(uid: str) -> bool:
    from pydicom.uid import UID_dictionary

    return uid in UID_dictionary


__all__ = ["HeaderState"]
