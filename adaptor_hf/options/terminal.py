"""What a command prints cannot steer the terminal: names of files, ids and labels come from others."""

from __future__ import annotations

import logging
import os
import re
import sys
from collections.abc import Iterable
from typing import Any

# Control characters but line ends and tabs, bytes that are no UTF-8, and marks that turn the direction of writing.
# Progress bars go up a line (escape, [A) and back to its beginning, at the beginning or the end of what they write.
_STEERING = re.compile(
    r"\x1b(?!\[A)|(?<!^)\r(?!\n|\Z)|[\x00-\x08\x0b\x0c\x0e-\x1a\x1c-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e"
    r"\u2066-\u2069\ud800-\udfff]"
)


def without_steering(text: str) -> str:
    r"""A text whose characters that steer a terminal are written as Python escapes them, such as `\x1b`."""
    return _STEERING.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def is_one_line(text: str) -> bool:
    """Whether a text has no characters that steer a terminal, line ends and tabs among them."""
    return not _STEERING.search(text) and not set("\n\r\t\x1b") & set(text)


def escape_output() -> None:
    """
    From here on what this process writes to stdout and stderr, by logs too, goes through `without_steering`. Colours
    are escape codes as well, and go (`NO_COLOR`).
    """
    os.environ.setdefault("NO_COLOR", "1")
    wrapped = {}
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is not None and not getattr(stream, "is_escaped", False):
            wrapped[id(stream)] = _Escaped(stream)
            setattr(sys, name, wrapped[id(stream)])
    # Handlers that libraries made when they were imported hold the streams of the time.
    loggers = [logging.root, *(logging.getLogger(name) for name in list(logging.root.manager.loggerDict))]
    for handler in {handler for logger in loggers for handler in logger.handlers}:
        if isinstance(handler, logging.StreamHandler) and id(handler.stream) in wrapped:
            handler.setStream(wrapped[id(handler.stream)])


class _Escaped:
    """A text stream whose text cannot steer a terminal."""

    is_escaped = True

    def __init__(self, stream: Any) -> None:
        self.stream = stream

    def write(self, text: str) -> int:
        self.stream.write(without_steering(text))
        return len(text)

    def writelines(self, lines: Iterable[str]) -> None:
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)


__all__ = ["escape_output", "is_one_line", "without_steering"]
