"""Images without labels: from a table, a folder or a data set to rows with an id, and a digest over all of them."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ..data.content_keys import IMAGE_BLOCK_ROWS, blocks
from ..data.private_rows import private_rows, refuse_identifying_columns
from ..data.table_arguments import TableArguments, table_options
from ..data.table_files import Source, blank_rows, is_saved, read_unlabelled
from ..data.tables import load_pairs
from ..embeddings.table import image_key, image_name
from ..privacy.mode import PrivacyArguments, private_key
from .arguments import PredictionArguments

_FILLED = "row that is not blank"


@dataclass
class Images:
    """
    What is to be predicted.

    Args:
        rows (`datasets.Dataset`): With `image` (a path or bytes, lazy), `image_id` and `source_row`, formatted as
            Arrow. In private mode ids are keyed hashes.
    """

    rows: datasets.Dataset

    def __len__(self) -> int:
        return len(self.rows)

    def digest(self) -> str:
        """32 hex digits over ids, and of files path, size and time, of others their bytes; keyed in private mode."""
        found = hashlib.blake2b(digest_size=16, key=(private_key() or b"")[:64])
        for start, values in blocks(self.rows, "image", IMAGE_BLOCK_ROWS):
            ids = self.rows[start : start + len(values)]["image_id"].to_pylist()
            for name, value in zip(ids, values, strict=True):
                found.update(name.encode("utf-8", "surrogatepass") + b"\0" + image_key(value)[0])
        return found.hexdigest()

    def named(self, start: int, stop: int) -> list[dict[str, Any]]:
        """`image_id`, `source_row` and `file` of some rows; the file's place in its folder where that is its id."""
        table = self.rows[start:stop]
        # Of the images their paths alone: they may be stored as bytes.
        columns = [table["image_id"], table["source_row"], pc.struct_field(table["image"], "path")]
        found = []
        for name, row, path in zip(*(column.to_pylist() for column in columns), strict=True):
            named_so = path and path.replace(os.sep, "/").endswith(f"/{name}")
            file = name if named_so else image_name(path) if path else ""
            found.append({"image_id": name, "source_row": row, "file": file})
        return found


def load_images(arguments: PredictionArguments, table: TableArguments, privacy: PrivacyArguments) -> Images:
    """
    The rows of the source that the arguments name.

    Raises:
        FileNotFoundError: no such source, or no image in it.
        ValueError: another kind of source than its option takes, or as of `load_pairs`.
    """
    place = Path(arguments.place)
    _check_kind(arguments, place)
    source = read_unlabelled(str(place), table.image_column, table.delimiter, table.encoding)
    refuse_identifying_columns(source, table.image_column, privacy)
    options = table_options(table) | {
        "text_column": None, "patient_column": None, "study_column": None, "split_column": None, "ids": "exact",
        # How files become pixels is the model's to say.
        "image_mode": "L", "voi_lut": False, "range_percentile": 0.0,
    }  # fmt: skip
    pairs = load_pairs(_without_other_columns(source, table), **options, _checked=False)
    return Images(private_rows(pairs).select_columns(["image", "image_id", "source_row"]).with_format("arrow"))


def _check_kind(arguments: PredictionArguments, place: Path) -> None:
    if not place.exists():
        option = next(name for name in ("table", "image_folder", "dataset_dir") if getattr(arguments, name))
        raise FileNotFoundError(f"--{option} {place}: there is nothing of this name. Check the path.")
    if arguments.table is not None and place.is_dir():
        raise ValueError(f"--table {place} is a folder: pass it as --image_folder, or as --dataset_dir.")
    if arguments.table is None and not place.is_dir():
        raise ValueError(f"{place} is a file, expected a folder: pass a table as --table.")
    if arguments.image_folder is not None and is_saved(place):
        raise ValueError(f"--image_folder {place} was written by save_to_disk: pass it as --dataset_dir.")
    if arguments.dataset_dir is not None and not is_saved(place):
        raise ValueError(
            f"--dataset_dir {place} was not written by save_to_disk (it has no state.json or dataset_dict.json): pass "
            "a folder of images as --image_folder."
        )


def _without_other_columns(source: Source, table: TableArguments) -> Source:
    """The source without what no prediction reads: splits, patients and labels may be as they like."""
    filters = [item.partition("=")[0].strip() for item in table.filter]
    wanted = {table.image_column.strip(), (table.id_column or "image_id").strip(), *filters}
    if table.image_column == "image":
        wanted.add("file_name")
    names = [*source.table.column_names, *source.nested, *(source.images.column_names if source.images else ())]
    if not {table.image_column.strip(), *filters} <= {name.strip() for name in names} | {"image"}:
        # `load_pairs` says which columns there are.
        return source
    kept = source.table.select([name for name in source.table.column_names if name.strip() in wanted])
    # Which rows are blank is told by all columns.
    kept = kept.append_column(_FILLED, pa.array(np.where(blank_rows(source), "", "x"), pa.string()))
    images = source.images
    if images is not None:
        images = images.select_columns([name for name in images.column_names if name.strip() in wanted])
    return replace(source, table=kept, images=images, split=None)


__all__ = ["Images", "load_images"]
