"""Many small report files, from folders or a zip, read by several processes into sections and sentences."""

from __future__ import annotations

import multiprocessing
import sys
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

from .archives import Member, list_zip, read_bytes
from .files import record_input
from .report_sentences import sentences_of
from .reports import section_texts

_CHUNK = 2000
_FEW = 4000


class Report(NamedTuple):
    """A report that was read. `problem` is None, "missing", "empty", "no findings or impression", "no sentence" or
    "not UTF-8"; where it is one of these there are no sentences."""

    sections: dict[str, str] | None
    sentences: list[str] | None
    problem: str | None


def locate_reports(source: Path, names: Sequence[str]) -> list[str | None]:
    """
    What to open for each report: a file under a folder, or a member of a zip; None where the zip has no such member.

    Raises:
        ValueError: `source` is no whole zip.
    """
    if source.is_dir():
        return [f"{source}/{name}" for name in names]
    record_input(source)
    members = {name: Member(str(source), name, offset, size) for name, offset, size in list_zip(source)}
    return [str(members[name]) if name in members else None for name in names]


def read_reports(paths: Sequence[str | None], recipe: str, keep: Sequence[str], num_proc: int) -> list[Report]:
    """
    Read reports in order.

    Args:
        paths: Of `locate_reports`.
        recipe: Of `adaptor_hf.data.report_sentences.RECIPES`.
        keep: Sections that are returned.
        num_proc: Processes; few reports are read by this one.
    """
    read = partial(_read_chunk, recipe=recipe, keep=tuple(keep))
    chunks = [paths[start : start + _CHUNK] for start in range(0, len(paths), _CHUNK)]
    return [report for chunk in _mapped(read, chunks, 1 if len(paths) < _FEW else num_proc) for report in chunk]


def _mapped(function, chunks: list, num_proc: int) -> Iterator[list[Report]]:
    if num_proc <= 1:
        yield from map(function, chunks)
        return
    # Where fork is the custom, the user's script needs no main guard. The children open files and match text only.
    context = multiprocessing.get_context("fork" if sys.platform == "linux" else None)
    with context.Pool(num_proc) as pool:
        yield from pool.imap(function, chunks)


def _read_chunk(paths: Sequence[str | None], recipe: str, keep: tuple[str, ...]) -> list[Report]:
    return [_read_report(path, recipe, keep) for path in paths]


def _read_report(path: str | None, recipe: str, keep: tuple[str, ...]) -> Report:
    try:
        text = read_bytes(path).decode("utf-8-sig") if path is not None else None
    except FileNotFoundError:
        text = None
    except UnicodeDecodeError:
        return Report(None, None, "not UTF-8")
    if text is None:
        return Report(None, None, "missing")
    if not text.strip():
        return Report(None, None, "empty")
    found = section_texts(text)
    sections = {name: found[name] for name in keep if name in found}
    sentences = sentences_of(found, recipe)
    if not sentences:
        described = any(found.get(name) for name in ("findings", "impression"))
        return Report(sections, None, "no sentence" if described else "no findings or impression")
    return Report(sections, sentences, None)


__all__ = ["Report", "locate_reports", "read_reports"]
