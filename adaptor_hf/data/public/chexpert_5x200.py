"""CheXpert 5x200: radiographs with one finding of five alone, for text classes and retrieval."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from ..catalog import LoadedRows, PublicDataset, Request
from ..files import find_file, read_table, row_sources, to_numbers
from ..labels import COMPETITION_LABELS
from .chexpert import PATH, five_by_200_candidates, read_part, sample_five_by_200

if TYPE_CHECKING:
    import pandas as pd

LISTS = ("chexpert-5x200*.csv", "chexpert_5x200*.csv", "*/chexpert-5x200*.csv", "*/chexpert_5x200*.csv")
_PATH_COLUMNS = ("imgpath", "Path")
_TEXT_COLUMNS = ("report", "Report Impression", "reports")


def read(request: Request) -> LoadedRows:
    """Rows of an image and its class; all are test rows."""
    template = request.options["text"]
    if not isinstance(template, str) or "{" in template.replace("{}", ""):
        raise ValueError(f"text must be a sentence with {{}} for the class, got {template!r}.")
    listed = find_file(request.root, LISTS)
    loaded = _read_list(request.root, listed) if listed else _sample(request)
    rows = loaded.rows
    rows["split"] = "test"
    texts = rows["labels"].map(lambda label: template.format(COMPETITION_LABELS[label].lower()))
    rows["text"] = rows["text"].where(rows["text"].notna(), texts) if "text" in rows else texts
    loaded.class_names = list(COMPETITION_LABELS)
    return loaded


def _sample(request: Request) -> LoadedRows:
    """MGCA's rule on train.csv."""
    import pandas as pd

    training = read_part(request.root, "train.csv")
    chosen = sample_five_by_200(training, request.options["random_state"], request.options["per_class"])
    rows = pd.concat([training.loc[places].assign(labels=number) for number, places in enumerate(chosen.values())])
    columns = ["image", "image_id", "patient_id", "study_id", "view", "sex", "age", "source", "labels"]
    counts = ", ".join(f"{name} {len(places)}" for name, places in five_by_200_candidates(training).items())
    return LoadedRows(
        rows[columns].reset_index(drop=True),
        table_rows=len(training),
        dropped={"not drawn for the 5x200 set": len(training) - len(rows)},
        notes=[f"Rows with one finding alone, before drawing: {counts}."],
    )


def _read_list(root: Path, path: Path) -> LoadedRows:
    """A list of images with label columns, as MedCLIP's chexpert-5x200-val-meta.csv; lateral views included."""
    name = path.relative_to(root).as_posix()
    table = read_table(
        root, name, columns=COMPETITION_LABELS, optional=(*_PATH_COLUMNS, *_TEXT_COLUMNS, "Frontal/Lateral", "AP/PA")
    )
    column = next((column for column in _PATH_COLUMNS if table[column].notna().any()), None)
    if column is None:
        raise ValueError(f"{name}: no column {' or '.join(_PATH_COLUMNS)} with the path of the image.")
    parts = table[column].astype("str").str.replace("\\", "/").str.extract(PATH)
    if parts[0].isna().any():
        row = parts[0].isna().idxmax()
        raise ValueError(
            f"{name}, row {row}, column {column!r}: found {table[column][row]!r}, expected "
            ".../train|valid/patient00001/study1/view1_frontal.jpg."
        )
    positive = _positive(table, name)
    side = table["Frontal/Lateral"]
    # MedCLIP writes 0 for no projection.
    projection = table["AP/PA"].where(table["AP/PA"].isin(["AP", "PA", "LL", "RL"]), side.str.lower())
    rows = parts.rename(columns={0: "image", 1: "patient_id", 2: "study_id"}).assign(
        image_id=parts[0],
        study_id=parts[1] + "/" + parts[2],
        view=projection,
        labels=positive,
        text=next((table[column] for column in _TEXT_COLUMNS if table[column].notna().any()), None),
        source=row_sources(table),
    )
    lateral = int((side == "Lateral").sum())
    notes = [f"The list {name}." + (f" {lateral} of {len(rows)} views are lateral." if lateral else "")]
    return LoadedRows(rows.reset_index(drop=True), table_rows=len(rows), notes=notes)


def _positive(table: pd.DataFrame, name: str) -> pd.Series:
    """Number of the one class that is 1."""
    import pandas as pd

    values = pd.DataFrame({label: to_numbers(table, label, allowed=(1, 0, -1)) for label in COMPETITION_LABELS}) == 1
    if (wrong := values.sum(axis=1) != 1).any():
        row = wrong.idxmax()
        positive = ", ".join(values.columns[values.loc[row]]) or "none"
        raise ValueError(
            f"{name}, row {row}: expected one of {', '.join(COMPETITION_LABELS)} to be 1, found {positive}."
        )
    return pd.Series(values.to_numpy().argmax(axis=1), index=table.index)


DATASETS = (
    PublicDataset(
        name="chexpert_5x200",
        title="CheXpert 5x200",
        tasks=("classification", "pretraining"),
        expected_files="""\
CheXpert-v1.0-small/ or CheXpert-v1.0/         (root)
├── train.csv, or a list such as chexpert-5x200-val-meta.csv (imgpath or Path, labels, optionally report)
└── train/patient00001/study1/view1_frontal.jpg ...""",
        license="Stanford University Dataset Research Use Agreement: research only, no redistribution",
        homepage="https://stanfordmlgroup.github.io/competitions/chexpert/",
        restricted=True,
        same_images=("chexpert",),
        patients_of="chexpert",
        tested="real tables, fixture images",
        read=read,
        split_schemes=("official",),
        options={"text": "{}", "per_class": 200, "random_state": 0},
        option_help={
            "text": "sentence of an image whose list has no report; {} is its class in lower case",
            "per_class": "rows of each class that are drawn from train.csv",
            "random_state": "of the draw; 0 is MGCA's",
        },
        split_notes={
            "official": "Every row is a test row. 200 of each of Atelectasis, Cardiomegaly, Consolidation, Edema and "
            "Pleural Effusion, drawn from 1,087 / 1,034 / 537 / 2,257 / 2,425 frontal rows of train.csv with that "
            "finding alone."
        },
        traps=(
            "The rows are from CheXpert's train.csv: 798 of the 969 patients of MGCA's set have other images there. "
            "Leave the patients out of what is trained on.",
            "An uncertain label (-1) is not 0: such a row is no candidate. No Finding is not asked.",
            "GLoRIA's set was drawn without a seed and is joined to private reports; MedCLIP's has lateral views. The "
            "sets of the papers differ.",
            "Classes are balanced: accuracy does not carry over to a hospital's prevalence.",
        ),
    ),
)

__all__ = ["DATASETS", "read"]
