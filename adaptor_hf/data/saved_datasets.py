"""Data sets that `save_to_disk` wrote: whole ones are read, a cut one is refused."""

from __future__ import annotations

import os
from pathlib import Path, PurePath

import datasets

from ..files import check_all_regular, open_regular, read_json

# Of an Arrow stream. A reader takes the end of the file for it, too, so that a file cut between two of its messages
# reads as a smaller table, without a word.
_END_OF_STREAM = b"\xff\xff\xff\xff\0\0\0\0"


def load_saved_dataset(folder: Path) -> datasets.Dataset | datasets.DatasetDict:
    """
    `datasets.load_from_disk`, after a look at the end of each Arrow file.

    Raises:
        ValueError: a file was cut off, or its writer did not come to the end; `state.json` is damaged, or names files
            of another folder. The message names the file.
    """
    check_all_regular(folder)
    for state in sorted([*folder.glob("state.json"), *folder.glob("*/state.json")]):
        for path in _data_files(state):
            if path.is_file() and not _is_whole(path):
                raise ValueError(
                    f"{path} is cut off: it does not end as an Arrow stream does, and rows would be missing. Copy it "
                    "again, or write the data set again with save_to_disk."
                )
    return datasets.load_from_disk(str(folder))


def _data_files(state: Path) -> list[Path]:
    """The Arrow files that a `state.json` names; all lie beside it, as `save_to_disk` writes them."""
    try:
        names = [entry["filename"] for entry in read_json(state).get("_data_files", [])]
    except (ValueError, AttributeError, KeyError, TypeError) as error:
        raise ValueError(
            f"{state} is damaged ({type(error).__name__}): it does not list the data set's files. Copy it again, or "
            "write the data set again with save_to_disk."
        ) from None
    if wrong := [name for name in names if not isinstance(name, str) or PurePath(name).name != name]:
        raise ValueError(
            f"{state} names {len(wrong)} files that do not lie beside it. Write the data set again with save_to_disk."
        )
    return [state.parent / name for name in names]


def _is_whole(path: Path) -> bool:
    with open_regular(path) as file:
        file.seek(-min(len(_END_OF_STREAM), path.stat().st_size), os.SEEK_END)
        return file.read() == _END_OF_STREAM


__all__ = ["load_saved_dataset"]
