"""ROCO v1 (the razorx89/roco-dataset repository and images) and ROCO v2 (Zenodo): figures of articles, captions."""

from __future__ import annotations

from io import TextIOWrapper
from pathlib import Path
from typing import TYPE_CHECKING

from ...files import open_regular
from ..captions import clean_whitespace, term_labels
from ..catalog import LoadedRows, PublicDataset, Request
from ..files import find_file, read_table, record_input, require_file, row_sources
from ..lookup import locate, paths_by_stem

if TYPE_CHECKING:
    import pandas as pd

MAMMOGRAPHY = ("mammogra", "breast tomosynthesis")
"""Parts of words, in any case, of captions in the subset "mammo"."""

XRAY = ("x-ray", "radiogra", "roentgen")
"""Parts of words, in any case, of captions that "mammo+xray" has besides; "x-ray" with any hyphen, a blank, or none."""

SUBSETS = {"all": (), "mammo+xray": (*MAMMOGRAPHY, *XRAY), "mammo": MAMMOGRAPHY}
FIGURES = ("radiology", "non-radiology", "all")
_HYPHEN = "[- \u00ad\u2010\u2011\u2012\u2013]?"
_V2_PARTS = {"train": "train", "valid": "validation", "test": "test"}


def subset_mask(captions: pd.Series, subset: str) -> pd.Series:
    """
    Which captions have a keyword of a subset; "all" takes every row.

    Raises:
        ValueError: `subset` is none of `SUBSETS`.
    """
    if subset not in SUBSETS:
        raise ValueError(f"subset must be one of {', '.join(SUBSETS)}, got {subset!r}.")
    pattern = "|".join(word.replace("-", _HYPHEN) for word in SUBSETS[subset])
    return captions.fillna("").str.contains(pattern, case=False, regex=True)


def read_v1(request: Request) -> LoadedRows:
    """Rows of ROCO v1: a figure each."""
    import pandas as pd

    if (figures := request.options["figures"]) not in FIGURES:
        raise ValueError(f"figures must be one of {', '.join(FIGURES)}, got {figures!r}.")
    kinds = FIGURES[:2] if figures == "all" else (figures,)
    base = _v1_base(request.root, kinds[0])
    parts, notes = [], []
    for split in ("train", "validation", "test"):
        for kind in kinds:
            folder = f"{base}{split}/{kind}"
            part = read_table(
                request.root, f"{folder}/captions.txt", header=("image_id", "text"), columns=("image_id", "text"),
                sep="\t", quoting=False,
            )  # fmt: skip
            part["source"] = row_sources(part)
            part = part.merge(_licences(request.root, folder, notes), on="image_id", how="left", validate="m:1")
            part["image"] = f"{folder}/images/" + part["image_id"] + ".jpg"
            if request.task == "classification":
                part["terms"] = part["image_id"].map(_terms(request.root, f"{folder}/cuis.txt"))
            parts.append(part.assign(split=split))
    rows = pd.concat(parts, ignore_index=True)
    return _finish(rows, request, notes)


def read_v2(request: Request) -> LoadedRows:
    """Rows of ROCO v2: a figure each."""
    import pandas as pd

    if (concepts := request.options["concepts"]) not in ("all", "manual"):
        raise ValueError(f'concepts must be "all" or "manual", got {concepts!r}.')
    parts = []
    for name, split in _V2_PARTS.items():
        part = read_table(request.root, f"{name}_captions.csv", columns=("ID", "Caption"))
        part["source"] = row_sources(part)
        part = part.rename(columns={"ID": "image_id", "Caption": "text"})
        # Some copies write the file name.
        part["image_id"] = part["image_id"].str.removesuffix(".jpg")
        expected = f"{name}/" + part["image_id"] + ".jpg"
        part["image"] = locate(part["image_id"], _v2_images(request.root, name), expected)
        if request.task == "classification":
            table = read_table(
                request.root, f"{name}_concepts{'_manual' if concepts == 'manual' else ''}.csv", columns=("ID", "CUIs")
            )
            terms = table["CUIs"].fillna("").str.split(";")
            part["terms"] = part["image_id"].map(dict(zip(table["ID"].str.removesuffix(".jpg"), terms, strict=True)))
        parts.append(part.assign(split=split))
    rows = pd.concat(parts, ignore_index=True).assign(license=None, study_id=None)
    return _finish(rows, request, [])


def _v1_base(root: Path, kind: str) -> str:
    """Folder that holds train, validation and test, as "data/" or ""."""
    names = [f"{folder}train/{kind}/captions.txt" for folder in ("data/", "", "*/", "*/data/")]
    path = require_file(root, names, "captions").relative_to(root).as_posix()
    return path[: path.index(f"train/{kind}/")]


def _licences(root: Path, folder: str, notes: list[str]) -> pd.DataFrame:
    """Licence and article of each figure; empty where the optional file is absent."""
    import pandas as pd

    if find_file(root, f"{folder}/licences.txt") is None:
        notes.append(f"{folder}/licences.txt is absent: licences and articles are unknown.")
        return pd.DataFrame({"image_id": [], "license": [], "study_id": []}, dtype=object)
    table = read_table(root, f"{folder}/licences.txt", columns=("ROCO_ID", "PMC_ID", "CC"))
    # PMC_ID is the article and the name of the figure: PMC3970251_CRIONM2014-931546.003.jpg
    article = table["PMC_ID"].str.partition("_")[0]
    frame = pd.DataFrame({"image_id": table["ROCO_ID"], "license": table["CC"], "study_id": article})
    return frame.drop_duplicates("image_id")


def _terms(root: Path, name: str) -> dict[str, list[str]]:
    """Terms of each figure in a file of "id, empty field, term, term ..." with tabs."""
    path = record_input(require_file(root, name, "concepts"))
    with TextIOWrapper(open_regular(path), encoding="utf-8") as file:
        cells = (line.rstrip("\r\n").split("\t") for line in file)
        return {row[0].strip(): [term for term in map(str.strip, row[1:]) if term] for row in cells}


def _v2_images(root: Path, name: str) -> dict[str, str]:
    folders = [folder for folder in (name, f"{name}_images") if (root / folder).is_dir()]
    zips = [f"{name}_images.zip"] if not folders and (root / f"{name}_images.zip").is_file() else []
    return paths_by_stem(root, folders, zips)


def _finish(rows: pd.DataFrame, request: Request, notes: list[str]) -> LoadedRows:
    """Subset, licences, labels and exact repeats: the same for both versions."""
    loaded = LoadedRows(rows, table_rows=len(rows), notes=notes)
    keep = ~rows["image_id"].duplicated()
    loaded.dropped["id that an earlier row has"] = int((~keep).sum())
    rows["text"] = clean_whitespace(rows["text"])
    chosen = subset_mask(rows["text"], request.options["subset"])
    loaded.dropped[f"not in the subset {request.options['subset']}"] = int((keep & ~chosen).sum())
    keep &= chosen
    if (licenses := request.options.get("licenses")) is not None:
        licensed = rows["license"].isin([licenses] if isinstance(licenses, str) else list(licenses))
        loaded.dropped["licence that was not asked for"] = int((keep & ~licensed).sum())
        keep &= licensed
    loaded.dropped = {rule: count for rule, count in loaded.dropped.items() if count}
    rows = rows[keep].reset_index(drop=True)
    if rows.empty:
        raise ValueError(
            f"{request.root}: no figure is left. Rows in the tables: {len(keep)}; left out: {loaded.dropped}."
        )
    # An article is the nearest to a patient that there is: its figures often show the same one.
    rows["patient_id"] = rows["study_id"]
    if request.task == "classification":
        known = rows["terms"].notna()
        terms = [value if isinstance(value, list) else [] for value in rows["terms"]]
        labels, loaded.label_names = term_labels(terms, rows["split"] == "train", request.options["label_min_count"])
        labels[~known.to_numpy()] = float("nan")
        rows = rows.join(labels)
    loaded.rows = rows.drop(columns=["license", "terms"], errors="ignore")
    return loaded


_SUBSET_HELP = (
    f'"all"; "mammo": captions with {", ".join(MAMMOGRAPHY)}; "mammo+xray": or with {", ".join(XRAY)} (parts of words, '
    "any case)"
)
_MIN_COUNT_HELP = "classification: a concept (CUI) is a label if so many training figures have it"

DATASETS = (
    PublicDataset(
        name="roco",
        title="ROCO v1 (Radiology Objects in COntext)",
        tasks=("pretraining", "classification"),
        expected_files="""\
data/{train,validation,test}/{radiology,non-radiology}/captions.txt
data/{train,validation,test}/{radiology,non-radiology}/licences.txt (optional)
data/{train,validation,test}/{radiology,non-radiology}/cuis.txt (classification)
data/{train,validation,test}/{radiology,non-radiology}/images/ROCO_00020.jpg""",
        license="Creative Commons by figure (licences.txt); 7,912 training figures have none",
        homepage="https://github.com/razorx89/roco-dataset",
        restricted=True,
        same_images=("roco_v2",),
        pretraining_name="ROCO",
        tested="real sample",
        read=read_v1,
        image_mode="RGB",
        max_fault_share=0.2,
        split_schemes=("official", "patient"),
        options={"subset": "all", "figures": "radiology", "licenses": None, "label_min_count": 100},
        option_help={
            "subset": _SUBSET_HELP,
            "figures": f"one of {', '.join(FIGURES)}",
            "licenses": 'keep only these licences of licences.txt, such as ["CC BY", "CC0"]; None keeps all',
            "label_min_count": _MIN_COUNT_HELP,
        },
        split_notes={
            "official": "The repository's, by figure: radiology 65,448 / 8,180 / 8,179, non-radiology 4,895 / 611 / "
            "612. Of the validation and test radiology captions 30 and 21 are in the subset mammo, 1,474 and 1,484 in "
            "mammo+xray; the training captions were not counted.",
            "patient": "By article, the nearest to a patient that ROCO has.",
        },
        leaks={
            "official": "split by figure, not by article: of 42,471 articles 8,802 have radiology figures in several "
            "parts, and 5,386 of the 8,179 test figures are from an article that is also in train."
        },
        traps=(
            "Some articles were moved or withdrawn, so some images can never be fetched: captions without a file are "
            "counted, up to a fifth of the rows (max_fault_share).",
            "The files have no quoting: a quote belongs to the caption. Every caption starts with a blank, which goes.",
            "The second field of keywords.txt and cuis.txt is always empty.",
            "Some JPEGs of mirrors are truncated or have zero bytes.",
            "ROCO v1 and v2 share images: do not train on one and test on the other.",
            "7,912 training figures have no Creative Commons licence (NO-CC CODE).",
        ),
    ),
    PublicDataset(
        name="roco_v2",
        title="ROCO v2",
        tasks=("pretraining", "classification"),
        expected_files="""\
{train,valid,test}_captions.csv
{train,valid,test}_concepts.csv, {train,valid,test}_concepts_manual.csv (classification)
{train,valid,test}_images.zip, or unpacked: train/ROCOv2_2023_train_000001.jpg""",
        license="CC BY or CC BY-NC by figure; the set CC BY 4.0 or CC BY-NC-SA 4.0, sources disagree",
        homepage="https://zenodo.org/records/10821435",
        restricted=True,
        pretraining_name="ROCO",
        tested="fixture",
        read=read_v2,
        image_mode="RGB",
        split_schemes=("official",),
        options={"subset": "all", "concepts": "all", "label_min_count": 100},
        option_help={
            "subset": _SUBSET_HELP,
            "concepts": '"all" or "manual": which concepts file the labels are from',
            "label_min_count": _MIN_COUNT_HELP,
        },
        split_notes={"official": "By figure: 59,958 / 9,904 / 9,927; copies differ by a few rows."},
        traps=(
            'File names say "valid", those of ROCO v1 "validation".',
            "The ID has no suffix.",
            "Zip files are read in place.",
            "There are no keywords in v2: subsets go by the caption's words, as for v1.",
            "ROCO v1 and v2 share images: do not train on one and test on the other.",
        ),
    ),
)

__all__ = ["DATASETS", "MAMMOGRAPHY", "XRAY", "read_v1", "read_v2", "subset_mask"]
