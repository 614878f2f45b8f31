"""The one gate of every command: with private mode asked for, it runs privately or does not run at all."""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from ..options.terminal import escape_output
from .asked import ENVIRONMENT, asked_for
from .hooks import install_hooks, remove_hooks
from .messages import hide_messages, show_messages

# For processes that this one starts.
_PARENT = "ADAPTOR_PRIVATE_PARENT"
_Main = TypeVar("_Main", bound=Callable[..., Any])


@dataclass(frozen=True)
class Declared:
    """How a command stands to private mode. The first that holds of several is the most careful: see `_ORDER`."""

    kind: str
    """One of `_ORDER`."""
    why: str
    """What it reads, or what to do instead."""


_ORDER = ("refuses", "knows", "harmless")


def knows(what: str) -> Declared:
    """A command that has private mode; `what` it then hides."""
    return Declared("knows", what)


def harmless(why: str) -> Declared:
    """A command that reads nothing of the user's and prints what is packaged: its standard output is left alone."""
    return Declared("harmless", why)


def refuses(instead: str) -> Declared:
    """A command that stops where private mode is asked for, and says what to do `instead`."""
    return Declared("refuses", instead)


def guarded(declared: Declared | Mapping[str, Declared]) -> Callable[[_Main], _Main]:
    """
    Decorator of the `main` of every command.

    Where private mode is asked for, by `--private`, by a recipe or by `ADAPTOR_PRIVATE`, messages are filtered before
    the command line is parsed, and a command that has no private mode stops before it reads anything.

    Args:
        declared (`Declared` or `Mapping`): Of the command, or by name of each of its subcommands.
    """

    def decorate(main: _Main) -> _Main:
        @functools.wraps(main)
        def run(arguments: Sequence[str] | None = None) -> Any:
            if arguments is None:
                # A process of its own; who calls it from Python keeps the streams.
                escape_output()
            words = sys.argv[1:] if arguments is None else list(arguments)
            _enter(declared, words)
            return main(arguments)

        run.declared = declared
        return run

    return decorate


def _enter(declared: Declared | Mapping[str, Declared], words: list[str]) -> None:
    try:
        if not asked_for(words):
            return
    except ValueError as error:
        raise SystemExit(f"error: {error}") from None
    one = _of_command(declared, words)
    if one.kind == "refuses" and not _asks_for_help(words):
        raise SystemExit(
            f"error: --private or {ENVIRONMENT} asks for private mode, which this command does not have: nothing was "
            f"read. {one.why}"
        )
    start_filter(words, stdout=one.kind != "harmless" and not _asks_for_help(words))


def start_filter(words: Sequence[str] = (), stdout: bool = True) -> None:
    """
    Filter stdout, stderr, logs, warnings, tracebacks and argparse's errors, before a command line is parsed.

    Args:
        words (`Sequence[str]`): Of the command line; what looks like a path is cut out of all messages.
        stdout (`bool`, defaults to `True`): Whether stdout is filtered too.
    """
    values = [part for word in words for part in (word, word.partition("=")[2]) if not part.startswith("-")]
    hide_messages([value for value in values if "/" in value or "\\" in value or _exists(value)], stdout=stdout)
    install_hooks(words)
    os.environ[_PARENT] = str(os.getpid())


def stop_filter() -> None:
    """Let messages out as they are: private mode was not asked for, though it looked so before all was parsed."""
    show_messages()
    remove_hooks()
    os.environ.pop(_PARENT, None)


def _follow_parent() -> None:
    """A worker process that inherits nothing but the environment (spawn, forkserver) filters as its parent does."""
    if os.environ.get(_PARENT, str(os.getpid())) != str(os.getpid()):
        start_filter()


def _of_command(declared: Declared | Mapping[str, Declared], words: list[str]) -> Declared:
    if isinstance(declared, Declared):
        return declared
    name = words[0] if words else ""
    return declared.get(name) or min(declared.values(), key=lambda one: _ORDER.index(one.kind))


def _asks_for_help(words: list[str]) -> bool:
    return "--" not in words and bool({"-h", "--help", "--help_all", "--help-all"} & set(words))


def _exists(value: str) -> bool:
    try:
        return bool(value) and Path(value).exists()
    except (OSError, ValueError):
        return False


_follow_parent()

__all__ = ["Declared", "guarded", "harmless", "knows", "refuses", "start_filter", "stop_filter"]
