"""Many small report files, from folders or a zip, read by several processes into sections and sentences."""

from __future__ import annotations

import gc
import multiprocessing
import sys
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

import pyarrow as pa

from .archives import Member, list_zip, read_bytes
from .files import record_input
from .missing import is_missing
from .report_sentences import sentences_of
from .reports import section_texts

_CHUNK = 2000
_FEW = 4000


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


def read_reports(paths: Sequence[str | None], rule: str, keep: Sequence[str], num_proc: int) -> pa.Table:
    """
    Read reports, a row each, in order.

    Args:
        paths: Of `locate_reports`.
        rule: Of `adaptor_hf.data.report_sentences.SENTENCE_RULES`.
        keep: Sections that are returned.
        num_proc: Processes; few reports are read by this one.

    Returns:
        Table of `sentences` (null where there are none), `sections` (struct) and `problem`: null, or one of "missing",
        "empty", "not UTF-8", "no findings or impression", "no sentence".
    """
    read = partial(_read_chunk, rule=rule, keep=tuple(keep))
    chunks = [paths[start : start + _CHUNK] for start in range(0, len(paths), _CHUNK)]
    return pa.Table.from_batches(list(_mapped(read, chunks, 1 if len(paths) < _FEW else num_proc)))


def _mapped(function, chunks: list, num_proc: int) -> Iterator[pa.RecordBatch]:
    if num_proc <= 1:
        yield from map(function, chunks)
        return
    # Where fork is the custom, the user's script needs no main guard. The children open files and match text only.
    context = multiprocessing.get_context("fork" if sys.platform == "linux" else None)
    # A collection in a child would touch, and so copy, all memory of this process.
    gc.freeze()
    try:
        with context.Pool(num_proc) as pool:
            yield from pool.imap(function, chunks)
    finally:
        gc.unfreeze()


def _read_chunk(paths: Sequence[str | None], rule: str, keep: tuple[str, ...]) -> pa.RecordBatch:
    reports = [_read_report(path, rule) for path in paths]
    sections = [{name: found.get(name) for name in keep} if found else None for found, _, _ in reports]
    columns = {
        "sections": pa.array(sections, pa.struct({name: pa.string() for name in keep})),
        "sentences": pa.array([sentences for _, sentences, _ in reports], pa.list_(pa.string())),
        "problem": pa.array([problem for _, _, problem in reports], pa.string()),
    }
    return pa.RecordBatch.from_pydict(columns)


def _read_report(path: str | None, rule: str) -> tuple[dict[str, str] | None, list[str] | None, str | None]:
    """Sections, sentences and problem of a report."""
    try:
        text = read_bytes(path).decode("utf-8-sig") if path is not None else None
    except FileNotFoundError:
        text = None
    except UnicodeDecodeError:
        return None, None, "not UTF-8"
    if text is None:
        return None, None, "missing"
    if is_missing(text):
        return None, None, "empty"
    sections = section_texts(text)
    sentences = sentences_of(sections, rule)
    if sentences:
        return sections, sentences, None
    described = any(sections.get(name) for name in ("findings", "impression"))
    return sections, None, "no sentence" if described else "no findings or impression"


__all__ = ["locate_reports", "read_reports"]
