"""NIH ChestX-ray14: 14 text-mined labels, and boxes of 8 findings on 880 images, also as masks."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ...files import read_regular
from ..boxes import boxes_of, group_boxes, usable_boxes, xywh_to_xyxy
from ..catalog import LoadedRows, PublicDataset, Request
from ..demographics import age_column, sex_column
from ..files import read_table, record_input, require_file, row_sources, to_numbers
from ..lookup import locate, paths_by_stem
from ..masks import box_mask
from ..reference_splits import SPLIT_FILES_HELP, follow_split, shipped_split

if TYPE_CHECKING:
    import pandas as pd

LABELS = [
    "Atelectasis",
    "Cardiomegaly",
    "Effusion",
    "Infiltration",
    "Mass",
    "Nodule",
    "Pneumonia",
    "Pneumothorax",
    "Consolidation",
    "Edema",
    "Emphysema",
    "Fibrosis",
    "Pleural_Thickening",
    "Hernia",
]
"""In the order of ChestX-ray14's paper and of the CheXNet re-implementations."""

BOX_CLASSES = LABELS[:8]
"""Findings with boxes, numbered as by LoVT."""

SIZE = 1024
"""Width and height in pixels of every image, which the boxes refer to."""

NO_FINDING = "No Finding"

_TABLES = ("Data_Entry_2017_v2020.csv", "Data_Entry_2017.csv")
_COLUMNS = ("Image Index", "Finding Labels")
_OPTIONAL = ("Patient Age", "Patient Gender", "View Position")
# The commas in its header's brackets split the name of the column as well.
_BOX = ("Bbox [x", "y", "w", "h]")


def read(request: Request) -> LoadedRows:
    """Rows of one image each, in the order of the table; for detection and segmentation those with boxes."""
    import pandas as pd

    root = request.root
    table = read_table(root, _TABLES, columns=_COLUMNS, optional=_OPTIONAL)
    loaded = LoadedRows(pd.DataFrame(), label_names=LABELS, table_rows=len(table))
    labels, bad = _labels(table, loaded)
    files = table["Image Index"]
    stems = files.str.removesuffix(".png")
    rows = pd.DataFrame(
        {
            "image": "images/" + files,
            "image_id": stems,
            "patient_id": stems.str.slice(0, 8),
            "view": table["View Position"],
            "sex": sex_column(table["Patient Gender"]),
            "age": _ages(table, loaded),
            "source": row_sources(table),
        }
    )
    rows = pd.concat([rows, labels], axis=1)[~bad].reset_index(drop=True)
    if request.task != "classification":
        rows = _with_boxes(request, rows, loaded)
    rows["image"] = locate(rows["image_id"], _paths(root), rows["image"])
    if request.task == "segmentation":
        rows["mask"] = _masks(rows, request.options["finding"])
    elif request.options["finding"] is not None:
        raise ValueError(f"finding= chooses the boxes of masks: it is for task='segmentation', not {request.task!r}.")
    loaded.rows = rows
    _split(request, loaded)
    return loaded


def _labels(table: pd.DataFrame, loaded: LoadedRows) -> tuple[pd.DataFrame, pd.Series]:
    """A float column a finding, and a mask of the rows that make no sense."""
    import pandas as pd

    # There are 120 times fewer combinations than images.
    codes, combinations = pd.factorize(table["Finding Labels"])
    values = np.zeros((len(combinations), len(LABELS)), dtype=np.float64)
    wrong = np.zeros(len(combinations), dtype=bool)
    for place, combination in enumerate(combinations):
        names = [name.strip() for name in combination.split("|")]
        unknown = sorted(set(names) - {*LABELS, NO_FINDING})
        if unknown:
            row = table.index[codes == place][0]
            raise ValueError(
                f"{table.attrs['file']}, row {row}, column 'Finding Labels': unknown label {unknown[0]!r}. Expected "
                f"{', '.join(LABELS)} or {NO_FINDING}, joined by '|'."
            )
        wrong[place] = NO_FINDING in names and len(names) > 1
        values[place, [LABELS.index(name) for name in names if name != NO_FINDING]] = 1
    named = table["Image Index"].str.fullmatch(r"\d{8}_\d{3}\.png").fillna(False).astype(bool)
    reasons = {
        "the image's name is not '<8 digits>_<3 digits>.png'": ~named,
        "no label": pd.Series(codes < 0, table.index),
        f"{NO_FINDING} beside a finding": pd.Series(np.append(wrong, False)[codes], table.index),
    }
    bad = pd.Series(False, index=table.index)
    for reason, rows in reasons.items():
        loaded.faults += [f"{table.attrs['file']}:{row}: {reason}" for row in table.index[rows & ~bad]]
        bad |= rows
    if bad.any():
        loaded.dropped["malformed row"] = int(bad.sum())
    filled = np.append(values, np.full((1, len(LABELS)), np.nan), axis=0)[codes]
    return pd.DataFrame(filled, columns=LABELS, index=table.index), bad


def _ages(table: pd.DataFrame, loaded: LoadedRows) -> pd.Series:
    # The release of 2017 writes ages as "058Y", of infants as "011M" or "014D", and has impossible ones.
    return age_column(table["Patient Age"], loaded.notes)


def _paths(root: Path) -> dict[str, str]:
    folders = sorted(path.name for path in root.glob("images*") if path.is_dir())
    return paths_by_stem(root, folders)


def _with_boxes(request: Request, rows: pd.DataFrame, loaded: LoadedRows) -> pd.DataFrame:
    """The images that have boxes; under "lovt" also those without a finding that its files name."""
    table = read_table(request.root, "BBox_List_2017.csv", columns=("Image Index", "Finding Label", *_BOX))
    loaded.table_rows, loaded.box_class_names = len(table), BOX_CLASSES
    loaded.box_frame = (SIZE, SIZE)
    name = table.attrs["file"]
    # The label table calls it otherwise.
    classes = table["Finding Label"].replace("Infiltrate", "Infiltration")
    unknown = ~classes.isin(BOX_CLASSES)
    if unknown.any():
        row = table.index[unknown][0]
        raise ValueError(
            f"{name}, row {row}, column 'Finding Label': found {classes[row]!r}. Expected {', '.join(BOX_CLASSES)}."
        )
    boxes = xywh_to_xyxy(np.stack([to_numbers(table, column).to_numpy() for column in _BOX], axis=1))
    stems = table["Image Index"].str.removesuffix(".png")
    reasons = {
        "the image is not in the table of labels": ~stems.isin(rows["image_id"]).to_numpy(),
        f"the box is empty or outside {SIZE} x {SIZE} pixels": ~usable_boxes(boxes, SIZE, SIZE),
    }
    bad = np.zeros(len(table), dtype=bool)
    for reason, wrong in reasons.items():
        loaded.faults += [f"{name}:{row}: {reason}" for row in table.index[wrong & ~bad]]
        bad |= wrong
    bad |= stems.isin(stems[bad]).to_numpy()
    repeated = table.assign(stem=stems).duplicated().to_numpy() & ~bad
    for rule, count in (("image with a malformed box", bad.sum()), ("the same box twice", repeated.sum())):
        if count:
            loaded.dropped[rule] = int(count)
    kept = ~bad & ~repeated
    numbers = classes[kept].map(BOX_CLASSES.index).to_numpy()
    grouped = group_boxes(stems[kept], boxes[kept], numbers)
    wanted = rows["image_id"].isin(grouped.index)
    if request.split_scheme == "lovt":
        split = shipped_split(request.root, request.options["split_files"])
        rows, dropped = follow_split(rows[wanted | rows["image_id"].isin(split.index)], split)
        loaded.dropped |= dropped
    else:
        rows = rows[wanted].reset_index(drop=True)
    rows[["boxes", "box_labels"]] = boxes_of(grouped, rows["image_id"])
    return rows


def _masks(rows: pd.DataFrame, finding: str | None) -> pd.Series:
    import pandas as pd

    if finding is not None and finding not in BOX_CLASSES:
        raise ValueError(f"finding is one of {', '.join(BOX_CLASSES)} or None for all, got {finding!r}.")
    number = None if finding is None else BOX_CLASSES.index(finding)
    masks = []
    for boxes, classes, image in zip(rows["boxes"], rows["box_labels"], rows["image"], strict=True):
        chosen = boxes if number is None else boxes[np.array(classes, dtype=int) == number]
        masks.append(box_mask(chosen, image, (SIZE, SIZE)))
    return pd.Series(masks, index=rows.index, dtype=object)


def _split(request: Request, loaded: LoadedRows) -> None:
    scheme, rows = request.split_scheme, loaded.rows
    if scheme == "official":
        lists = {"train": "train_val_list.txt", "test": "test_list.txt"}
        split = _listed(request.root, lists)
        rows["split"] = rows["image_id"].map(split).astype(object).where(rows["image_id"].isin(split), None)
        if request.task != "classification" and not (rows["split"] == "train").any():
            loaded.notes.append(
                "The official test list has all images with boxes. To train on some, take split_scheme='patient'."
            )
    elif scheme == "chexnet":
        folder = Path(os.path.join(request.root, request.options["split_files"] or "."))
        split = _listed(folder, {"train": "train_list.txt", "validation": "val_list.txt", "test": "test_list.txt"})
        rows["split"] = rows["image_id"].map(split).astype(object).where(rows["image_id"].isin(split), None)
    elif scheme == "lovt" and request.task == "classification":
        raise ValueError("LoVT has no split of NIH ChestX-ray14 for classification. Take 'official' or 'patient'.")


def _listed(folder: Path, files: dict[str, str]) -> dict[str, str]:
    """Split by image, from lists whose lines begin with the image's name, in a folder of it or not."""
    split: dict[str, str] = {}
    for part, name in files.items():
        path = require_file(folder, name, "list")
        for line in read_regular(record_input(path)).decode("utf-8").splitlines():
            if not line.strip():
                continue
            image = line.split()[0].rpartition("/")[2].removesuffix(".png")
            if split.setdefault(image, part) != part:
                raise ValueError(f"{path}: an image is in the list of {split[image]} too. Are the lists of one split?")
    return split


DATASETS = (
    PublicDataset(
        name="nih_chestxray14",
        title="NIH ChestX-ray14",
        tasks=("classification", "detection", "segmentation"),
        expected_files="""images/00000001_000.png ...             (or images_001/images/ ... images_012/images/)
Data_Entry_2017_v2020.csv               or Data_Entry_2017.csv
train_val_list.txt test_list.txt        for the official split
BBox_List_2017.csv                      for detection and segmentation""",
        license="NIH Clinical Center: no restriction on use; attribution and citation are asked for.",
        homepage="https://nihcc.app.box.com/v/ChestXray-NIHCC",
        restricted=False,
        pretraining_name="NIH ChestX-ray14",
        tested="fixture",
        read=read,
        split_schemes=("official", "chexnet", "lovt"),
        options={"finding": None, "split_files": None},
        option_help={
            "finding": "For segmentation: boxes of this finding only; None takes all. Images without it have an "
            "empty mask.",
            "split_files": SPLIT_FILES_HELP[:-1]
            + "; or of train_list.txt, val_list.txt and test_list.txt, for split_scheme='chexnet'.",
        },
        split_notes={
            "official": "By patient: train_val_list.txt (a validation part is taken from it) and test_list.txt, 86,524 "
            "and 25,596 images. All images with boxes are in the test list.",
            "chexnet": "By patient, from the files of the CheXNet re-implementation by arnoweng: 78,468 / 11,219 / "
            "22,433.",
            "lovt": "Detection and segmentation, from its files: 588 / 196 / 196 images, of which 60 / 20 / 20 without "
            "a finding.",
        },
        leaks={
            "lovt": "Images with boxes and without findings were split apart: 12 patients are in train and validation, "
            "13 in train and test, 5 in validation and test."
        },
        traps=(
            "Labels are mined from reports and noisy, and label releases differ.",
            "The headers have commas inside of brackets, which split them into several columns.",
            "The boxes call 'Infiltrate' what the labels call 'Infiltration': here it is Infiltration.",
            "Boxes are in pixels of 1024 x 1024. On resized copies they are brought to the size of the copy; cropped "
            "or stretched copies are refused.",
            "Only 880 of 112,120 images have boxes; the others are not annotated, not free of findings.",
            "A few hundred images are RGBA; the release of 2017 has ages of up to 414 years.",
            "Images of this set are in RSNA, SIIM and COVIDx: a test across these sets leaks.",
        ),
    ),
)
