"""object-CXR (JF Healthcare, MIDL 2020): foreign objects on chest radiographs as rectangles, ellipses and polygons."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ..boxes import no_boxes
from ..catalog import LoadedRows, PublicDataset, Request
from ..files import read_table, row_sources
from ..lookup import locate, paths_by_stem
from ..mask_drawing import parse_shape, shape_box
from ..masks import format_shape, shape_mask
from ..reference_splits import SPLIT_FILES_HELP, check_size, follow_split, shipped_split, two_way_split

if TYPE_CHECKING:
    import pandas as pd

KINDS = {"0": "rectangle", "1": "ellipse", "2": "polygon"}


def read(request: Request) -> LoadedRows:
    """Rows of one image each, train.csv before dev.csv."""
    import pandas as pd

    loaded = LoadedRows(pd.DataFrame(), class_names=["negative", "foreign object"], box_class_names=["foreign object"])
    parts = [_read_part(request.root, "train", loaded), _read_part(request.root, "dev", loaded)]
    for part, split in zip(parts, ("train", "test"), strict=True):
        part["split"] = split
    if request.split_scheme == "mgca":
        parts[0]["split"] = two_way_split(len(parts[0]), 0.1)
        loaded.notes += check_size(len(parts[0]), 8000, "MGCA")
    rows = pd.concat(parts, ignore_index=True)
    shapes = rows.pop("shapes")
    rows["boxes"] = shapes.map(_boxes)
    rows["box_labels"] = shapes.map(lambda value: [0] * len(value))
    rows["labels"] = (shapes.map(len) > 0).astype(int)
    rows["patient_id"] = None
    if request.task == "segmentation":
        rows["mask"] = pd.Series(map(shape_mask, shapes, rows["image"]), index=rows.index, dtype=object)
    if request.split_scheme == "lovt":
        rows, dropped = follow_split(rows, shipped_split(request.root, request.options["split_files"]))
        loaded.dropped |= dropped
    loaded.rows = rows
    return loaded


def parse_annotation(annotation: str | None) -> list[str]:
    """
    Shapes of an annotation, as `adaptor_hf.data.masks.shape_mask` takes them.

    Args:
        annotation: Objects joined by ";": "0 x1 y1 x2 y2" a rectangle, "1 x1 y1 x2 y2" an ellipse in that rectangle,
            "2 x1 y1 ... xn yn" a polygon; None for no object.

    Raises:
        ValueError: An unknown type, coordinates that are no numbers or too few or many, or an object without area.
    """
    shapes = []
    for text in filter(None, (part.strip() for part in (annotation or "").split(";"))):
        kind, *words = text.split()
        try:
            shape = format_shape(KINDS[kind], map(float, words))
            points = parse_shape(shape)[1]
        except (KeyError, ValueError):
            raise ValueError(
                "expected objects '0 x1 y1 x2 y2', '1 x1 y1 x2 y2' or '2 x1 y1 x2 y2 x3 y3 ...' joined by ';', found "
                f"{text[:60]!r}"
            ) from None
        left, top, right, bottom = points.ravel()[:4] if kind != "2" else shape_box(points)
        if not (left < right and top < bottom):
            raise ValueError(f"an object has the upper left corner before the lower right one, found {text[:60]!r}")
        shapes.append(shape)
    return shapes


def _boxes(shapes: list[str]) -> np.ndarray:
    boxes = [shape_box(parse_shape(shape)[1]) for shape in shapes]
    return np.array(boxes, dtype=np.float32) if boxes else no_boxes()


def _read_part(root: Path, part: str, loaded: LoadedRows) -> pd.DataFrame:
    import pandas as pd

    table = _read_csv(root, part)
    name = table.attrs["file"]
    loaded.table_rows += len(table)
    shapes = pd.Series(None, index=table.index, dtype=object)
    for row, annotation in table["annotation"].items():
        try:
            shapes[row] = parse_annotation(annotation)
        except ValueError as error:
            loaded.faults.append(f"{name}:{row}: {error}")
    unnamed = table["image"].isna() & shapes.notna()
    loaded.faults += [f"{name}:{row}: no image name" for row in table.index[unnamed]]
    good = shapes.notna() & ~unnamed
    if not good.all():
        rule = "malformed annotation or no image name"
        loaded.dropped[rule] = loaded.dropped.get(rule, 0) + int((~good).sum())
    files, ids = table["image"], table["image"].str.rpartition(".")[0]
    zips = [archive for archive in (f"{part}.zip",) if (root / archive).is_file()]
    rows = pd.DataFrame(
        {
            "image": locate(ids, paths_by_stem(root, (part,), zips), part + "/" + files),
            "image_id": ids,
            "shapes": shapes,
            "source": row_sources(table),
        }
    )
    return rows[good].reset_index(drop=True)


def _read_csv(root: Path, part: str) -> pd.DataFrame:
    """The table with `image`: base name of the image file. LoVT keeps the published tables in input/."""
    names = [f"input/{part}.csv", f"{part}.csv"]
    # The published files call the column otherwise than the page that describes them.
    table = read_table(root, names, columns=("annotation",), optional=("image_name", "image_path"))
    image = table["image_name"].where(table["image_name"].notna(), table["image_path"])
    if len(table) and image.isna().all():
        raise ValueError(f"{table.attrs['file']}: no image names. Expected a column 'image_name' or 'image_path'.")
    # The path may begin with the part's own folder, and with nothing else.
    table["image"] = image.str.removeprefix("./").str.removeprefix(f"{part}/")
    return table


DATASETS = (
    PublicDataset(
        name="object_cxr",
        title="object-CXR",
        tasks=("detection", "segmentation", "classification"),
        expected_files="""train.csv dev.csv                      (or in input/)
train/00001.jpg ... 08000.jpg          (or train.zip)
dev/08001.jpg ... 09000.jpg            (or dev.zip)""",
        license="Free to download for scientific research and non-commercial usage.",
        homepage="https://academictorrents.com/details/fdc91f11d7010f7259a05403fc9d00079a09f5d5",
        restricted=True,
        pretraining_name="Object-CXR",
        tested="fixture",
        read=read,
        split_schemes=("official", "mgca", "lovt"),
        options={"split_files": None},
        option_help={"split_files": SPLIT_FILES_HELP},
        split_notes={
            "official": "Train 8,000 images (a validation part is taken from them); dev, 1,000 images, is test: the "
            "test set of the challenge is not public.",
            "mgca": "Train 90/10 by image: 7,200 / 800 / 1,000.",
            "lovt": "From its files: 6,400 / 1,600 / 1,000 (3,210 / 790 / 500 without objects).",
        },
        traps=(
            "LoVT's published boxes have width and height exchanged, and its polygon masks x and y: only its ids are "
            "read here.",
            "The box of a polygon is that of its points; MGCA takes a symmetric box around an inner point, which can "
            "leave the image.",
            "Ellipses are filled as ellipses; LoVT fills their boxes.",
            "Names are numbers with leading zeros.",
            "Patients are not known: images of one patient may be in several splits.",
        ),
    ),
)
