"""The code in saved folders: flat files of this package, with which they load where the package is not installed."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

CODE_FILES = tuple(sorted(path.name for path in Path(__file__).parents[1].glob("*_adaptor.py")))
"""Names of all flat files. `save_pretrained` lays those beside a model that its class and its configuration import."""


def check_code(folder: str | os.PathLike, classes: Iterable[str]) -> None:
    """
    Raises FileNotFoundError if a folder lacks code of `classes`, as its configurations name them (`file.Class`), or
    what that code imports.
    """
    from transformers.dynamic_module_utils import get_relative_import_files

    for name in sorted(classes):
        entry = Path(folder) / f"{name.rpartition('--')[2].partition('.')[0]}.py"
        try:
            needed = [entry.name, *(Path(file).name for file in get_relative_import_files(entry))]
        except FileNotFoundError as error:
            needed = [Path(error.filename).name]
        if missing := sorted(file for file in needed if file not in CODE_FILES or not (Path(folder) / file).is_file()):
            raise FileNotFoundError(
                f"{folder} has no {missing[0]} that this version knows, so nobody without the package could load it. "
                "Training checkpoints carry no code: take the run's own folder, or load the model and call "
                "save_pretrained with another folder."
            )


def remove_code(folder: str | os.PathLike) -> None:
    """Delete the flat files from a saved folder, which from then on loads only where this package is installed."""
    for name in CODE_FILES:
        (Path(folder) / name).unlink(missing_ok=True)


__all__ = ["CODE_FILES", "check_code", "remove_code"]
