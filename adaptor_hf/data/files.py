"""Files of a data set on disk: find and read its tables as exact text, list its folders once, stay inside its root."""

from __future__ import annotations

import difflib
import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from ..files import is_folder
from ..privacy.vocabulary import column_list

if TYPE_CHECKING:
    import pandas as pd

logger = logging.getLogger(__name__)

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".dcm", ".dicom", ".gif", ".bmp", ".tif", ".tiff", ".webp")
"""Suffixes of image files, in lower case."""

_OUTSIDE = r"(?:^|[\\/])\.\.(?:[\\/]|$)|^[\\/]|^[A-Za-z]:|^[A-Za-z][A-Za-z0-9+.-]+://|\x00"


@dataclass
class Inputs:
    """Files and folders that a result was made from, absolute, and what they were like then."""

    states: dict[str, str] = field(default_factory=dict)
    """`file_state` of each path when it was first read."""
    scans: dict[tuple, FileIndex] = field(default_factory=dict)
    """Scans of this result, so that loader and checks share one."""

    def add(self, path: str | os.PathLike) -> None:
        path = os.path.abspath(path)
        if path not in self.states:
            self.states[path] = file_state(path)


_inputs: ContextVar[Inputs | None] = ContextVar("inputs", default=None)


def file_state(path: str | os.PathLike) -> str:
    """What changes when a file's content changes, or a folder's entries: time of change and size, or "absent"."""
    try:
        return _state_text(os.stat(path))
    except OSError:
        return "absent"


@contextmanager
def recorded_inputs() -> Iterator[Inputs]:
    """Collect what is read meanwhile (`record_input`, `list_files`): a cached result knows what it came from."""
    token = _inputs.set(Inputs())
    try:
        yield _inputs.get()
    finally:
        _inputs.reset(token)


def record_input(path: Path) -> Path:
    """Say that a result depends on this file, before it is read. `find_file` does; others that open a file must."""
    inputs = _inputs.get()
    if inputs is not None:
        inputs.add(path)
    return path


def find_file(root: Path, patterns: str | Sequence[str]) -> Path | None:
    """First file under `root` that one of the glob patterns matches, each also with .gz or without; None if none does.

    Of several matches of one pattern the first in alphabetical order is taken. Patterns may have folders and "**".
    """
    record_input(Path(root))
    for pattern in [patterns] if isinstance(patterns, str) else patterns:
        record_input(Path(root, *Path(pattern).parent.parts))
        other = pattern[:-3] if pattern.endswith(".gz") else pattern + ".gz"
        for name in (pattern, other):
            found = sorted(path for path in Path(root).glob(name) if path.is_file())
            if found:
                return record_input(found[0])
    return None


def require_file(root: Path, patterns: str | Sequence[str], what: str = "file") -> Path:
    """`find_file`, but an error that names the root, what was looked for and what is there.

    Raises:
        FileNotFoundError: no match. Says so too if the root itself does not exist or is no folder.
    """
    root = Path(root)
    found = find_file(root, patterns)
    if found is not None:
        return found
    patterns = [patterns] if isinstance(patterns, str) else list(patterns)
    if not root.is_dir():
        state = "is not a folder" if root.exists() else "does not exist"
        raise FileNotFoundError(f"The root {root} {state}. Expected the folder that holds {' or '.join(patterns)}.")
    there = sorted(entry.name + "/" * is_folder(entry) for entry in os.scandir(root))
    close = {name for pattern in patterns for name in difflib.get_close_matches(os.path.basename(pattern), there, n=2)}
    hint = f" Close: {', '.join(sorted(close))}." if close else ""
    more = f" and {len(there) - 12} more" if len(there) > 12 else ""
    raise FileNotFoundError(
        f"No {what} {' or '.join(patterns)} (also .gz or without) in {root}. Is this the right root, and is the "
        f"download complete?{hint} The folder has: {', '.join(there[:12]) or 'nothing'}{more}."
    )


def read_table(
    root: Path,
    names: str | Sequence[str],
    *,
    columns: Sequence[str],
    optional: Sequence[str] = (),
    sep: str = ",",
    header: Sequence[str] | None = None,
    quoting: bool = True,
) -> pd.DataFrame:
    """
    Read the first table of these names, every cell as text: ids keep their zeros, numbers their spelling.

    Column names and cells are stripped of white space; columns are chosen by name, whatever their order.

    Args:
        root: Folder of the data set.
        names: File names or glob patterns relative to `root`, in order of preference; each also with .gz or without.
        columns: Columns that must be there.
        optional: Columns that are all None when the file has none.
        sep: Separator, one character.
        header: Names of the columns of a file without header line.
        quoting: False where a quote is an ordinary character; then a row is a line.

    Returns:
        Object columns `columns` and `optional`, str or None (a cell without value: `MISSING_WORDS`); the index is the
        data row, from 1 (header and empty lines are not counted; rows of blank cells are counted, and left out);
        `frame.attrs["file"]` is the path relative to `root`.

    Raises:
        FileNotFoundError: No such table in `root`.
        ValueError: A column is missing or there twice, a row has too many or too few cells, the file is cut short, or
            is not UTF-8. The message names the file, what was expected and what was found.
    """
    import pandas as pd
    import pyarrow as pa

    from .delimited import read_delimited
    from .missing import without_missing
    from .table_files import Source, blank_rows

    path = require_file(root, names, "table")
    name = path.relative_to(root).as_posix()
    try:
        table = read_delimited(path, sep, header=header, quoting=quoting).table
    except (OSError, EOFError) as error:
        raise ValueError(f"{name}: not readable to its end ({error}). Is it fully downloaded?") from None
    found = [column.strip() for column in table.column_names]
    missing = [column for column in columns if column not in found]
    if missing:
        raise ValueError(
            f"{name}: no column {', '.join(map(repr, missing))}. Expected: {', '.join(columns)}. "
            f"{column_list(found, 'Found')}"
        )
    values = {}
    for column in dict.fromkeys((*columns, *optional)):
        if found.count(column) > 1:
            raise ValueError(f"{name}: the column {column!r} is there {found.count(column)} times, expected once.")
        if column in found:
            values[column] = without_missing(table.column(found.index(column)), strip=True).to_numpy()
        else:
            values[column] = pa.nulls(len(table), pa.string()).to_numpy(zero_copy_only=False)
    frame = pd.DataFrame(
        {column: pd.Series(cells, dtype=object) for column, cells in values.items()},
    )
    frame.index = pd.RangeIndex(1, len(table) + 1)
    blank = blank_rows(Source(table))
    if blank.any():
        logger.info("%s: %d rows are blank and left out.", name, blank.sum())
        frame = frame[~blank]
    frame.attrs["file"] = name
    return frame


def to_numbers(frame: pd.DataFrame, column: str, *, allowed: Sequence[float] | None = None) -> pd.Series:
    """
    A text column as float64, None as NaN.

    Raises:
        ValueError: A cell is no number, or not one of `allowed`. The message names file, row, expected and found.
    """
    import numpy as np
    import pandas as pd

    from .missing import is_missing

    cells = frame[column]
    values = pd.to_numeric(cells, errors="coerce").astype(np.float64)
    wrong = values.isna() & ~cells.map(is_missing).astype(bool)
    wrong |= np.isinf(values)
    if allowed is not None:
        wrong |= values.notna() & ~values.isin(allowed)
    if wrong.any():
        row = wrong.idxmax()
        expected = "a number" if allowed is None else f"one of {', '.join(f'{value:g}' for value in allowed)} or empty"
        raise ValueError(
            f"{frame.attrs.get('file', 'table')}, row {row}, column {column!r}: found {cells[row]!r}, expected "
            f"{expected} ({int(wrong.sum())} such rows)."
        )
    return values


def row_sources(frame: pd.DataFrame) -> pd.Series:
    """Where each row of a frame of `read_table` came from, as "file:row"."""
    import pandas as pd

    return pd.Series(frame.attrs["file"] + ":" + frame.index.astype(str), index=frame.index, dtype=object)


def outside_root(paths: pd.Series) -> pd.Series:
    """Mask of the relative paths that may lead out of a root: "..", absolute, a drive letter, a URL, a NUL."""
    return paths.fillna("").astype(str).str.contains(_OUTSIDE, regex=True).astype(bool)


@dataclass
class FileIndex:
    """What one scan of a folder found. Paths are relative to the root, with "/"."""

    root: Path
    sizes: dict[str, int] = field(default_factory=dict)
    """Bytes of each file, by path."""
    _by_stem: dict[str, list[str]] | None = field(default=None, repr=False)
    _by_name: dict[str, list[str]] | None = field(default=None, repr=False)

    def __contains__(self, path: str) -> bool:
        return path in self.sizes

    def __len__(self) -> int:
        return len(self.sizes)

    def by_stem(self) -> dict[str, list[str]]:
        """Paths of the files of each base name without its last suffix, sorted."""
        if self._by_stem is None:
            self._by_stem = _group(self.sizes, lambda path: path.rpartition("/")[2].rpartition(".")[0])
        return self._by_stem

    def by_name(self) -> dict[str, list[str]]:
        """Paths of the files of each base name, sorted."""
        if self._by_name is None:
            self._by_name = _group(self.sizes, lambda path: path.rpartition("/")[2])
        return self._by_name

    def repeated(self) -> dict[str, list[str]]:
        """Base names that several files have, with their paths: where a lookup by name alone would be a guess."""
        return {name: paths for name, paths in self.by_name().items() if len(paths) > 1}

    def empty(self) -> list[str]:
        """Files of zero bytes, sorted."""
        return sorted(path for path, size in self.sizes.items() if size == 0)


def list_files(
    root: Path, folders: Sequence[str] = (".",), suffixes: Sequence[str] | None = IMAGE_SUFFIXES
) -> FileIndex:
    """
    List the files under some folders of a root, recursively, with one directory scan: no file is opened.

    Args:
        root: Folder of the data set.
        folders: Relative to `root`; those that do not exist are passed over.
        suffixes: In lower case, such as (".png",); None takes every file. Files and folders that start with "." are
            left out: macOS puts "._name.jpg" beside "name.jpg".
    """
    root = Path(root)
    inputs = _inputs.get()
    key = (root, tuple(sorted(folders)), None if suffixes is None else tuple(sorted(suffixes)))
    if inputs is not None and key in inputs.scans:
        return inputs.scans[key]
    index = FileIndex(root)
    wanted = tuple(suffixes) if suffixes is not None else None
    seen = set()
    base = os.path.abspath(root)
    stack = [os.path.normpath(folder) for folder in folders]
    sizes = index.sizes
    while stack:
        folder = stack.pop()
        full = base if folder == "." else base + os.sep + folder
        try:
            # The state before the scan: a file that comes in between makes the next comparison fail.
            found = os.stat(full)
            entries = os.scandir(full)
        except (FileNotFoundError, NotADirectoryError):
            continue
        if (found.st_dev, found.st_ino) in seen:
            entries.close()
            continue
        seen.add((found.st_dev, found.st_ino))
        if inputs is not None:
            inputs.states.setdefault(full, _state_text(found))
        prefix = "" if folder == "." else folder.replace(os.sep, "/") + "/"
        with entries:
            for entry in entries:
                name = entry.name
                if name[0] == ".":
                    continue
                if is_folder(entry):
                    stack.append(prefix + name)
                elif wanted is None or name.lower().endswith(wanted):
                    try:
                        sizes[prefix + name] = entry.stat().st_size
                    except OSError:
                        # A link that leads nowhere or in a circle is a missing file.
                        continue
    if inputs is not None:
        inputs.scans[key] = index
    return index


def _state_text(found: os.stat_result) -> str:
    return f"{found.st_mtime_ns} {found.st_size}"


def _group(paths, key) -> dict[str, list[str]]:
    groups: dict[str, list[str]] = {}
    for path in sorted(paths):
        groups.setdefault(key(path), []).append(path)
    return groups


__all__ = [
    "IMAGE_SUFFIXES",
    "FileIndex",
    "Inputs",
    "file_state",
    "find_file",
    "list_files",
    "outside_root",
    "read_table",
    "record_input",
    "recorded_inputs",
    "require_file",
    "row_sources",
    "to_numbers",
]
