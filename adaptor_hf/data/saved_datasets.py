"""Data sets that `save_to_disk` wrote: whole ones are read, a cut one is refused."""

from __future__ import annotations

import os
from pathlib import Path

import datasets

from ..files import check_all_regular, open_regular, read_json

# Of an Arrow stream. A reader takes the end of the file for it, too, so that a file cut between two of its messages
# reads as a smaller table, without a word.
_END_OF_STREAM = b"\xff\xff\xff\xff\0\0\0\0"


def load_saved_dataset(folder: Path) -> datasets.Dataset | datasets.DatasetDict:
    """
    `datasets.load_from_disk`, after a look at the end of each Arrow file.

    Raises:
        ValueError: a file was cut off, or its writer did not come to the end; it is named.
    """
    check_all_regular(folder)
    for state in sorted([*folder.glob("state.json"), *folder.glob("*/state.json")]):
        for entry in read_json(state).get("_data_files", []):
            path = state.parent / entry["filename"]
            if path.is_file() and not _is_whole(path):
                raise ValueError(
                    f"{path} is cut off: it does not end as an Arrow stream does, and rows would be missing. Copy it "
                    "again, or write the data set again with save_to_disk."
                )
    return datasets.load_from_disk(str(folder))


def _is_whole(path: Path) -> bool:
    with open_regular(path) as file:
        file.seek(-min(len(_END_OF_STREAM), path.stat().st_size), os.SEEK_END)
        return file.read() == _END_OF_STREAM


__all__ = ["load_saved_dataset"]
