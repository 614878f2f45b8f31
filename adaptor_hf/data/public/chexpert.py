"""CheXpert: 14 labels of chest radiographs, from train.csv and valid.csv."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from ..catalog import LoadedRows, PublicDataset, Request
from ..demographics import age_column, sex_column
from ..files import read_table, row_sources, to_numbers
from ..labels import CHEXPERT_LABELS, COMPETITION_LABELS, LABEL_POLICIES

if TYPE_CHECKING:
    import pandas as pd

PATH = r"^(?:.*/)?((?:train|valid|test)/(patient\d+)/(study\d+)/[^/]+)$"
"""A value of the column Path; what stands before "train" is the archive's folder."""

_VALIDATION_ROWS = 5000


def read(request: Request) -> LoadedRows:
    """
    Rows of train.csv, then those of valid.csv.

    Raises:
        FileNotFoundError, ValueError: see `read_table`; also for a path of another form, and for a label other than 1,
            0, -1 or nothing.
    """
    import pandas as pd

    training, held_out = read_part(request.root, "train.csv"), read_part(request.root, "valid.csv")
    loaded = LoadedRows(training, label_names=_label_names(request.options["labels"]))
    loaded.table_rows = len(training) + len(held_out)
    loaded.notes += training.attrs["notes"] + held_out.attrs["notes"]
    if request.split_scheme == "mgca":
        parts = _mgca_parts(training)
        loaded.dropped["in MGCA's 5x200 set"] = len(set(training.index) - set(np.concatenate(list(parts.values()))))
    else:
        validation = _lovt_validation(training) if request.split_scheme == "lovt" else np.zeros(len(training), bool)
        parts = {"train": training.index[~validation], "validation": training.index[validation]}
    rows = [training.loc[places].assign(split=split) for split, places in parts.items()]
    loaded.rows = pd.concat([*rows, held_out.assign(split="test")], ignore_index=True)
    if request.options["views"] not in ("all", "frontal"):
        raise ValueError(f"The option views must be 'all' or 'frontal', got {request.options['views']!r}.")
    if request.options["views"] == "frontal":
        loaded.dropped["lateral view"] = int((~loaded.rows["frontal"]).sum())
        loaded.rows = loaded.rows[loaded.rows["frontal"]]
    other = [name for name in CHEXPERT_LABELS if name not in loaded.label_names]
    loaded.rows = loaded.rows.drop(columns=["frontal", *other])
    return loaded


def read_part(root, name: str) -> pd.DataFrame:
    """
    Rows of train.csv or valid.csv in file order, index from 0: the columns of the contract, the 14 labels (float, 1, 0,
    -1 or NaN) and `frontal` (bool). `view` is AP, PA or, among frontal rows too, another word of the column AP/PA.
    `attrs["notes"]` says which ages are none.
    """
    import pandas as pd

    table = read_table(root, name, columns=("Path", "Sex", "Age", "Frontal/Lateral", "AP/PA", *CHEXPERT_LABELS))
    path = table["Path"].astype("str").str.replace("\\", "/").str.extract(PATH)
    _check_cells(table, "Path", path[0].notna(), ".../train|valid/patient00001/study1/view1_frontal.jpg")
    side = table["Frontal/Lateral"]
    _check_cells(table, "Frontal/Lateral", side.isin(["Frontal", "Lateral"]), "Frontal or Lateral")
    notes: list[str] = []
    rows = {
        "image": path[0],
        "image_id": path[0],
        "patient_id": path[1],
        "study_id": path[1] + "/" + path[2],
        "view": table["AP/PA"].where(table["AP/PA"].notna(), side.str.lower()),
        "frontal": side == "Frontal",
        "sex": sex_column(table["Sex"]),
        "age": age_column(table["Age"], notes),
        "source": row_sources(table),
    }
    rows |= {label: to_numbers(table, label, allowed=(1, 0, -1)) for label in CHEXPERT_LABELS}
    found = pd.DataFrame(rows).reset_index(drop=True)
    found.attrs["notes"] = notes
    return found


def five_by_200_candidates(rows: pd.DataFrame) -> dict[str, np.ndarray]:
    """
    Places of the rows that may stand in a 5x200 set, by class: frontal, that label 1, the 12 other findings 0 or blank.

    As GLoRIA and MGCA have it: -1 is not 0, and No Finding is not asked. train.csv has 1087, 1034, 537, 2257 and 2425.
    """
    findings = [name for name in CHEXPERT_LABELS if name != "No Finding"]
    values = rows[findings].fillna(0.0)
    single = ((values == 0).sum(axis=1) == len(findings) - 1) & rows["frontal"]
    return {name: np.flatnonzero(single & (values[name] == 1)) for name in COMPETITION_LABELS}


def sample_five_by_200(rows: pd.DataFrame, state: int = 0, count: int = 200) -> dict[str, np.ndarray]:
    """
    Places of 200 rows a class, by pandas' `sample` with this random state; MGCA's set is that of state 0.

    Raises:
        ValueError: A class has fewer candidates.
    """
    import pandas as pd

    chosen = {}
    for name, places in five_by_200_candidates(rows).items():
        if len(places) < count:
            raise ValueError(f"The 5x200 set needs {count} rows of {name} alone, found {len(places)} in train.csv.")
        chosen[name] = pd.Series(places).sample(n=count, random_state=state).to_numpy()
    return chosen


def _mgca_parts(training: pd.DataFrame) -> dict[str, np.ndarray]:
    """
    Places of MGCA's train and validation rows, as its code runs.

    It draws 5,000 positions in the table without the 5x200 set and then drops rows of these *labels*: most validation
    rows stay in train.
    """
    removed = np.concatenate(list(sample_five_by_200(training).values()))
    left = np.setdiff1d(np.arange(len(training)), removed)
    drawn = np.random.RandomState(0).choice(len(left), _VALIDATION_ROWS, replace=False)
    return {"train": np.setdiff1d(left, drawn), "validation": left[drawn]}


def _lovt_validation(training: pd.DataFrame) -> np.ndarray:
    """Mask of LoVT's validation rows: patients in the order of their ids until there are 5,000 images."""
    images = training.groupby("patient_id").size().sort_index()
    before = images.cumsum() - images
    return training["patient_id"].isin(before.index[before < _VALIDATION_ROWS]).to_numpy()


def _label_names(option: str) -> list[str]:
    known = {"all": list(CHEXPERT_LABELS), "competition": list(COMPETITION_LABELS)}
    if option not in known:
        raise ValueError(f"The option labels must be 'all' or 'competition', got {option!r}.")
    return known[option]


def _check_cells(table: pd.DataFrame, column: str, right: pd.Series, expected: str) -> None:
    if not right.all():
        row = right.idxmin()
        raise ValueError(
            f"{table.attrs['file']}, row {row}, column {column!r}: found {table[column][row]!r}, expected {expected}."
        )


DATASETS = (
    PublicDataset(
        name="chexpert",
        title="CheXpert",
        tasks=("classification",),
        expected_files="""\
CheXpert-v1.0-small/ or CheXpert-v1.0/         (root)
├── train.csv  valid.csv
├── train/patient00001/study1/view1_frontal.jpg ...
└── valid/patient64541/study1/view1_frontal.jpg ...""",
        license="Stanford University Dataset Research Use Agreement: research only, no redistribution",
        homepage="https://stanfordmlgroup.github.io/competitions/chexpert/",
        restricted=True,
        pretraining_name="CheXpert",
        tested="real tables, fixture images",
        read=read,
        split_schemes=("official", "mgca", "lovt"),
        options={"views": "all", "labels": "all"},
        option_help={
            "views": '"all", or "frontal": rows that the column Frontal/Lateral calls frontal (191,027 of 223,414)',
            "labels": '"all" 14, or "competition": Atelectasis, Cardiomegaly, Consolidation, Edema, Pleural Effusion',
        },
        split_notes={
            "official": "train.csv (223,414 rows, 64,540 patients), of which a validation part is taken by patient; "
            "valid.csv (234 rows, 200 patients, 202 of them frontal) is the test part, as in MGCA, GLoRIA and LoVT: "
            "the official test set came later and in another layout.",
            "mgca": "As MGCA's code runs: the 5x200 set left out, train 217,433 rows (185,771 frontal), validation "
            "5,000 (4,284 frontal), test valid.csv.",
            "lovt": "Validation: patients in the order of their ids until there are 5,000 images, lateral ones "
            "counted; test valid.csv.",
        },
        leaks={
            "mgca": "4,907 of the 5,000 validation rows are also training rows, and the split is by image.",
        },
        label_policies=tuple(LABEL_POLICIES),
        traps=(
            "Path starts with the archive's folder (CheXpert-v1.0-small/ or the like), whatever the root's name.",
            "Among the frontal rows of train.csv 17 have LL or RL in AP/PA, and the view's number in the file name "
            "does not say what it shows.",
            "Blank is not negative: labels stay 1, 0, -1 and NaN until a policy is named.",
            "Patient ids are read from the path: the tables have no such column.",
        ),
    ),
)
