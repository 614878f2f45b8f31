"""COCO captions: the 2017 release, and Karpathy's retrieval split of 2014."""

from __future__ import annotations

from ..captions import CAPTIONS_HELP, choose_captions
from ..catalog import LoadedRows, PublicDataset, Request
from ..files import find_file, list_files, require_file
from ..json_files import json_table, load_json

_PARTS = {"train": "train", "val": "validation"}
_KARPATHY = {"train": "train", "restval": "train", "val": "validation", "test": "test"}


def read(request: Request) -> LoadedRows:
    """Rows of an image and a caption."""
    read_split = _read_karpathy if request.split_scheme == "karpathy" else _read_2017
    loaded = read_split(request)
    total = len(loaded.rows)
    loaded.rows = choose_captions(loaded.rows, request.options["captions"], request.seed)
    loaded.notes.append(f"{total} images; rows are captions where captions is all.")
    return loaded


def _read_2017(request: Request) -> LoadedRows:
    import pandas as pd

    parts, dropped, captions = [], {}, 0
    for name, split in _PARTS.items():
        patterns = [f"{folder}captions_{name}2017.json" for folder in ("annotations/", "", "*/annotations/")]
        path = find_file(request.root, patterns)
        # One half is usable: the validation images are 800 MB, the training images 18 GB.
        if path is None:
            continue
        file = path.relative_to(request.root).as_posix()
        content = load_json(path, file, dict)
        images = json_table(content.get("images"), ("id", "file_name"), f"{file}, images")
        texts = json_table(content.get("annotations"), ("image_id", "caption"), f"{file}, annotations")
        captions += len(texts)
        repeated = images["id"].duplicated()
        lists = texts.groupby("image_id", sort=False)["caption"].agg(list)
        orphans = int((~texts["image_id"].isin(images["id"])).sum())
        for rule, count in (("image id that an earlier entry has", repeated.sum()), ("caption of no image", orphans)):
            if count:
                dropped[rule] = dropped.get(rule, 0) + int(count)
        images = images[~repeated]
        parts.append(
            pd.DataFrame(
                {
                    "image": f"{name}2017/" + images["file_name"].map(_base_name),
                    "image_id": images["id"].astype(str),
                    "text": images["id"].map(lists),
                    "split": split,
                    "source": file + ":" + (images.index + 1).astype(str),
                }
            )
        )
    if not parts:
        require_file(request.root, "annotations/captions_train2017.json", "captions")
    rows = pd.concat(parts, ignore_index=True).astype(object)
    notes = [] if len(parts) == 2 else [f"Only the captions of {parts[0]['split'].iloc[0]} are there."]
    return LoadedRows(rows, table_rows=captions, dropped=dropped, notes=notes)


def _read_karpathy(request: Request) -> LoadedRows:
    import pandas as pd

    path = require_file(request.root, ("dataset_coco.json", "annotations/dataset_coco.json", "*/dataset_coco.json"))
    file = path.relative_to(request.root).as_posix()
    content = load_json(path, file, dict)
    images = json_table(content.get("images"), ("filename", "split", "sentences", "cocoid"), f"{file}, images")
    unknown = set(images["split"]) - set(_KARPATHY)
    if unknown:
        raise ValueError(
            f"{file}: unknown split {', '.join(map(repr, sorted(unknown)))}, expected {', '.join(_KARPATHY)}."
        )
    names = images["filename"].map(_base_name)
    there = list_files(request.root, ("train2014", "val2014", "train2017", "val2017", "images")).by_name()
    expected = names.str.extract(r"COCO_(train2014|val2014)_", expand=False).fillna("val2014") + "/" + names
    # Who has the 2017 folders has the same images under the bare number.
    plain = images["cocoid"].map(lambda number: f"{int(number):012d}.jpg")
    paths = [
        (there.get(name) or there.get(bare) or [wanted])[0]
        for name, bare, wanted in zip(names, plain, expected, strict=True)
    ]
    rows = pd.DataFrame(
        {
            "image": paths,
            "image_id": images["cocoid"].astype(str),
            "text": [[sentence.get("raw") for sentence in sentences] for sentences in images["sentences"]],
            "split": images["split"].map(_KARPATHY),
            "source": file + ":" + (images.index + 1).astype(str),
        }
    ).astype(object)
    return LoadedRows(rows, table_rows=int(images["sentences"].map(len).sum()))


def _base_name(name: str) -> str:
    return str(name).replace("\\", "/").rpartition("/")[2]


DATASETS = (
    PublicDataset(
        name="coco_captions",
        title="COCO captions 2017",
        tasks=("pretraining",),
        expected_files="""\
annotations/captions_train2017.json
annotations/captions_val2017.json
train2017/000000391895.jpg
val2017/000000000139.jpg
dataset_coco.json (scheme karpathy; images train2014/COCO_train2014_000000391895.jpg or those of 2017)""",
        license="CC BY 4.0 (annotations); images under the terms of Flickr",
        homepage="https://cocodataset.org",
        restricted=False,
        tested="fixture",
        read=read,
        image_mode="RGB",
        split_schemes=("official", "karpathy"),
        options={"captions": "all"},
        option_help={"captions": CAPTIONS_HELP},
        split_notes={
            "official": "train2017 is train, val2017 is validation: 118,287 / 5,000 images, about 5 captions each; "
            "there is no test part with captions.",
            "karpathy": "Karpathy's split of 2014 with restval in train: 113,287 / 5,000 / 5,000 images.",
        },
        traps=(
            "Image ids are 12 digits in file names and numbers in the captions; file_name is what is used.",
            "Captions have stray blanks and line breaks: they become one blank.",
            "Some images are grey.",
            "One image has several captions, which are no negatives of each other: they share image_id.",
        ),
    ),
)

__all__ = ["DATASETS", "read"]
