"""RedCaps: annotations by subreddit and year, SLIP's merged list, or webdataset shards."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..captions import NAME_TOKENS_HELP, clean_whitespace, replace_name_tokens
from ..catalog import LoadedRows, PublicDataset, Request
from ..files import list_files, record_input, require_file
from ..json_files import json_table, load_json
from ..lookup import likeliest_folder
from ..webdataset import find_shards
from .conceptual_captions import shard_rows

if TYPE_CHECKING:
    import pandas as pd

_TEXTS = ("caption", "raw_caption")


def read(request: Request) -> LoadedRows:
    """Rows of an image each."""
    if (column := request.options["caption"]) not in _TEXTS:
        raise ValueError(f"caption must be one of {', '.join(_TEXTS)}, got {column!r}.")
    if shards := find_shards(request.root):
        loaded = shard_rows(request, shards)
    else:
        loaded = _read_annotations(request, column)
    loaded.rows["text"] = replace_name_tokens(loaded.rows["text"], request.options["name_tokens"])
    return loaded


def _read_annotations(request: Request, column: str) -> LoadedRows:
    import pandas as pd

    files = sorted(list_files(request.root, ("annotations",), (".json",)).sizes)
    if not files:
        patterns = ["redcaps_v1.json", "redcaps*.json", "annotations/abandoned_2017.json"]
        files = [require_file(request.root, patterns, "annotations").relative_to(request.root).as_posix()]
    tables = [_read_file(request, file, column) for file in files]
    rows = pd.concat(tables, ignore_index=True)
    names = rows["subreddit"] + "/" + rows["image_id"] + ".jpg"
    folder = likeliest_folder(request.root, list(names), ("", "images/", "redcaps/", "images/redcaps/"))
    rows = rows.assign(image=folder + names, text=clean_whitespace(rows[column]), split=None)
    return LoadedRows(rows[["image", "image_id", "text", "split", "source"]], table_rows=len(rows))


def _read_file(request: Request, file: str, column: str) -> pd.DataFrame:
    content = load_json(record_input(request.root / file), file, dict, list)
    entries = content.get("annotations") if isinstance(content, dict) else content
    table = json_table(entries, ("image_id", "subreddit", column), file)
    table["image_id"] = table["image_id"].astype(str)
    table["subreddit"] = table["subreddit"].astype(str)
    table["source"] = file + ":" + (table.index + 1).astype(str)
    return table


DATASETS = (
    PublicDataset(
        name="redcaps",
        title="RedCaps v1.0",
        tasks=("pretraining",),
        expected_files="""\
annotations/abandoned_2017.json, or SLIP's merged redcaps_v1.json
abandoned/5l3ia1.jpg or images/abandoned/5l3ia1.jpg
or webdataset shards: 00000.tar""",
        license="CC BY 4.0 (annotations) and the terms of Reddit",
        homepage="https://redcaps.xyz",
        restricted=False,
        tested="fixture",
        read=read,
        image_mode="RGB",
        max_fault_share=0.5,
        options={"caption": "caption", "name_tokens": "keep"},
        option_help={"caption": '"caption" (cleaned) or "raw_caption"', "name_tokens": NAME_TOKENS_HELP},
        split_notes={"patient": "There is no official split: by image."},
        traps=(
            "Captions may be empty after cleaning: such images have no text.",
            "score and crosspost_parents may be absent from an annotation.",
            "SLIP's merged file is a bare list, the original files are objects with annotations in them.",
            "<usr> stands for names of users.",
            "Images are deleted from Reddit: counts differ between any two copies.",
        ),
    ),
)

__all__ = ["DATASETS", "read"]
