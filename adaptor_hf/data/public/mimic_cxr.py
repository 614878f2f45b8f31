"""MIMIC-CXR and MIMIC-CXR-JPG 2.0 and 2.1: chest radiographs with reports and labels of studies."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from ..catalog import LoadedRows, PublicDataset, Request
from ..files import read_table, record_input, row_sources, to_numbers
from ..labels import CHEXPERT_LABELS, LABEL_POLICIES
from ..report_files import locate_reports, read_reports
from ..report_sentences import SENTENCE_RULES

if TYPE_CHECKING:
    import pandas as pd

SECTIONS = ("findings", "impression", "last_paragraph", "indication", "history", "comparison", "technique")
"""Sections that the column `sections` keeps."""

_JPG_FOLDERS = ("", "*mimic-cxr-jpg*", "*mimic-cxr-jpg*/2.*", "physionet.org/files/mimic-cxr-jpg/2.*", "2.*")
_REPORT_FOLDERS = ("", "mimic-cxr-reports", "mimic-cxr[-_.]2*", "mimic-cxr", "mimic-cxr/2.*",
                   "physionet.org/files/mimic-cxr/2.*", "2.*")  # fmt: skip
_SPLITS = {"train": "train", "validate": "validation", "test": "test"}
_FAULTS = {"missing": "expected a report of the study, found no such file", "not UTF-8": "the report is not UTF-8"}
_RULES = {
    "empty": "empty report",
    "no findings or impression": "report without findings and impression",
    "no sentence": "report without a sentence under the rule",
}


def read(request: Request) -> LoadedRows:
    """
    Rows of the metadata table, with their split, and reports or labels.

    Raises:
        FileNotFoundError, ValueError: see `read_table`; also for an id of another form, an unknown split, and reports
            that are nowhere.
    """
    options = _check_options(request.options)
    base = _jpg_base(request.root)
    columns = ("dicom_id", "subject_id", "study_id", "ViewPosition")
    table = read_table(request.root, base + "mimic-cxr-2.*-metadata.csv", columns=columns)
    _check_ids(table)
    loaded = LoadedRows(_rows(table, *_image_place(request.root, base, options["images"])), table_rows=len(table))
    _assign_split(loaded, request, base)
    if options["views"] == "frontal" or request.split_scheme == "mgca":
        frontal = loaded.rows["view"].isin(["PA", "AP"])
        loaded.dropped["view is neither PA nor AP"] = int((~frontal).sum())
        loaded.rows = loaded.rows[frontal]
    if request.task == "pretraining":
        _add_reports(loaded, request, options)
    else:
        _add_labels(loaded, request.root, base, options["labels"])
    if request.split_scheme == "mgca":
        _repeat_validation_as_test(loaded)
    return loaded


def _rows(table: pd.DataFrame, folder_of_files: str, suffix: str) -> pd.DataFrame:
    import pandas as pd

    folder = "files/p" + table["subject_id"].str[:2] + "/p" + table["subject_id"] + "/s" + table["study_id"]
    return pd.DataFrame(
        {
            "image": folder_of_files + folder + "/" + table["dicom_id"] + suffix,
            "image_id": table["dicom_id"],
            "patient_id": table["subject_id"],
            "study_id": table["study_id"],
            "view": table["ViewPosition"],
            "source": row_sources(table),
        }
    )


def _assign_split(loaded: LoadedRows, request: Request, base: str) -> None:
    names = base + "mimic-cxr-2.*-split.csv"
    table = read_table(request.root, names, columns=("dicom_id", "subject_id", "study_id", "split"))
    unknown = ~table["split"].isin(list(_SPLITS))
    if unknown.any():
        row = unknown.idxmax()
        raise ValueError(
            f"{table.attrs['file']}, row {row}, column 'split': found {table['split'][row]!r}, expected train, "
            "validate or test."
        )
    parts = table.drop_duplicates(["dicom_id", "split"]).set_index("dicom_id")["split"]
    if not parts.index.is_unique:
        twice = parts.index[parts.index.duplicated()][0]
        row = table.index[table["dicom_id"] == twice][-1]
        raise ValueError(f"{table.attrs['file']}, row {row}: an image that an earlier row puts into another split.")
    loaded.rows["split"] = loaded.rows["image_id"].map(parts).map(_SPLITS)
    missing = loaded.rows["split"].isna()
    if missing.any():
        loaded.dropped["not in the table of splits"] = int(missing.sum())
        loaded.rows = loaded.rows[~missing]


def _add_reports(loaded: LoadedRows, request: Request, options: dict) -> None:
    import pandas as pd

    rows = loaded.rows
    studies = rows.drop_duplicates("study_id")
    names = "files/p" + studies["patient_id"].str[:2] + "/p" + studies["patient_id"] + "/s" + studies["study_id"]
    names = (names + ".txt").tolist()
    paths = locate_reports(_report_source(request.root, options["reports"], names), names)
    reports = read_reports(paths, options["sentences"], SECTIONS, request.num_proc)
    rows = rows.assign(shared=pd.Series(range(len(studies)), index=studies["study_id"])[rows["study_id"]].to_numpy())
    problems = reports["problem"].to_pandas().astype(object)[rows["shared"]].set_axis(rows.index)
    for problem, count in problems.value_counts().items():
        if problem in _FAULTS:
            sources = rows["source"][problems == problem]
            loaded.faults += [f"{source}: {_FAULTS[problem]}" for source in sources]
        else:
            loaded.dropped[_RULES[problem]] = int(count)
    loaded.rows = rows[problems.isna()]
    loaded.shared = reports.drop_columns(["problem"])


def _report_source(root: Path, option: str | None, names: list[str]) -> Path:
    """The folder or zip that has the reports: named by the option, or found near the tables."""
    if option is not None:
        source = root / option
        if not source.exists():
            raise FileNotFoundError(f"No reports at {source} (option reports). Expected mimic-cxr-reports.zip or a "
                                    "folder that has files/p10/...")  # fmt: skip
        return source
    folders = [folder for pattern in _REPORT_FOLDERS for folder in _folders(root, pattern)]
    folders += [folder for pattern in _JPG_FOLDERS[1:] for folder in _folders(root, pattern)]
    folders += [folder / "mimic-cxr-reports" for folder in folders]
    for folder in folders:
        record_input(folder)
        if any((folder / name).is_file() for name in (*names[:50], *names[-50:])):
            return folder
        if (folder / "mimic-cxr-reports.zip").is_file():
            return folder / "mimic-cxr-reports.zip"
    raise FileNotFoundError(
        f"No reports under {root}. The JPG release has none: expected mimic-cxr-reports.zip of MIMIC-CXR 2.0.0, or its "
        "files/p10/.../s50000000.txt, in the root or in mimic-cxr/2.0.0. If they are elsewhere, pass reports=PATH."
    )


def _add_labels(loaded: LoadedRows, root: Path, base: str, option: str) -> None:
    if option == "radiologist":
        table = read_table(
            root,
            base + "mimic-cxr-2.1.0-test-set-labeled.csv",
            columns=("study_id",),
            optional=(*CHEXPERT_LABELS, "Airspace Opacity", "No Findings"),
        )
        # The file's own names for two of the labels.
        for name, other in (("Lung Opacity", "Airspace Opacity"), ("No Finding", "No Findings")):
            table[name] = table[name].where(table[name].notna(), table[other])
    else:
        columns = ("subject_id", "study_id", *CHEXPERT_LABELS)
        table = read_table(root, f"{base}mimic-cxr-2.*-{option}.csv", columns=columns)
    repeated = table["study_id"].duplicated()
    if repeated.any():
        row = repeated.idxmax()
        raise ValueError(
            f"{table.attrs['file']}, row {row}: the study stands in an earlier row too. Expected one row each."
        )
    values = {name: to_numbers(table, name, allowed=(1, 0, -1)).to_numpy() for name in CHEXPERT_LABELS}
    import pandas as pd

    labels = pd.DataFrame(values, index=table["study_id"])
    loaded.rows = loaded.rows.join(labels, on="study_id")
    loaded.label_names = list(CHEXPERT_LABELS)
    missing = ~loaded.rows["study_id"].isin(labels.index)
    if missing.any():
        loaded.dropped[f"study not in the table {table.attrs['file'].rpartition('/')[2]}"] = int(missing.sum())
        loaded.rows = loaded.rows[~missing]


def _repeat_validation_as_test(loaded: LoadedRows) -> None:
    """MGCA's validation and test files are the same: the validation and test parts of the release together."""
    import pandas as pd

    held_out = loaded.rows[loaded.rows["split"] != "train"]
    training = loaded.rows[loaded.rows["split"] == "train"]
    parts = [training, held_out.assign(split="validation"), held_out.assign(split="test")]
    loaded.rows = pd.concat(parts, ignore_index=True)


def _jpg_base(root: Path) -> str:
    """Folder of the JPG release under the root, as "" or "folder/"."""
    for pattern in _JPG_FOLDERS:
        # The newest release first.
        for folder in sorted(_folders(root, pattern), reverse=True):
            if any(folder.glob("mimic-cxr-2.*-metadata.csv*")):
                return "" if folder == root else folder.relative_to(root).as_posix() + "/"
    return ""


def _image_place(root: Path, base: str, images: str) -> tuple[str, str]:
    """Folder that holds files/, as "" or "folder/", and the suffix of the images."""
    if images == "jpg":
        return base, ".jpg"
    for pattern in _REPORT_FOLDERS:
        for folder in _folders(root, pattern):
            if any(folder.glob("cxr-record-list.csv*")):
                return "" if folder == root else folder.relative_to(root).as_posix() + "/", ".dcm"
    return base, ".dcm"


def _folders(root: Path, pattern: str) -> list[Path]:
    return [folder for folder in sorted(root.glob(pattern)) if folder.is_dir()] if pattern else [root]


def _check_ids(table: pd.DataFrame) -> None:
    for column, form, expected in (
        ("subject_id", r"\d{8}", "8 digits"),
        ("study_id", r"\d{8}", "8 digits"),
        ("dicom_id", r"[0-9a-f]{8}(?:-[0-9a-f]{8}){4}", "five groups of 8 hex digits"),
    ):
        wrong = ~table[column].astype("str").str.fullmatch(form)
        if wrong.any():
            row = wrong.idxmax()
            raise ValueError(
                f"{table.attrs['file']}, row {row}, column {column!r}: found {table[column][row]!r}, expected "
                f"{expected}."
            )


def _check_options(options: dict) -> dict:
    for name, known in (
        ("sentences", tuple(SENTENCE_RULES)),
        ("views", ("all", "frontal")),
        ("labels", ("chexpert", "negbio", "radiologist")),
        ("images", ("jpg", "dicom")),
    ):
        if options[name] not in known:
            raise ValueError(f"The option {name} must be one of {', '.join(known)}, got {options[name]!r}.")
    return options


DATASETS = (
    PublicDataset(
        name="mimic_cxr",
        title="MIMIC-CXR-JPG with the reports of MIMIC-CXR",
        tasks=("pretraining", "classification"),
        expected_files="""\
(root, or a folder mimic-cxr-jpg... in it, also mimic-cxr-jpg/2.1.0)
├── mimic-cxr-2.0.0-metadata.csv.gz  mimic-cxr-2.0.0-split.csv.gz
├── mimic-cxr-2.0.0-chexpert.csv.gz  mimic-cxr-2.0.0-negbio.csv.gz        labels
├── mimic-cxr-2.1.0-test-set-labeled.csv                                  labels="radiologist"
└── files/p10/p10000032/s50414267/<dicom_id>.jpg
(root, mimic-cxr... or mimic-cxr/2.0.0; or named by the option reports)
└── mimic-cxr-reports.zip, or files/p10/p10000032/s50414267.txt, also in a folder mimic-cxr-reports""",
        license="PhysioNet Credentialed Health Data License 1.5.0: credentialed access, no sharing",
        homepage="https://physionet.org/content/mimic-cxr-jpg/",
        restricted=True,
        pretraining_name="MIMIC-CXR",
        tested="fixture",
        read=read,
        split_schemes=("official", "mgca"),
        options={"sentences": "default", "views": "all", "labels": "chexpert", "images": "jpg", "reports": None},
        option_help={
            "sentences": "how a report becomes text: default, mgca, lovt or medclip (adaptor_hf.data.report_sentences)",
            "views": '"all", or "frontal": PA and AP; 15.8 thousand images have no view and are left out then',
            "labels": '"chexpert", "negbio", or "radiologist": 687 studies of the test part, release 2.1.0',
            "images": '"jpg", or "dicom": the files of MIMIC-CXR 2.0.0, with the tables of the JPG release beside them',
            "reports": "folder or zip of the reports, where it is not near the tables",
        },
        split_notes={
            "official": "368,960 / 2,991 / 5,159 images, 222,758 / 1,808 / 3,269 studies, by patient. The table's word "
            "for validation is validate. LoVT uses this split.",
            "mgca": "PA and AP only; validation and test of the release are merged, and both parts are this one set.",
        },
        leaks={"mgca": "validation and test are the same images: what is chosen on one is not tested by the other."},
        label_policies=tuple(LABEL_POLICIES),
        traps=(
            "The JPG release has no reports, and the reports' folder has no images.",
            "Reports stand beside the study's folder, not in it.",
            "JPG and DICOM differ in intensity: the JPGs are 8-bit and, it seems, histogram-equalised.",
            "The columns study_id and subject_id change places between the tables.",
            "Laterals are LATERAL, LL or RL; 15.8 thousand images have no view.",
            "About 10 thousand reports have neither findings nor impression; the default rule then takes the last "
            "paragraph, the others leave them out.",
            "Eight studies have no row of labels, and 2,414 a row without any label.",
            "In the labels of release 2.1.0 Lung Opacity is called Airspace Opacity.",
            "54 studies need hand-made section boundaries, which MGCA and LoVT leave out by name. They are parsed as "
            "the others here.",
            "A study with two views gives two pairs with one text: each is a positive of the other's image.",
        ),
    ),
)
