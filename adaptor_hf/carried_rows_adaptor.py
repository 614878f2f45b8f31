"""Where the digests of a model's training rows lie, and that they go along with its copies; see
`adaptor_hf.data.training_rows`, which reads them and travels to no hub.

This file is flat on purpose: it is copied beside a checkpoint as remote code.
"""

import os
import shutil

from .regular_files_adaptor import check_regular, parse_json

TRAINING_ROWS_FILE = "training_rows.safetensors"
KEY_FILE = "training_rows.key"
TOWER_FILE = "tower.json"
"""In the folder of a trained tower."""


def place_of_rows(model: str | os.PathLike) -> str | None:
    """The folder with the training rows of a checkpoint or a trained tower: its own, or that of the run whose
    checkpoint, control or tower it is. None where there are none."""
    folder = os.path.abspath(os.path.expanduser(model))
    places = [folder]
    if os.path.isfile(os.path.join(folder, TOWER_FILE)):
        folder = os.path.dirname(folder)
        places.append(folder)
    above = os.path.dirname(folder)
    if os.path.basename(folder).startswith("checkpoint-"):
        places.append(above)
    elif os.path.basename(above) == "controls":
        places.append(os.path.dirname(above))
    return next((place for place in places if os.path.isfile(os.path.join(place, TRAINING_ROWS_FILE))), None)


def carry_training_rows(source: str | os.PathLike | None, folder: str | os.PathLike) -> None:
    """
    Copy the digests of the training rows, and their key, from where a model or tower was loaded: else a test on these
    rows could not be told any more. Never into a push, and not those of private mode.
    """
    from safetensors import safe_open

    target, found = os.fspath(folder), None if source is None else place_of_rows(source)
    if found is None or os.path.realpath(found) == os.path.realpath(target):
        return
    rows = [os.path.join(found, name) for name in (TRAINING_ROWS_FILE, KEY_FILE)]
    with safe_open(check_regular(rows[0]), framework="np") as file:
        if parse_json(file.metadata()["training_rows"])["private_key"] is not None:
            return
    os.makedirs(target, exist_ok=True)
    for path in filter(os.path.isfile, rows):
        shutil.copy2(check_regular(path), target)


__all__ = ["KEY_FILE", "TOWER_FILE", "TRAINING_ROWS_FILE", "carry_training_rows", "place_of_rows"]
