"""RSNA Pneumonia Detection Challenge (Kaggle 2018, stage 2): classification, detection, filled boxes as masks."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ...files import read_json
from ...privacy.vocabulary import column_list
from ..boxes import boxes_of, group_boxes, usable_boxes, xywh_to_xyxy
from ..catalog import LoadedRows, PublicDataset, Request
from ..files import read_table, record_input, row_sources, to_numbers
from ..lookup import locate, paths_by_stem
from ..masks import box_mask
from ..reference_splits import SPLIT_FILES_HELP, check_size, follow_split, shipped_split, three_way_split

if TYPE_CHECKING:
    import pandas as pd

SIZE = 1024
"""Width and height in pixels of every image, which the boxes refer to."""

DETAILED_CLASSES = ["Normal", "No Lung Opacity / Not Normal", "Lung Opacity"]

_BOX = ("x", "y", "width", "height")
_IMAGES = "stage_2_train_images"


def read(request: Request) -> LoadedRows:
    """Rows of one image each, sorted by patientId."""
    import pandas as pd

    root, options = request.root, request.options
    table = read_table(root, "stage_2_train_labels.csv", columns=("patientId", *_BOX, "Target"))
    total, loaded = len(table), LoadedRows(pd.DataFrame(), table_rows=len(table))
    table, boxes = _checked(table, loaded)
    images = table.drop_duplicates("patientId").sort_values("patientId")
    ids = images["patientId"].reset_index(drop=True)
    targets = to_numbers(images, "Target").astype(int).reset_index(drop=True)
    rows = pd.DataFrame(
        {
            "image": locate(ids, _paths(root), _IMAGES + "/" + ids + ".dcm"),
            "image_id": ids,
            "patient_id": _patients(request, ids, loaded),
            "labels": targets,
            "source": row_sources(images).to_numpy(),
        }
    )
    positive = boxes.notna().all(axis=1)
    keys = table.loc[positive, "patientId"]
    grouped = group_boxes(keys, xywh_to_xyxy(boxes[positive].to_numpy()), np.zeros(len(keys), dtype=int))
    rows[["boxes", "box_labels"]] = boxes_of(grouped, ids)
    loaded.class_names, loaded.box_class_names = ["negative", "pneumonia"], ["pneumonia"]
    loaded.box_frame = (SIZE, SIZE)
    if options["classes"] == 3:
        rows["labels"] = _detailed_labels(root, ids, targets)
        loaded.class_names = DETAILED_CLASSES
    elif options["classes"] != 2:
        raise ValueError(f"classes is 2 (Target) or 3 (the detailed classes), got {options['classes']!r}.")
    if request.task == "segmentation":
        rows["mask"] = pd.Series(map(box_mask, rows["boxes"], rows["image"], [(SIZE, SIZE)] * len(rows)), dtype=object)
    loaded.rows, loaded.table_rows = rows, total
    _split(request, loaded)
    return loaded


def _checked(table: pd.DataFrame, loaded: LoadedRows) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The rows that make sense, and their boxes as numbers; an image with a row that does not is left out."""
    import pandas as pd

    repeated = table.duplicated()
    table = table[~repeated]
    targets = to_numbers(table, "Target", allowed=(0, 1))
    boxes = pd.concat([to_numbers(table, name) for name in _BOX], axis=1)
    given = boxes.notna().sum(axis=1)
    target_of = targets.groupby(table["patientId"])
    reasons = {
        "no patientId": table["patientId"].isna(),
        "no Target": targets.isna(),
        "Target 1 without a box": (targets == 1) & (given != 4),
        "Target 0 with a box": (targets == 0) & (given != 0),
        f"the box is not inside {SIZE} x {SIZE} pixels": (given == 4) & ~_inside(boxes),
        "other rows of this image have another Target": target_of.transform("nunique") > 1,
    }
    bad = pd.Series(False, index=table.index)
    for reason, wrong in reasons.items():
        # An image has one fault, whatever else is wrong with it.
        new = wrong & ~bad
        loaded.faults += [f"{table.attrs['file']}:{row}: {reason}" for row in table.index[new]]
        bad |= wrong
    bad |= table["patientId"].isin(table.loc[bad, "patientId"].dropna())
    loaded.dropped |= _counted({"the same row twice": repeated.sum(), "image with a malformed row": bad.sum()})
    return table[~bad], boxes[~bad]


def _inside(boxes: pd.DataFrame) -> np.ndarray:
    corners = xywh_to_xyxy(boxes.to_numpy())
    return usable_boxes(corners) & (corners >= 0).all(axis=1) & (corners <= SIZE).all(axis=1)


def _counted(counts: dict) -> dict[str, int]:
    return {rule: int(count) for rule, count in counts.items() if count}


def _paths(root: Path) -> dict[str, str]:
    zips = [name for name in (f"{_IMAGES}.zip",) if (root / name).is_file()]
    return paths_by_stem(root, (_IMAGES,), zips)


def _detailed_labels(root: Path, ids: pd.Series, targets: pd.Series) -> pd.Series:
    # A patient with two boxes is there twice, with the same class.
    table = read_table(root, "stage_2_detailed_class_info.csv", columns=("patientId", "class")).drop_duplicates()
    twice = table["patientId"].duplicated()
    if twice.any():
        raise ValueError(f"{table.attrs['file']}: {int(twice.sum())} images have two different classes.")
    names = ids.map(table.set_index("patientId")["class"])
    unknown = sorted(set(names.dropna()) - set(DETAILED_CLASSES))
    if unknown:
        raise ValueError(f"{table.attrs['file']}: unknown class {unknown[0]!r}. Expected: {DETAILED_CLASSES}.")
    codes = names.map({name: code for code, name in enumerate(DETAILED_CLASSES)})
    if ((codes == 2) != (targets == 1))[codes.notna()].any():
        raise ValueError(f"{table.attrs['file']}: 'Lung Opacity' is not Target 1 there. Are both tables of stage 2?")
    return codes


def _patients(request: Request, ids: pd.Series, loaded: LoadedRows) -> pd.Series | None:
    """NIH patient of each image, or the image itself where the table has none; None for all without the table."""
    if request.options["nih_match"] is None:
        loaded.notes.append(
            "patientId names an image, not a patient, so a patient may be in several splits. To split by patient pass "
            "nih_match=FILE, the table of RSNA images and their NIH originals."
        )
        return None
    original = read_match(request.root, request.options["nih_match"])
    known = ids.map(original)
    missing = int(known.isna().sum())
    if missing:
        loaded.notes.append(f"{missing} images are not in the table of NIH originals and count as a patient each.")
    return known.str.slice(0, 8).fillna("rsna-" + ids)


def read_match(root: Path, file: str | os.PathLike) -> dict[str, str]:
    """
    NIH image name by RSNA patientId.

    Args:
        file: Absolute or relative to `root`. RSNA's pneumonia-challenge-dataset-mappings_2018.json, or any CSV that has
            a column of patientIds and one of NIH image names; of several matches of an image the first is taken.

    Raises:
        ValueError: No such columns.
    """
    path = Path(os.path.join(root, file))
    if path.suffix.lower() == ".json":
        entries = read_json(record_input(path))
        if not isinstance(entries, list) or not all({"subset_img_id", "img_id"} <= entry.keys() for entry in entries):
            raise ValueError(f"{path}: expected a list of entries with 'subset_img_id' and 'img_id'.")
        pairs = [(entry["subset_img_id"], entry["img_id"]) for entry in entries]
    else:
        table = _text_columns(path)
        rsna = _column(table, r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}(\.dcm)?", "RSNA patientIds", path)
        nih = _column(table, r"\d{8}_\d{3}(\.png)?", "NIH image names", path)
        pairs = list(zip(rsna.str.removesuffix(".dcm"), nih, strict=True))
    return dict(reversed([(rsna, nih) for rsna, nih in pairs if isinstance(rsna, str) and isinstance(nih, str)]))


def _text_columns(path: Path) -> pd.DataFrame:
    import pandas as pd

    from ..delimited import read_delimited
    from ..missing import without_missing

    table = read_delimited(record_input(path), detect=True).table
    cells = (without_missing(column, strip=True).to_numpy() for column in table.columns)
    return pd.DataFrame({name.strip(): column for name, column in zip(table.column_names, cells, strict=True)})


def _column(table: pd.DataFrame, pattern: str, what: str, path: Path) -> pd.Series:
    for name in table.columns:
        cells = table[name].str.strip()
        if cells.notna().any() and cells.dropna().str.fullmatch(pattern).all():
            return cells
    raise ValueError(f"{path}: no column of {what}. {column_list(list(table.columns), 'Found')}")


def _split(request: Request, loaded: LoadedRows) -> None:
    scheme, count = request.split_scheme, len(loaded.rows)
    if scheme in ("mgca", "gloria"):
        if scheme == "gloria" and request.task != "classification":
            raise ValueError(f"GLoRIA has no split of RSNA for {request.task}. Take split_scheme='mgca' or 'patient'.")
        held_out = 0.3 if request.task == "classification" else 2 * 5337
        if not isinstance(held_out, float) and held_out >= count:
            raise ValueError(f"MGCA's split holds out {held_out:,} images, here are {count:,}. Take 'patient'.")
        loaded.rows["split"] = three_way_split(count, held_out)
        loaded.notes += check_size(count, 26684, "MGCA")
    elif scheme == "lovt":
        loaded.rows, dropped = follow_split(loaded.rows, shipped_split(request.root, request.options["split_files"]))
        loaded.dropped |= dropped


_LEAK = (
    "Split by image, but {} test images (with the matches that torchxrayvision made) are of an NIH patient who is in "
    "train too."
)

DATASETS = (
    PublicDataset(
        name="rsna",
        title="RSNA Pneumonia Detection Challenge",
        tasks=("classification", "detection", "segmentation"),
        expected_files="""stage_2_train_images/<patientId>.dcm   (or stage_2_train_images.zip)
stage_2_train_labels.csv
stage_2_detailed_class_info.csv        for classes=3""",
        license="Rules of the Kaggle competition: academic and other non-commercial use. Images of the NIH Clinical "
        "Center.",
        homepage="https://www.kaggle.com/c/rsna-pneumonia-detection-challenge",
        restricted=True,
        same_images=("nih_chestxray14",),
        pretraining_name="RSNA Pneumonia",
        tested="fixture",
        read=read,
        split_schemes=("patient", "mgca", "gloria", "lovt"),
        options={"classes": 2, "nih_match": None, "split_files": None},
        option_help={
            "classes": "2: Target. 3: Normal, No Lung Opacity / Not Normal, Lung Opacity.",
            "nih_match": "File that says which NIH image an RSNA image is: RSNA's "
            "pneumonia-challenge-dataset-mappings_2018.json, or a CSV with a column of patientIds and one of NIH image "
            "names. Then patient_id is the NIH patient.",
            "split_files": SPLIT_FILES_HELP,
        },
        split_notes={
            "patient": "By NIH patient with nih_match, else by image.",
            "mgca": "By image. Classification 18,678 / 4,003 / 4,003 (4,162 / 928 / 922 positive), detection and "
            "segmentation 16,010 / 5,337 / 5,337 (3,579 / 1,182 / 1,251 positive).",
            "gloria": "Classification as mgca.",
            "lovt": "By image, from its files: 16,010 / 5,337 / 5,337 (3,584 / 1,210 / 1,218 positive).",
        },
        leaks={
            "mgca": _LEAK.format("2,749 of 4,003 (classification) and 3,579 of 5,337 (detection, segmentation)")
            + " Test images of the classification split are in the train part of the detection split.",
            "gloria": _LEAK.format("2,749 of 4,003"),
            "lovt": _LEAK.format("3,547 of 5,337"),
        },
        traps=(
            "patientId is the id of an image: the 26,684 images are of 11,439 NIH patients.",
            "The images are NIH ChestX-ray14 images, and are in SIIM and COVIDx too: a test across these sets leaks.",
            "The table has a row a box; the detailed classes repeat a patient as often as it has boxes.",
            "An image without pneumonia has boxes of shape (0, 4), not the zero box that MGCA stores.",
            "Boxes are in pixels of 1024 x 1024. On resized copies they are brought to the size of the copy; cropped "
            "or stretched copies are refused.",
            "The images are JPEG-compressed DICOM: reading them needs a decoder, which the error names.",
        ),
    ),
)
