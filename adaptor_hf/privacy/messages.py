"""What private mode lets out of messages: no path, no file name, nothing in quotes, no words of other libraries."""

from __future__ import annotations

import contextlib
import dis
import os
import re
import sys
import sysconfig
import traceback
from collections.abc import Iterable, Iterator
from pathlib import Path

from ..options.terminal import FilteredStream, stream_handlers, wrap_streams

HIDDEN = "<hidden>"
_PACKAGE = Path(__file__).resolve().parents[1]
# Beside the package, in a clone as where it is installed.
_SCRIPTS = frozenset(_PACKAGE.parent / name for name in ("train_pretrain.py", "train_downstream.py"))
_LIBRARIES = tuple(Path(sysconfig.get_path(name)).resolve() for name in ("stdlib", "purelib", "platlib"))
_ENDINGS = (
    r"(?:png|jpe?g|bmp|gif|tiff?|dcm|dicom|nii|npy|npz|csv|tsv|xlsx?|parquet|pq|jsonl?|ya?ml|xml|hl7|txt|pdf|docx?|"
    r"zip|tar|gz|bz2|arrow)"
)
# Names that this package gives to files.
_OWN_FILES = (
    "cache.json", "checked.json", "checkpoint.json", "config.json", "excluded.csv", "headers.jsonl",
    "index_report.json", "latest.json", "manifest.json", "pairs.csv", "predictions.csv", "predictions.parquet",
    "results.jsonl", "retrieval.json", "run.json", "table1.json", "trainer_state.json", "training_args.json",
)  # fmt: skip
_RAISE = dis.opmap["RAISE_VARARGS"]
# A name may have an apostrophe; a quote before a blank, a colon or the end ends what is quoted.
_IN_PATH = r"""(?:(?!:\s)(?:[^\n'"<]|['"](?=\w)|<(?!hidden>)))"""
_places: list[str] = []
_state = {"hiding": False}
_SECRET = (
    # One pattern for both quotes: the first one opens, and the other kind may stand inside, as may an apostrophe. What
    # is cut off before its end is closed by the line's.
    re.compile(r"""(?<!\w)'(?:[^'\\\n]|\\.|'(?=\w))*(?:'|$)|"(?:[^"\\\n]|\\.)*(?:"|$)""", re.MULTILINE),
    # A folder's name may have spaces and commas: a path ends at a colon before a space, or with the line.
    re.compile(rf"(?<![\w<>./:~-])(?:~?[/\\]|[A-Za-z]:[/\\])(?=\S){_IN_PATH}+"),
    # As for a relative path: all from its first folder on.
    re.compile(rf"(?:[^\s'\",;:()=/\\]+[/\\](?:(?!:\s)[^'\"\n])*?)?[^\s'\",;:()=]*\.{_ENDINGS}\b", re.I),
)


def hide(text: str) -> str:
    """A message without paths, file names and quoted values, as private mode lets it out."""
    for place in _places:
        # A folder may be called as a part of a word is.
        name = rf"(?<!\w){place}(?!\w)" if re.fullmatch("[a-z_]+", place) else re.escape(place)
        text = re.sub(name + rf"([/\\]{_IN_PATH}*)?", HIDDEN, text)
    for pattern in _SECRET:
        text = pattern.sub(lambda found: found[0] if found[0] in _OWN_FILES else HIDDEN, text)
    return text


def without_quotations(error: BaseException) -> str:
    """
    The message of an error without what other libraries wrote: they may quote a table's cells, and not in quotes.

    Of an error that this package raised, its own words; the words of the errors behind it become `<hidden>`. Of any
    other error, its type and the place in this package's code, and what the system says of it.
    """
    if not _is_ours(error):
        place = f"{type(error).__name__} at {_place_in_code(error)}"
        if isinstance(error, OSError) and error.errno is not None:
            return f"{place}: {os.strerror(error.errno)}. The rest of what it says is hidden"
        return f"{place}. What it says is hidden: it may quote the data"
    text = str(error)
    for cause in _causes(error):
        if not _is_ours(cause):
            whole = str(cause)
            quoted = {whole, repr(whole), " ".join(whole.split()), *map(str.strip, whole.splitlines()), *_texts(cause)}
            for words in sorted((words for words in quoted if len(words) > 2), key=len, reverse=True):
                text = text.replace(words, HIDDEN)
    return text


def hide_messages(places: Iterable[str | None], stdout: bool = True) -> None:
    """
    From here on, stdout, stderr and logs go through `hide`.

    Args:
        places: Paths that were given; they and the folders that hold them are cut out even where they look like words.
        stdout: False leaves stdout as it is.
    """
    _state["hiding"] = True
    given = {*_places, *(str(place) for place in places if place)}
    for place in list(given):
        with contextlib.suppress(OSError, ValueError, RuntimeError):
            for whole in (Path(place).absolute(), Path(place).resolve()):
                # Messages also name a table's folder. One at the top, such as /data, tells nothing.
                given |= {str(whole), *([str(whole.parent)] if len(whole.parts) > 3 else [])}
    # The longest first: one may be a part of another. A single "." or "/" would cut every sentence.
    _places[:] = sorted((place for place in given if len(place.strip("./\\")) > 1), key=len, reverse=True)
    wrap_streams(_Hiding, *(("stdout", "stderr") if stdout else ("stderr",)))


def show_messages() -> None:
    """Undo `hide_messages`: messages go out as they are."""
    _state["hiding"] = False
    _places.clear()
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if isinstance(stream, _Hiding):
            setattr(sys, name, stream.stream)
    for handler in stream_handlers():
        if isinstance(handler.stream, _Hiding):
            handler.setStream(handler.stream.stream)


def is_hiding() -> bool:
    """Whether messages are filtered."""
    return _state["hiding"]


class _Hiding(FilteredStream):
    """It cuts out what private mode hides."""

    change = staticmethod(hide)


def _texts(error: BaseException) -> Iterator[str]:
    """What an error was made of, as far as it is text."""
    parts = (
        *error.args,
        *(getattr(error, name, None) for name in ("msg", "reason", "strerror", "filename", "problem")),
    )
    return (str(part) for part in parts if isinstance(part, str | os.PathLike))


def _causes(error: BaseException) -> Iterator[BaseException]:
    seen = {id(error)}
    while (error := error.__cause__ or error.__context__) is not None and id(error) not in seen:
        seen.add(id(error))
        yield error


def _frames(error: BaseException) -> list[traceback.FrameSummary]:
    return list(traceback.extract_tb(error.__traceback__))


def in_package(file: str) -> bool:
    """Whether a file of code is of this package: by its place, for others may have files of the same name."""
    if not os.path.isabs(file):
        # Such as "<string>", which has no place.
        return False
    place = Path(file).resolve()
    return place.is_relative_to(_PACKAGE) or place in _SCRIPTS


def named_code(file: str) -> str:
    """Name of a file of code of this package or of a library; a user's own may be called as anything."""
    known = in_package(file) or any(Path(file).resolve().is_relative_to(library) for library in _LIBRARIES)
    return Path(file).stem if known else HIDDEN


def _is_ours(error: BaseException) -> bool:
    """Whether a `raise` of this package made it. What a call of compiled code raised has no frame of its own."""
    trace = error.__traceback__
    if trace is None:
        return True
    while trace.tb_next is not None:
        trace = trace.tb_next
    code = trace.tb_frame.f_code
    return in_package(code.co_filename) and code.co_code[trace.tb_lasti] == _RAISE


def _place_in_code(error: BaseException) -> str:
    ours = [frame for frame in _frames(error) if in_package(frame.filename)]
    return f"line {ours[-1].lineno} of {Path(ours[-1].filename).stem}, {ours[-1].name}" if ours else "a library"


__all__ = [
    "HIDDEN",
    "hide",
    "hide_messages",
    "in_package",
    "is_hiding",
    "named_code",
    "show_messages",
    "without_quotations",
]
