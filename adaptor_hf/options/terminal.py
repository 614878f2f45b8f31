"""What a command prints cannot steer the terminal: names of files, ids and labels come from others."""

from __future__ import annotations

import logging
import os
import re
import sys
from collections.abc import Callable, Iterable
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
    wrap_streams(_Escaped, "stdout", "stderr")


class FilteredStream:
    """A text stream whose text goes through `change`, which a subclass has."""

    change: Callable[[str], str]

    def __init__(self, stream: Any) -> None:
        self.stream = stream

    def write(self, text: str) -> int:
        self.stream.write(type(self).change(text))
        return len(text)

    def writelines(self, lines: Iterable[str]) -> None:
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)


class _Escaped(FilteredStream):
    """Its text cannot steer a terminal."""

    change = staticmethod(without_steering)


def wrap_streams(kind: type[FilteredStream], *names: str) -> None:
    """Put a filter before streams of `sys`, and before handlers of logs that hold them since they were made."""
    wrapped = {}
    for name in names:
        stream = getattr(sys, name)
        if stream is not None and not _is_filtered(stream, kind):
            wrapped[id(stream)] = kind(stream)
            setattr(sys, name, wrapped[id(stream)])
    for handler in stream_handlers():
        if id(handler.stream) in wrapped:
            handler.setStream(wrapped[id(handler.stream)])


def _is_filtered(stream: Any, kind: type[FilteredStream]) -> bool:
    """Whether a stream has such a filter, maybe behind others."""
    while isinstance(stream, FilteredStream):
        if isinstance(stream, kind):
            return True
        stream = stream.stream
    return False


def stream_handlers() -> set[logging.StreamHandler]:
    """Handlers of all loggers that write to a stream."""
    loggers = [logging.root, *(logging.getLogger(name) for name in list(logging.root.manager.loggerDict))]
    return {one for logger in loggers for one in logger.handlers if isinstance(one, logging.StreamHandler)}


__all__ = [
    "FilteredStream",
    "escape_output",
    "is_one_line",
    "stream_handlers",
    "without_steering",
    "wrap_streams",
]
