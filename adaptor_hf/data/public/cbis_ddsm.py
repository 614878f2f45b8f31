"""CBIS-DDSM, mammography: pathology of abnormalities, and their regions as masks; TCIA's DICOM or Kaggle's JPEG."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..catalog import LoadedRows, PublicDataset, Request
from ..files import FileIndex, find_file, list_files, read_table, row_sources
from ..masks import roi_mask

if TYPE_CHECKING:
    import pandas as pd

PATHOLOGIES = ["BENIGN_WITHOUT_CALLBACK", "BENIGN", "MALIGNANT"]
"""In order of severity: of several on an image the last one counts."""

KINDS = {"mass": ("mass",), "calcification": ("calc",), "all": ("mass", "calc")}

_PATHS = {"image": "image file path", "crop": "cropped image file path", "roi": "ROI mask file path"}
_COLUMNS = ("patient_id", "left or right breast", "image view", "abnormality id", "pathology", *_PATHS.values())
_SUFFIXES = (".dcm", ".jpg", ".jpeg", ".png")
_PARTS = ("train", "test")


def read(request: Request) -> LoadedRows:
    """Rows of one abnormality each, or of one mammogram each (`unit`, and always for segmentation)."""
    import pandas as pd

    options = request.options
    kinds, unit = _choice("abnormality", options["abnormality"], KINDS), options["unit"]
    _choice("unit", unit, {"abnormality": 0, "image": 0})
    classes = _choice("classes", options["classes"], {3: PATHOLOGIES, 2: PATHOLOGIES[1:]})
    loaded = LoadedRows(pd.DataFrame(), class_names=classes)
    table = pd.concat([_read_part(request, kind, part, loaded) for kind in kinds for part in _PARTS], ignore_index=True)
    pathology = table["pathology"].replace({} if len(classes) == 3 else {PATHOLOGIES[0]: PATHOLOGIES[1]})
    table["labels"] = pathology.map(classes.index)
    series = _Series(request)
    table["image"] = [series.first(path) for path in table["image"]]
    if request.task == "segmentation":
        table["candidates"] = [series.masks(*pair) for pair in zip(table["roi"], table["crop"], strict=True)]
    if unit == "image" or request.task == "segmentation":
        table = _per_image(table, request.task == "segmentation")
    if request.split_scheme == "official":
        _one_side_a_patient(table, loaded)
    loaded.rows = table.drop(columns=["roi", "crop", "pathology", "candidates"], errors="ignore")
    return loaded


def _choice(name: str, value, known: dict):
    if value not in known:
        raise ValueError(f"{name} is one of {', '.join(map(repr, known))}, got {value!r}.")
    return known[value]


def _read_part(request: Request, kind: str, part: str, loaded: LoadedRows) -> pd.DataFrame:
    """The rows of a table that make sense."""
    import pandas as pd

    file = f"{kind}_case_description_{part}_set.csv"
    table = read_table(request.root, [file, f"csv/{file}"], columns=_COLUMNS)
    name = table.attrs["file"]
    loaded.table_rows += len(table)
    unknown = table["pathology"].notna() & ~table["pathology"].isin(PATHOLOGIES)
    if unknown.any():
        row = table.index[unknown][0]
        raise ValueError(
            f"{name}, row {row}, column 'pathology': found {table['pathology'][row]!r}. Expected one of {PATHOLOGIES}."
        )
    # Windows copies have backslashes, and the last field ends in a line feed.
    paths = {short: table[column].str.replace("\\", "/") for short, column in _PATHS.items()}
    bad = table[list(_COLUMNS[:5])].isna().any(axis=1)
    for cells in paths.values():
        bad |= ~cells.str.contains("/").fillna(False).astype(bool)
    loaded.faults += [f"{name}:{row}: an empty cell, or a path without folders" for row in table.index[bad]]
    if bad.any():
        loaded.dropped["malformed row"] = loaded.dropped.get("malformed row", 0) + int(bad.sum())
    breast = kind + "_" + table["patient_id"] + "_" + table["left or right breast"] + "_" + table["image view"]
    rows = pd.DataFrame(
        {
            **paths,
            "image_id": breast + "_" + table["abnormality id"],
            "patient_id": table["patient_id"],
            "study_id": table["patient_id"] + "_" + table["left or right breast"],
            "view": table["image view"],
            "pathology": table["pathology"],
            "split": part,
            "source": row_sources(table),
        }
    )
    return rows[~bad]


class _Series:
    """
    Files by SeriesInstanceUID: file names in the tables are not those of the files.

    The folder is named by the UID in TCIA's classic layout and in Kaggle's; for its newer one metadata.csv says where.
    """

    def __init__(self, request: Request) -> None:
        index: FileIndex = list_files(request.root, suffixes=_SUFFIXES)
        self.sizes = index.sizes
        self.folders: dict[str, list[str]] = {}
        for path in sorted(index.sizes):
            self.folders.setdefault(path.rpartition("/")[0], []).append(path)
        self.by_uid = {folder.rpartition("/")[2]: folder for folder in self.folders}
        if find_file(request.root, ("metadata.csv", "*/metadata.csv")):
            table = read_table(
                request.root, ("metadata.csv", "*/metadata.csv"), columns=("Series UID", "File Location")
            ).dropna()
            base = table.attrs.get("file", "").rpartition("/")[0]
            places = table["File Location"].str.replace("\\", "/").str.removeprefix("./").str.rstrip("/")
            for uid, place in zip(table["Series UID"], places, strict=True):
                folder = f"{base}/{place}" if base else place
                if folder in self.folders:
                    self.by_uid.setdefault(uid, folder)

    def files(self, path: str) -> list[str]:
        """Files of the series that a path of a table is of."""
        return self.folders.get(self.by_uid.get(path.split("/")[-2], ""), [])

    def first(self, path: str) -> str:
        files = self.files(path)
        return files[0] if files else path

    def masks(self, roi: str, crop: str) -> list[str]:
        """
        Files that may be the mask, the likeliest first: it has the size of the mammogram, so more bytes than the crop.

        Which it is, only their content says: the tables confuse mask and crop.
        """
        files = dict.fromkeys([*self.files(roi), *self.files(crop)])
        return sorted(files, key=lambda file: -self.sizes[file]) or [roi]


def _per_image(table: pd.DataFrame, with_masks: bool) -> pd.DataFrame:
    """A row a mammogram: the gravest pathology, and the regions of all its abnormalities."""
    table = table.assign(image_id=table["image_id"].str.rpartition("_")[0])
    grouped = table.groupby(["image", "split"], sort=False)
    # Mass and calcification tables name the same mammogram apart.
    images = table.loc[table.groupby(["image", "split"], sort=False)["labels"].idxmax()].sort_index()
    if with_masks:
        candidates = grouped["candidates"].agg(list)
        keys = zip(images["image"], images["split"], strict=True)
        images["mask"] = [roi_mask(candidates[key], key[0]) for key in keys]
    return images.reset_index(drop=True)


def _one_side_a_patient(table: pd.DataFrame, loaded: LoadedRows) -> None:
    """Masses and calcifications were split apart: a patient who is in a test table is in test with all rows."""
    tested = set(table.loc[table["split"] == "test", "patient_id"])
    moved = (table["split"] == "train") & table["patient_id"].isin(tested)
    if moved.any():
        table.loc[moved, "split"] = "test"
        loaded.notes.append(
            f"{int(moved.sum())} rows of the train tables went to test: their "
            f"{table.loc[moved, 'patient_id'].nunique()} patients are in a test table too."
        )


DATASETS = (
    PublicDataset(
        name="cbis_ddsm",
        title="CBIS-DDSM",
        tasks=("classification", "segmentation"),
        expected_files="""{mass,calc}_case_description_{train,test}_set.csv          (or in csv/)
CBIS-DDSM/<Mass-Training_P_00001_LEFT_CC>/<StudyUID>/<SeriesUID>/*.dcm     TCIA
metadata.csv                                               for TCIA's newer folder names
jpeg/<SeriesUID>/*.jpg                                     or Kaggle's JPEG""",
        license="CC BY 3.0",
        homepage="https://www.cancerimagingarchive.net/collection/cbis-ddsm/",
        restricted=False,
        pretraining_name="CBIS-DDSM",
        tested="fixture",
        read=read,
        split_schemes=("official",),
        options={"abnormality": "mass", "unit": "abnormality", "classes": 3},
        option_help={
            "abnormality": "'mass', 'calcification' or 'all'.",
            "unit": "Rows of one 'abnormality' each, as the tables have them, or of one 'image' (mammogram) each, with "
            "its gravest pathology. Segmentation is always by image.",
            "classes": "3: BENIGN_WITHOUT_CALLBACK, BENIGN, MALIGNANT. 2: the first two are one.",
        },
        split_notes={
            "official": "The tables: mass 1,318 and 378 rows, calcification 1,546 and 326. A validation part is taken "
            "from train by patient. With abnormality='all' a patient of either test table is in test with all rows.",
        },
        traps=(
            "Which of two files is the mask and which the crop is not what the tables say: the one with two values is "
            "taken.",
            "File names in the tables do not exist: files are found by the series UID in the path.",
            "The last field of a row ends in a line feed; the two kinds of tables spell a column differently.",
            "A mask can differ from its mammogram in size, and in aspect too: it is resized, nearest neighbour.",
            "The patient is P_00001; TCIA's PatientID is one a series.",
            "Six mammograms have abnormalities of different pathology: with unit='image' malignant wins.",
        ),
    ),
)
