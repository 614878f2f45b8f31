"""SIIM-ACR Pneumothorax Segmentation (Kaggle 2019), stage 1 and stage 2 layout."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from ..catalog import LoadedRows, PublicDataset, Request
from ..files import read_table
from ..lookup import locate, paths_by_stem
from ..mask_drawing import parse_rle
from ..masks import rle_mask
from ..reference_splits import SPLIT_FILES_HELP, check_size, follow_split, shipped_split, three_way_split

if TYPE_CHECKING:
    import pandas as pd

SIZE = 1024
"""Width and height in pixels of every image, which the run lengths refer to."""

_TABLES = ("train-rle.csv", "stage_2_train.csv")
_FOLDERS = ("dicom-images-train", "stage_2_images")


def read(request: Request) -> LoadedRows:
    """Rows of one image each, in the order of the table; under "mgca" one for each split that an image is in."""
    import pandas as pd

    root = request.root
    # The name of the second column begins with a blank in one of the two files, and so does its -1.
    table = read_table(root, _TABLES, columns=("ImageId", "EncodedPixels"))
    loaded = LoadedRows(pd.DataFrame(), class_names=["negative", "pneumothorax"], table_rows=len(table))
    if request.split_scheme in ("mgca", "gloria"):
        table["split"] = three_way_split(len(table), 0.3)
        loaded.notes += check_size(len(table), 12954, "MGCA")
    images = _images(_checked(table, loaded), table.attrs["file"])
    paths = _paths(root)
    images["image"] = locate(images["image_id"], paths, f"{_FOLDERS[0]}/" + images["image_id"] + ".dcm")
    unlisted = len(paths.keys() - set(table["ImageId"]))
    if unlisted:
        loaded.notes.append(f"{unlisted} image files have no row in the table: not known, not negative. Ignored.")
    if request.task == "segmentation":
        frames = [(SIZE, SIZE)] * len(images)
        images["mask"] = pd.Series(map(rle_mask, images["runs"], images["image"], frames), dtype=object)
    loaded.rows = images.drop(columns="runs")
    if request.split_scheme == "lovt":
        loaded.rows, dropped = follow_split(loaded.rows, shipped_split(root, request.options["split_files"]))
        loaded.dropped |= dropped
    return loaded


def _checked(table: pd.DataFrame, loaded: LoadedRows) -> pd.DataFrame:
    """Rows of the images whose rows all make sense."""
    import pandas as pd

    repeated = table.duplicated()
    if repeated.any():
        loaded.dropped["the same row twice"] = int(repeated.sum())
    table = table[~repeated]
    masks, empty = table["EncodedPixels"], table["EncodedPixels"] == "-1"
    reasons = masks[~empty].map(_malformed).reindex(table.index)
    reasons[table["ImageId"].isna()] = "no ImageId"
    mixed = empty & ~empty.groupby(table["ImageId"]).transform("all")
    reasons[mixed] = "the image has masks and is marked -1, which means none"
    wrong = reasons.notna()
    loaded.faults += [f"{table.attrs['file']}:{row}: {reason}" for row, reason in reasons[wrong].items()]
    bad = wrong | table["ImageId"].isin(table.loc[wrong, "ImageId"].dropna())
    if bad.any():
        loaded.dropped["image with a malformed row"] = int(bad.sum())
    return pd.DataFrame(table[~bad])


def _malformed(runs: str | None) -> str | None:
    """What is wrong with run lengths, or None."""
    if runs is None:
        return "no run lengths and no -1"
    try:
        _, ends = parse_rle(runs)
    except ValueError as error:
        return str(error)
    return None if ends[-1] <= SIZE * SIZE else f"run lengths end at pixel {ends[-1]}, outside {SIZE} x {SIZE}"


def _images(table: pd.DataFrame, name: str) -> pd.DataFrame:
    """A row an image (and split): all its masks together."""
    table = table.assign(row=table.index, empty=table["EncodedPixels"] == "-1")
    keys = ["ImageId", "split"] if "split" in table else ["ImageId"]
    grouped = table.groupby(keys, sort=False)
    images = grouped.agg(runs=("EncodedPixels", list), empty=("empty", "all"), row=("row", "first")).reset_index()
    images["runs"] = images["runs"].where(~images["empty"], images["runs"].map(lambda _: []))
    images["labels"] = (~images["empty"]).astype(int)
    images["source"] = name + ":" + images["row"].astype(str)
    images["patient_id"] = None
    return images.rename(columns={"ImageId": "image_id"}).drop(columns=["empty", "row"])


def _paths(root: Path) -> dict[str, str]:
    folders = [name for name in _FOLDERS if (root / name).is_dir()]
    # Copies of this set come in all kinds of folders: without the published ones look everywhere.
    return paths_by_stem(root, folders or (".",))


_LEAK = (
    "Split by table row, and an image has a row for each of its masks: 161 images are in train and validation, 154 in "
    "train and test, 62 in validation and test, and each side has only part of such an image's mask."
)

DATASETS = (
    PublicDataset(
        name="siim",
        title="SIIM-ACR Pneumothorax Segmentation",
        tasks=("segmentation", "classification"),
        expected_files="""train-rle.csv                                             stage 1
dicom-images-train/<StudyUID>/<SeriesUID>/<ImageId>.dcm
stage_2_train.csv                                         or stage 2
stage_2_images/<ImageId>.dcm""",
        license="Rules of the Kaggle competition. Images of the NIH Clinical Center.",
        homepage="https://www.kaggle.com/c/siim-acr-pneumothorax-segmentation",
        restricted=True,
        same_images=("nih_chestxray14",),
        pretraining_name="SIIM",
        tested="fixture",
        read=read,
        split_schemes=("patient", "mgca", "gloria", "lovt"),
        options={"split_files": None},
        option_help={"split_files": SPLIT_FILES_HELP},
        split_notes={
            "patient": "By image: patients are not known.",
            "mgca": "By row of the table of 12,954 rows: 9,067 / 1,944 / 1,943 rows, 8,578 / 1,910 / 1,903 images. "
            "MGCA balances the train part for segmentation: fraction_rule='mgca_balanced'.",
            "gloria": "As mgca.",
            "lovt": "By image, from its files: 7,229 / 2,409 / 2,409 (1,584 / 570 / 515 positive).",
        },
        leaks={"mgca": _LEAK, "gloria": _LEAK},
        traps=(
            'The mark of an image without pneumothorax is " -1" in one published file and "-1" in the other; MGCA and '
            "GLoRIA know the first only, and with the other file take every image for positive.",
            "Run lengths are relative and column-major, not Kaggle's usual absolute ones.",
            "An image has up to 10 masks, and in 183 images they overlap: they are joined with OR.",
            "Image files without a row are not negative images: they are ignored.",
            "About three quarters of the masks are empty: a Dice that counts empty against empty as 1 is high for a "
            "model that finds nothing.",
            "Patients are not known: images of one patient may be in several splits.",
        ),
    ),
)
