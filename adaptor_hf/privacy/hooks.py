"""What Python and other libraries say on their own in private mode: tracebacks, warnings, logs, errors of argparse."""

from __future__ import annotations

import argparse
import logging
import re
import sys
import threading
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from .messages import HIDDEN, hide, hide_messages, in_package, named_code, without_quotations

_OURS = ("adaptor_hf", "train_pretrain", "train_downstream")
_METAVARS = ("PATH", "FOLDER", "DIR", "NAME_OR_FILE")
_DESTS = ("cache", "model", "output_dir", "recipe", "reports", "run", "table", "to", "tokenizer")
_undo: list[Callable[[], None]] = []
_words: list[str] = []


def install_hooks(words: Sequence[str] = ()) -> None:
    """
    From here on a traceback is one line without what the error says, and of warnings and log lines of other libraries
    only their source is said. Errors of argparse lose the words of the command line.

    Args:
        words (`Sequence[str]`): Of the command line.
    """
    _words[:] = {*_words, *words}
    if _undo:
        return
    _replace(sys, "excepthook", _say_uncaught)
    _replace(sys, "unraisablehook", lambda found: _say_error(found.exc_value))
    _replace(threading, "excepthook", lambda found: _say_error(found.exc_value))
    # What print_exc, format_exc, logging, and the ends of threads and of worker processes go through.
    _replace(traceback.TracebackException, "format", _one_line)
    _replace(traceback.TracebackException, "format_exception_only", _one_line)
    _replace(warnings, "showwarning", _say_warning)
    _replace(argparse.ArgumentParser, "error", _say_usage_error)
    _replace(argparse.ArgumentParser, "parse_known_args", _hiding_places(argparse.ArgumentParser.parse_known_args))
    factory = logging.getLogRecordFactory()
    logging.setLogRecordFactory(lambda *args, **more: _without_words(factory(*args, **more)))
    _undo.append(lambda: logging.setLogRecordFactory(factory))


def remove_hooks() -> None:
    while _undo:
        _undo.pop()()
    _words.clear()


def _replace(owner: Any, name: str, new: Any) -> None:
    before = getattr(owner, name)
    setattr(owner, name, new)
    _undo.append(lambda: setattr(owner, name, before))


def _say_uncaught(kind: type[BaseException], error: BaseException, trace: Any) -> None:
    if issubclass(kind, KeyboardInterrupt):
        print("Stopped by Ctrl-C.", file=sys.stderr)
    else:
        _say_error(error)


def _say_error(error: BaseException | None) -> None:
    if error is not None and sys.stderr is not None:
        print(f"error: {hide(without_quotations(error))}", file=sys.stderr)


def _one_line(trace: traceback.TracebackException, **_: Any) -> Iterator[str]:
    kind = trace.__dict__.get("exc_type") or getattr(trace, "exc_type_str", "Exception")
    ours = [frame for frame in trace.stack or () if in_package(frame.filename)]
    place = f" at line {ours[-1].lineno} of {Path(ours[-1].filename).stem}, {ours[-1].name}" if ours else ""
    yield f"{getattr(kind, '__name__', kind)}{place}. What it says is hidden: it may quote the data\n"


def _say_warning(message: Any, category: type, filename: str, lineno: int, file: Any = None, line: Any = None) -> None:
    text = hide(str(message)) if in_package(filename) else "what it says is hidden"
    print(f"{category.__name__} at line {lineno} of {named_code(filename)}: {text}", file=file or sys.stderr)


def _without_words(record: logging.LogRecord) -> logging.LogRecord:
    if record.name.partition(".")[0] not in _OURS:
        record.msg, record.args = f"{record.name} says something ({record.levelname.lower()}), which is hidden", ()
    return record


def _hiding_places(parse: Callable) -> Callable:
    """As argparse's own; then what the parser takes for places is cut out of messages, even if it looks like words."""

    def parse_known_args(parser: argparse.ArgumentParser, args: Any = None, namespace: Any = None) -> Any:
        # Those of a recipe, too.
        _words.extend(map(str, args or ()))
        namespace, rest = parse(parser, args, namespace)
        for action in parser._actions:
            value = vars(namespace).get(action.dest)
            if _takes_a_place(action) and value not in (None, action.default):
                hide_messages(map(str, value if isinstance(value, list) else [value]), stdout=False)
        return namespace, rest

    return parse_known_args


def _takes_a_place(action: argparse.Action) -> bool:
    if action.choices is not None or action.nargs == 0:
        return False
    return not action.option_strings or action.type is Path or action.metavar in _METAVARS or action.dest in _DESTS


def _say_usage_error(parser: argparse.ArgumentParser, message: str) -> None:
    """As argparse's own, without the words of the command line that are no option of the parser."""
    known = {*parser._option_string_actions, *(text for action in parser._actions for text in action.choices or ())}
    given = {part for word in _words for part in (word, *word.partition("=")[::2])} - known
    for word in sorted(filter(str.strip, given), key=len, reverse=True):
        message = re.sub(rf"(?<![\w-]){re.escape(word)}(?!\w)", HIDDEN, message)
    # The choices are the parser's own, and what is wanted to know.
    said, choose, choices = message.partition(" (choose from ")
    parser.print_usage(sys.stderr)
    parser.exit(2, f"{parser.prog}: error: {hide(said)}{choose}{choices.replace(chr(39), '')}\n")


__all__ = ["install_hooks", "remove_hooks"]
