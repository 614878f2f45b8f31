"""OpenI, the Indiana University chest X-ray collection: the NLM release (XML) and the Kaggle release (CSV)."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

from ..captions import term_labels
from ..catalog import LoadedRows, PublicDataset, Request
from ..files import find_file, list_files, read_table, record_input, require_file, row_sources
from ..lookup import locate, paths_by_stem
from ..report_sentences import SENTENCE_RULES, sentences_of

if TYPE_CHECKING:
    import pandas as pd

SECTIONS = ("comparison", "indication", "findings", "impression")
TOKEN = "XXXX"
"""What stands for a removed word: four capital X, also inside of words ("x-XXXX")."""

UNINDEXED = ("No Indexing", "")
"""MeSH entries that say nothing of the image."""

_BARE = re.compile(rf"(?:{TOKEN}|[\W_])*", re.IGNORECASE)

_REPORTS = ("indiana_reports.csv", "*/indiana_reports.csv")
_PROJECTIONS = ("indiana_projections.csv", "*/indiana_projections.csv")


def read(request: Request) -> LoadedRows:
    """
    Rows of one image each; images of a study share its report.

    Raises:
        FileNotFoundError, ValueError: see `read_table`; also for an unknown option value.
    """
    for option, known in (
        ("deidentified", ("keep", "remove")),
        ("views", ("all", "frontal")),
        ("sentences", SENTENCE_RULES),
    ):
        if request.options[option] not in known:
            raise ValueError(f"{option} must be one of {', '.join(known)}, got {request.options[option]!r}.")
    kaggle = find_file(request.root, _REPORTS) is not None
    loaded, reports = (_read_kaggle if kaggle else _read_nlm)(request.root)
    rows = loaded.rows.join(_texts(reports, request.options), on="study_id")
    rows["patient_id"] = rows["study_id"]
    loaded.rows = rows
    if request.task == "classification":
        _add_labels(loaded, reports["mesh"], request.options["label_min_count"])
    if request.options["views"] == "frontal":
        if not kaggle:
            raise ValueError('views="frontal" needs indiana_projections.csv: the XML files do not say the view.')
        frontal = loaded.rows["view"] == "Frontal"
        loaded.dropped["lateral view"] = int((~frontal).sum())
        loaded.rows = loaded.rows[frontal].reset_index(drop=True)
    return loaded


def image_key(stem: str) -> str:
    """The part of an image's name that both releases share: "CXR1_1_IM-0001-4001" is "1_IM-0001-4001.dcm" on Kaggle."""
    stem = stem.removesuffix(".dcm").removeprefix("CXR")
    return re.sub(r"^(\d+)_(?=\1_IM)", "", stem)


def _read_kaggle(root: Path) -> tuple[LoadedRows, pd.DataFrame]:
    reports = read_table(root, _REPORTS, columns=("uid", "MeSH", "findings", "impression"), optional=SECTIONS[:2])
    images = read_table(root, _PROJECTIONS, columns=("uid", "filename", "projection"))
    dropped = {
        "the same image twice in indiana_projections.csv": int(images.duplicated(["uid", "filename"]).sum()),
        "an image without a report of its uid": int((~images["uid"].isin(reports["uid"])).sum()),
        "a uid twice in indiana_reports.csv": int(reports.duplicated("uid").sum()),
    }
    total = len(images)
    images = images.drop_duplicates(["uid", "filename"])
    images = images[images["uid"].isin(reports["uid"])]
    reports = reports.drop_duplicates("uid").set_index("uid").rename(columns={"MeSH": "mesh"})
    keys = images["filename"].map(lambda name: image_key(name.rpartition(".")[0]))
    rows = images.assign(
        image=locate(keys, paths_by_stem(root, key=image_key), "images/images_normalized/" + images["filename"]),
        image_id=keys,
        study_id=images["uid"],
        view=images["projection"],
        source=row_sources(images),
    )
    rows = rows[["image", "image_id", "study_id", "view", "source"]].reset_index(drop=True)
    return LoadedRows(rows, table_rows=total, dropped=_counted(dropped)), reports


def _read_nlm(root: Path) -> tuple[LoadedRows, pd.DataFrame]:
    import pandas as pd

    files = sorted(path for path in list_files(root, suffixes=(".xml",)).sizes if re.search(r"(^|/)\d+\.xml$", path))
    if not files:
        require_file(root, (*_REPORTS, "ecgen-radiology/1.xml"), "reports")
    reports, images, faults = [], [], []
    for file in sorted(files, key=lambda path: int(Path(path).stem)):
        try:
            report, ids = _read_xml(record_input(root / file))
        except ValueError as error:
            faults.append(f"{file}: {error}")
            continue
        reports.append(report)
        images += [(report["uid"], name, file) for name in ids]
    frame = pd.DataFrame(reports, columns=["uid", *SECTIONS, "mesh"], dtype=object).drop_duplicates("uid")
    rows = pd.DataFrame(images, columns=["study_id", "name", "source"], dtype=object)
    imageless = int((~frame["uid"].isin(rows["study_id"])).sum())
    keys = rows["name"].map(image_key)
    repeated = int(keys.duplicated().sum())
    expected = rows["name"] + ".png"
    rows = rows.assign(image=locate(keys, paths_by_stem(root, key=image_key), expected), image_id=keys, view=None)
    rows = rows[~keys.duplicated()].drop(columns="name").reset_index(drop=True)
    dropped = _counted({"a report without image": imageless, "the same image twice in the reports": repeated})
    notes = ["The XML files do not say which image is frontal: view is None."]
    loaded = LoadedRows(rows, table_rows=len(images) + imageless, dropped=dropped, faults=faults, notes=notes)
    return loaded, frame.set_index("uid")


def _read_xml(path: Path) -> tuple[dict, list[str]]:
    """Sections, MeSH terms and image names of one report."""
    from xml.etree import ElementTree

    try:
        tree = ElementTree.parse(path)
    except ElementTree.ParseError as error:
        raise ValueError(f"not well-formed XML ({error}). Expected a report of NLMCXR_reports.tgz.") from None
    identity = tree.find(".//uId")
    if identity is None or not identity.get("id"):
        raise ValueError("no <uId id=...>. Expected a report of NLMCXR_reports.tgz.")
    report: dict = dict.fromkeys(SECTIONS)
    for part in tree.iter("AbstractText"):
        label = (part.get("Label") or "").lower()
        if label in SECTIONS:
            report[label] = "".join(part.itertext()).strip() or None
    terms = [(term.text or "").strip() for term in tree.iterfind(".//MeSH/major")]
    report |= {"uid": identity.get("id").removeprefix("CXR"), "mesh": ";".join(filter(None, terms)) or None}
    return report, [image.get("id") for image in tree.iter("parentImage") if image.get("id")]


def _texts(reports: pd.DataFrame, options: dict) -> pd.DataFrame:
    """Sections as they are, and the sentences and text of a rule."""
    import pandas as pd

    sections = [
        {name: value for name, value in zip(SECTIONS, values, strict=True) if value is not None}
        for values in zip(*(reports[name] for name in SECTIONS), strict=True)
    ]
    sentences = [_sentences(texts, options) for texts in sections]
    texts = [" ".join(parts) or None for parts in sentences]
    columns = {"text": texts, "sections": sections, "sentences": sentences}
    return pd.DataFrame({name: pd.Series(cells, reports.index, dtype=object) for name, cells in columns.items()})


def _sentences(sections: dict[str, str], options: dict) -> list[str]:
    if options["deidentified"] == "remove":
        sections = {name: _without_token(text) for name, text in sections.items()}
    sentences = sentences_of(sections, options["sentences"])
    return [sentence for sentence in sentences if not _BARE.fullmatch(sentence)]


def _without_token(text: str) -> str:
    """A word loses the token and what hangs on it, a sentence keeps its end."""
    return re.sub(r"\s+([.,;:])", r"\1", re.sub(rf"[^\s.,;:]*{TOKEN}[^\s.,;:]*", "", text)).strip()


def _add_labels(loaded: LoadedRows, mesh: pd.Series, min_count: int) -> None:
    """Multi-label targets: the heading (what stands before "/") of each MeSH term."""
    cells = loaded.rows["study_id"].map(mesh)
    known = cells.notna() & ~cells.isin(UNINDEXED)
    terms = [
        [term.partition("/")[0].strip() for term in cell.split(";") if term.strip()] if usable else []
        for cell, usable in zip(cells, known, strict=True)
    ]
    # Counted over all rows: there is no official training part.
    labels, loaded.label_names = term_labels(terms, known, min_count)
    labels[~known.to_numpy()] = float("nan")
    loaded.rows = loaded.rows.join(labels)


def _counted(dropped: dict[str, int]) -> dict[str, int]:
    return {rule: count for rule, count in dropped.items() if count}


DATASETS = (
    PublicDataset(
        name="openi",
        title="OpenI (Indiana University chest X-rays)",
        tasks=("pretraining", "classification"),
        expected_files="""\
Kaggle release:
indiana_reports.csv
indiana_projections.csv
images/images_normalized/1_IM-0001-4001.dcm.png
NLM release, unpacked:
ecgen-radiology/1.xml
CXR1_1_IM-0001-4001.png (or .dcm; any folder)""",
        license="CC BY-NC-ND 4.0 (licenseURL in the XML files)",
        homepage="https://openi.nlm.nih.gov/faq#collection",
        restricted=True,
        pretraining_name="OpenI",
        tested="real sample",
        read=read,
        split_schemes=("patient",),
        options={"sentences": "default", "deidentified": "keep", "views": "all", "label_min_count": 50},
        option_help={
            "sentences": f"how sentences are made of findings and impression: {', '.join(SENTENCE_RULES)}",
            "views": '"all", or "frontal": the 3,818 images that indiana_projections.csv calls frontal',
            "deidentified": f'"keep" or "remove" the token {TOKEN}, with the word it is part of',
            "label_min_count": "classification: a MeSH heading is a label if so many images have it",
        },
        split_notes={
            "patient": "There is no official split. Split by uid, the study: 3,851 (Kaggle) or 3,955 (NLM) uids, each "
            "taken for one patient. The 2,069/296/590 studies of R2Gen are a split of that work, which is not public "
            "as a list in the data set."
        },
        traps=(
            "XXXX stands for removed words in 1,780 of 3,851 reports, also inside of words (x-XXXX).",
            "784 reports repeat the findings and impression of an earlier one: identical texts are no negatives.",
            "Findings are empty in 514 reports, the impression in 31, both in 25: such images have no text.",
            "104 reports of the NLM release have no image. They are counted and left out.",
            "The DICOM files mix MONOCHROME1 (3,584) and MONOCHROME2 (3,885); the PNG files are ready to display.",
            "The names of the two releases differ (CXR1_1_IM-0001-4001 is 1_IM-0001-4001.dcm.png): image_id is the "
            "same for both.",
        ),
    ),
)

__all__ = ["DATASETS", "image_key", "read"]
