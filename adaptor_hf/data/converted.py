"""Tables that `python -m adaptor_hf.data.convert` wrote: Parquet or JSON lines."""

from __future__ import annotations

from io import TextIOWrapper
from pathlib import Path
from typing import TYPE_CHECKING

from ..files import check_regular, open_regular, parse_json
from ..privacy.vocabulary import column_list
from .files import find_file, require_file

if TYPE_CHECKING:
    import pandas as pd

PICKLED = (".npy", ".pkl")


def find_converted(root: Path, name: str) -> Path | None:
    """
    The converted table `name` in a root, or None.

    Raises:
        ValueError: Only the file to be converted is there. The message has the command.
    """
    found = find_file(root, _patterns(name))
    if found is not None:
        return found
    for suffix in PICKLED:
        source = find_file(root, f"{name}{suffix}")
        if source is not None:
            raise ValueError(
                f"{source} is a pickle, which is not read while loading. Convert it once: "
                f"python -m adaptor_hf.data.convert {source} {source.with_suffix('.parquet')}"
            )
    return None


def read_converted(root: Path, name: str, columns: tuple[str, ...]) -> tuple[pd.DataFrame, str]:
    """
    Columns of a converted table, and the table's name in the root.

    Raises:
        ValueError: A column is missing, or the file is damaged. The message names file, expected and found.
    """
    import pandas as pd
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = require_file(root, _patterns(name), "converted table")
    file = path.relative_to(root).as_posix()
    try:
        if path.suffix == ".parquet":
            found = pq.read_schema(check_regular(path)).names
            frame = pq.read_table(path, columns=[name for name in columns if name in found]).to_pandas()
        else:
            with TextIOWrapper(open_regular(path), encoding="utf-8") as lines:
                frame = pd.DataFrame([parse_json(line) for line in lines if line.strip()])
            found = list(frame.columns)
    except (pa.ArrowInvalid, ValueError) as error:
        raise ValueError(f"{file}: not readable ({error}). Convert the file again.") from None
    if missing := [name for name in columns if name not in found]:
        raise ValueError(
            f"{file}: no column {', '.join(missing)}. Expected: {', '.join(columns)}. {column_list(found, 'Found')}"
        )
    return frame[list(columns)], file


def _patterns(name: str) -> list[str]:
    return [f"{folder}{name}{suffix}" for suffix in (".parquet", ".jsonl") for folder in ("", "metadata/")]


__all__ = ["find_converted", "read_converted"]
