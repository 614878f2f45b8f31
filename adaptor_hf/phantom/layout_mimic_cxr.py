"""Phantoms as MIMIC-CXR-JPG 2.0.0 with the reports of MIMIC-CXR 2.0.0."""

import csv
import gzip
import io
import textwrap
from pathlib import Path

from .findings import FINDINGS
from .generate import Plan
from .layout_ids import digest, mimic_ids

JPG, REPORTS = "mimic-cxr-jpg/2.0.0", "mimic-cxr/2.0.0"

_METADATA = (
    "dicom_id", "subject_id", "study_id", "PerformedProcedureStepDescription", "ViewPosition", "Rows", "Columns",
    "StudyDate", "StudyTime", "ProcedureCodeSequence_CodeMeaning", "ViewCodeSequence_CodeMeaning",
    "PatientOrientationCodeSequence_CodeMeaning",
)  # fmt: skip
_LABELS = (
    "Atelectasis", "Cardiomegaly", "Consolidation", "Edema", "Enlarged Cardiomediastinum", "Fracture", "Lung Lesion",
    "Lung Opacity", "No Finding", "Pleural Effusion", "Pleural Other", "Pneumonia", "Pneumothorax", "Support Devices",
)  # fmt: skip
_NAMES = {
    "consolidation": "Consolidation",
    "effusion": "Pleural Effusion",
    "pneumothorax": "Pneumothorax",
    "cardiomegaly": "Cardiomegaly",
    "nodule": "Lung Lesion",
    "atelectasis": "Atelectasis",
    "edema": "Edema",
    "device": "Support Devices",
}
_SPLITS = {"train": "train", "validation": "validate", "test": "test"}
_REASONS = ("cough", "dyspnea", "fever", "chest pain", "hypoxia", "shortness of breath")


def write_image(root: Path, planned: Plan, record: dict, seed: int) -> dict:
    """The JPEG file and, with the first image of a study, its report."""
    subject, study, dicom = mimic_ids(planned, seed)
    code = digest(planned, seed)
    folder = f"files/p{subject[:2]}/p{subject}"
    path = root / JPG / folder / f"s{study}" / f"{dicom}.jpg"
    path.parent.mkdir(parents=True, exist_ok=True)
    record["image"].save(path, quality=95)
    if planned.image_index == 0:
        report = root / REPORTS / folder / f"s{study}.txt"
        report.parent.mkdir(parents=True, exist_ok=True)
        report.write_text(report_file(planned, _REASONS[code[0] % len(_REASONS)]), encoding="utf-8")
    portable = planned.pose.view == "AP"
    procedure = "CHEST (PORTABLE AP)" if portable else "CHEST (PA AND LAT)"
    year = 2110 + planned.patient_index % 80 + planned.study_index
    date = f"{year}{1 + int(study) % 12:02d}{1 + int(study) % 28:02d}"
    # Hour, minute, second as one number, so without leading zero.
    time = f"{int(study) % 24}{code[4] % 60:02d}{code[5] % 60:02d}.{code[6] * 3:03d}"
    height, width = record["image"].height, record["image"].width
    projection = ("antero-posterior", "Recumbent") if portable else ("postero-anterior", "Erect")
    return {
        "metadata": (
            dicom, subject, study, procedure, planned.pose.view, height, width, date, time, procedure, *projection
        ),
        "split": (dicom, study, subject, _SPLITS[planned.split]),
        "labels": (subject, study, *labels_of(planned)),
    }  # fmt: skip


def write_tables(root: Path, rows: list[dict]) -> None:
    """The tables, gzipped; labels have a row a study."""
    labels = list(dict.fromkeys(row["labels"] for row in rows))
    header = ("subject_id", "study_id", *_LABELS)
    _write(root, "metadata", _METADATA, [row["metadata"] for row in rows])
    _write(root, "split", ("dicom_id", "study_id", "subject_id", "split"), [row["split"] for row in rows])
    for name in ("chexpert", "negbio"):
        _write(root, name, header, labels)


def labels_of(planned: Plan) -> tuple[str, ...]:
    """Cells of the 14 labels: "1.0", "0.0" and "-1.0" by what the report says, "" for what it does not speak of."""
    cells = dict.fromkeys(_LABELS, "")
    for name, value in planned.report.mentions.items():
        cells[_NAMES[name]] = f"{value:.1f}"
    if cells["Consolidation"] in ("1.0", "-1.0"):
        cells["Lung Opacity"] = cells["Consolidation"]
    # A device is no finding.
    if not any(finding.name in FINDINGS[:-1] for finding in planned.findings):
        cells["No Finding"] = "1.0"
    return tuple(cells.values())


def report_file(planned: Plan, reason: str) -> str:
    """The report with its headings; each line begins with a blank."""
    text = planned.report.text
    findings, _, impression = text.partition("IMPRESSION: ")
    person = "woman" if planned.patient.sex == "F" else "man"
    sections = {
        "EXAMINATION": "CHEST (PORTABLE AP)" if planned.pose.view == "AP" else "CHEST (PA AND LAT)",
        "INDICATION": f"___ year old {person} with {reason}  // eval for pneumonia",
        "COMPARISON": "___" if planned.study_index else "None.",
    }
    lines = [" " * 32 + "FINAL REPORT"]
    for heading, words in sections.items():
        lines += [f" {heading}:  {words}", " "]
    for heading, words in {"FINDINGS": findings.removeprefix("FINDINGS: "), "IMPRESSION": impression}.items():
        if words:
            lines += [f" {heading}: ", " ", *_wrapped(words), " "]
    return "\n".join(lines[:-1]) + "\n"


def _wrapped(words: str) -> list[str]:
    return textwrap.wrap(words, 78, initial_indent=" ", subsequent_indent=" ", break_on_hyphens=False)


def _write(root: Path, name: str, header: tuple[str, ...], rows: list[tuple]) -> None:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(rows)
    # Without the time of writing: equal tables are equal files.
    data = gzip.compress(text.getvalue().encode(), mtime=0)
    (root / JPG / f"mimic-cxr-2.0.0-{name}.csv.gz").write_bytes(data)


__all__ = ["JPG", "REPORTS", "labels_of", "report_file", "write_image", "write_tables"]
