"""YFCC15M: titles and descriptions of Flickr photographs, images in zips of a thousand, read in place."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from ..archives import Member, list_zip
from ..captions import CAPTIONS_HELP, choose_captions, clean_whitespace
from ..catalog import LoadedRows, PublicDataset, Request
from ..converted import find_converted, read_converted
from ..files import record_input, require_file
from ..webdataset import find_shards
from .conceptual_captions import shard_rows

if TYPE_CHECKING:
    import pandas as pd

_MARKUP = r"<a.*?>|</a>|<b>|</b>|<i>|</i>"
_URL = r"http\S+|www\S+"


def read(request: Request) -> LoadedRows:
    """Rows of an image and its title, its description, or both."""
    if shards := find_shards(request.root):
        return shard_rows(request, shards)
    if find_converted(request.root, "yfcc15m") is None:
        require_file(request.root, ["yfcc15m.parquet", "yfcc15m.jsonl", "*.tar"], "converted table")
    rows, file = read_converted(request.root, "yfcc15m", ("index", "title", "description"))
    for column in ("title", "description"):
        rows[column] = clean_text(rows[column])
    digits = rows["index"].astype("int64").astype(str).str.zfill(8)
    if (wrong := ~digits.str.fullmatch(r"\d{8}")).any():
        row = int(wrong.idxmax()) + 1
        raise ValueError(f"{file}, row {row}: the index {rows['index'].iloc[row - 1]} has more than 8 digits.")
    images, faults = _images(request.root, digits, file)
    total = len(rows)
    rows = rows.assign(
        image=images,
        image_id=digits,
        text=list(zip(rows["title"], rows["description"], strict=True)),
        split=None,
        source=file + ":" + (rows.index + 1).astype(str),
    )
    kept = rows["image"].notna()
    rows = rows.loc[kept, ["image", "image_id", "text", "split", "source"]].reset_index(drop=True)
    dropped = {"image not in its zip": int((~kept).sum())} if (~kept).any() else {}
    rows = choose_captions(rows, request.options["captions"], request.seed)
    return LoadedRows(
        rows, table_rows=total, dropped=dropped, faults=faults, notes=["Rows are a title or a description."]
    )


def clean_text(texts: pd.Series) -> pd.Series:
    """Text without links and the three HTML tags that SLIP removes, by its patterns; what is then empty is None."""
    texts = texts.astype(object).str.replace(_MARKUP, "", regex=True).str.replace(_URL, "", regex=True)
    return clean_whitespace(texts)


def _images(root: Path, digits: pd.Series, file: str) -> tuple[pd.Series, list[str]]:
    """Path of each image: a member of its zip, or a file of the unpacked folder; None if the zip does not have it."""
    import pandas as pd

    zips = "images/" + digits.str[:2] + "/" + digits.str[2:5]
    names = digits.str[5:] + ".jpg"
    images = pd.Series(None, index=digits.index, dtype=object)
    faults = []
    for stem, rows in names.groupby(zips, sort=False):
        if (root / stem).is_dir():
            images[rows.index] = stem + "/" + rows
            continue
        zip_name = stem + ".zip"
        if not (root / zip_name).is_file():
            # The zip itself is the missing file.
            images[rows.index] = zip_name
            continue
        members = {name: (offset, size) for name, offset, size in list_zip(record_input(root / zip_name))}
        paths = [str(Member(zip_name, name, *members[name])) if name in members else None for name in rows]
        images[rows.index] = paths
        faults += [
            f"{file}:{row + 1}: {zip_name} has no {name}"
            for row, name, path in zip(rows.index, rows, paths, strict=True)
            if path is None
        ]
    return images, faults


DATASETS = (
    PublicDataset(
        name="yfcc15m",
        title="YFCC15M",
        tasks=("pretraining",),
        expected_files="""\
yfcc15m.parquet (SLIP's yfcc15m.pkl after python -m adaptor_hf.data.convert): index, title, description
images/12/345.zip with 678.jpg in it (index 12345678), or unpacked: images/12/345/678.jpg
or webdataset shards: 00000.tar""",
        license="a Creative Commons licence by photograph",
        homepage="https://multimediacommons.wordpress.com",
        restricted=False,
        tested="fixture",
        read=read,
        image_mode="RGB",
        max_fault_share=0.5,
        options={"captions": "all"},
        option_help={"captions": CAPTIONS_HELP + "; the title comes first, then the description"},
        split_notes={"patient": "There is no official split: by image. SLIP's list has 14,689,580 photographs."},
        traps=(
            "Indices under ten million are padded to 8 digits.",
            "Title or description may be empty: an empty one is no caption (SLIP draws it all the same).",
            "The pickle is not read while loading: convert it once.",
            "Links and the tags <a>, <b>, <i> are removed.",
        ),
    ),
)

__all__ = ["DATASETS", "clean_text", "read"]
