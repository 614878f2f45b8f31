"""Phantoms as a hospital exports them: DICOM files without endings, on a disc, in a zip, and a table of reports.

Nothing in it is anybody's: names, numbers and dates are made up, and made to be found again where they should not be.
"""

import csv
import io
import os
import zipfile
from datetime import date, timedelta
from pathlib import Path
from typing import NamedTuple

import numpy as np

from .generate import Plan
from .layout_ids import digest
from .pacs_trouble import directory_file, troubled_objects

COLUMNS = ("AccessionNumber", "PatientID", "PatientName", "BirthDate", "ExamDate", "Radiologist", "Report")
RADIOLOGIST = "Quastenflosser"

_FAMILY = ("Zebrafink", "Wiedehopf", "Kampfläufer", "Trauerseeschwalbe", "Rohrdommel", "Ziegenmelker", "Steinwälzer",
           "Mauerläufer", "Goldregenpfeifer", "Wachtelkönig", "Wendehals", "Säbelschnäbler")  # fmt: skip
_GIVEN = {"F": ("Ottilie", "Walburga", "Kunigunde", "Edeltraud", "Roswitha"),
          "M": ("Eusebius", "Gundolf", "Leberecht", "Wunibald", "Hagen")}  # fmt: skip
_ROOT = "1.2.826.0.1.3680043.10.1471"
_TODAY = date(2031, 6, 30)
_PREFIX = {
    "en": "CLINICAL INFORMATION: {name}, born {born}, admitted {seen}, referred by Dr {doctor}.\n",
    "de": "Klinische Angaben: {name}, geb. {born}, Aufnahme {seen}, Zuweisung Dr. {doctor}.\n",
    "es": "Información clínica: {name}, fecha de nacimiento {born}, ingreso {seen}, Dr. {doctor}.\n",
}


class Case(NamedTuple):
    """What a hospital knows of an image of a phantom; all made up."""

    patient_id: str
    family: str
    given: str
    born: date
    seen: date
    accession: str
    study_uid: str
    image_uid: str

    @property
    def name(self) -> str:
        return f"{self.family}^{self.given}"


def case_of(planned: Plan, seed: int) -> Case:
    """The case of an image; the same phantom and seed give the same."""
    patient, study = planned.patient_index, planned.study_index
    code = digest(planned, seed)
    seen = _TODAY - timedelta(days=700 + (patient * 37 + seed) % 900 - 200 * study)
    born = seen.replace(year=seen.year - planned.patient.age, day=1) - timedelta(days=(patient * 53 + 11) % 300)
    uid = f"{_ROOT}.{seed % 10**6}.{patient + 1}.{study + 1}"
    given = _GIVEN[planned.patient.sex]
    return Case(
        patient_id=f"PK{4711000 + patient * 7919 % 10**6 + seed % 1000:08d}",
        family=_FAMILY[patient % len(_FAMILY)],
        given=given[patient // len(_FAMILY) % len(given)],
        born=born,
        seen=seen,
        accession=f"RX{seen.year}{patient * 3 + study + 70001:06d}",
        study_uid=uid,
        image_uid=f"{uid}.1.{planned.image_index + 1}.{int.from_bytes(code[:4], 'big')}",
    )


def write_image(root: Path, planned: Plan, record: dict, seed: int) -> dict:
    """The DICOM file: a quarter of the patients on a disc, a quarter in a zip, the others in folders with names."""
    case = case_of(planned, seed)
    number = planned.image_index + 1
    place = planned.patient_index % 4
    if place == 2:
        path = f"export/disc/IMAGES/P{planned.patient_index:05d}/S{planned.study_index + 1}/I{number}"
    else:
        path = f"export/{case.family}_{case.given}_{case.patient_id}/{case.seen:%Y%m%d}_{case.accession}/{number}"
    dataset = dicom_object(planned, record, seed)
    file = root / path
    file.parent.mkdir(parents=True, exist_ok=True)
    dataset.save_as(file, enforce_file_format=True)
    report = _report(planned, case, record["text"])
    return {"path": path, "in_zip": place == 3, "on_disc": place == 2, "report": report, "language": planned.language}


def write_tables(root: Path, rows: list[dict]) -> None:
    """The zip, the DICOMDIR, what else lies in exports, and the table of reports."""
    loose = [row["path"] for row in rows if not row["in_zip"]] or [rows[0]["path"]]
    for name, content in troubled_objects(root, loose).items():
        file = root / "export" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content)
    disc = [row["path"].removeprefix("export/disc/") for row in rows if row["on_disc"]]
    if disc:
        (root / "export/disc/DICOMDIR").write_bytes(directory_file(disc))
    if zipped := [row["path"] for row in rows if row["in_zip"]]:
        _move_into_zip(root, zipped)
    _write_reports(root / "ris.csv", rows)


def dicom_object(planned: Plan, record: dict, seed: int):
    """A 12-bit radiograph with the header of a digital or computed radiography system, as a pydicom data set."""
    import pydicom
    from pydicom.dataset import FileMetaDataset
    from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian

    case, code = case_of(planned, seed), digest(planned, seed)
    digital = code[5] % 2 == 0
    dataset = pydicom.Dataset()
    dataset.SpecificCharacterSet = "ISO_IR 100"
    dataset.SOPClassUID = "1.2.840.10008.5.1.4.1.1.1.1" if digital else "1.2.840.10008.5.1.4.1.1.1"
    dataset.ImageType = ["ORIGINAL", "PRIMARY"] if digital else ["DERIVED", "PRIMARY"]
    dataset.SOPInstanceUID, dataset.StudyInstanceUID = case.image_uid, case.study_uid
    dataset.SeriesInstanceUID = f"{case.study_uid}.1"
    dataset.StudyDate = dataset.SeriesDate = f"{case.seen:%Y%m%d}"
    dataset.StudyTime, dataset.AccessionNumber = f"{code[6] % 24:02d}{code[7] % 60:02d}00", case.accession
    dataset.Modality, dataset.Manufacturer = "DX" if digital else "CR", "Phantom Imaging"
    dataset.InstitutionName, dataset.ReferringPhysicianName = "Klinikum Phantomstadt", f"{RADIOLOGIST}^Alma"
    dataset.StudyDescription, dataset.SeriesDescription = "Thorax 2 Ebenen", f"Thorax {planned.pose.view}"
    dataset.PatientName, dataset.PatientID = case.name, case.patient_id
    dataset.PatientBirthDate, dataset.PatientSex = f"{case.born:%Y%m%d}", planned.patient.sex
    if code[8] % 4:
        dataset.PatientAge = f"{planned.patient.age:03d}Y"
    dataset.BodyPartExamined = "CHEST"
    if digital:
        dataset.PresentationIntentType = "FOR PRESENTATION"
    if code[9] % 4:
        dataset.ViewPosition = planned.pose.view
    else:
        view = pydicom.Dataset()
        view.CodeValue = {"PA": "R-10214", "AP": "R-10206"}[planned.pose.view]
        view.CodingSchemeDesignator = "SRT"
        view.CodeMeaning = {"PA": "postero-anterior", "AP": "antero-posterior"}[planned.pose.view]
        dataset.ViewCodeSequence = [view]
    dataset.BurnedInAnnotation = "NO" if code[10] % 8 else "YES"
    _set_pixels(dataset, record["image"], inverted=code[11] % 3 == 0)
    if code[12] % 8 == 0:
        _set_overlay(dataset)
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian if code[13] % 4 == 0 else ExplicitVRLittleEndian
    return dataset


def _set_pixels(dataset, picture, inverted: bool) -> None:
    values = np.asarray(picture, dtype=np.uint16) * 16
    dataset.Rows, dataset.Columns = values.shape
    dataset.SamplesPerPixel, dataset.PixelRepresentation = 1, 0
    dataset.PhotometricInterpretation = "MONOCHROME1" if inverted else "MONOCHROME2"
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = 16, 12, 11
    dataset.RescaleSlope, dataset.RescaleIntercept = "1", "0"
    dataset.WindowCenter, dataset.WindowWidth = "2048", "4096"
    dataset.PixelData = (4080 - values if inverted else values).tobytes()
    dataset["PixelData"].VR = "OW"


def _set_overlay(dataset) -> None:
    """An empty plane of group 6000."""
    dataset.add_new(0x60000010, "US", dataset.Rows)
    dataset.add_new(0x60000011, "US", dataset.Columns)
    dataset.add_new(0x60000040, "CS", "G")
    dataset.add_new(0x60000050, "SS", [1, 1])
    dataset.add_new(0x60000100, "US", 1)
    dataset.add_new(0x60000102, "US", 0)
    dataset.add_new(0x60003000, "OW", bytes((dataset.Rows * dataset.Columns + 15) // 16 * 2))


def _report(planned: Plan, case: Case, text: str) -> dict[str, str]:
    """A row of the table of reports."""
    prefix = _PREFIX[planned.language].format(
        name=f"{case.given} {case.family}", born=f"{case.born:%d.%m.%Y}", seen=f"{case.seen:%d.%m.%Y}",
        doctor=RADIOLOGIST,
    )  # fmt: skip
    cells = (case.accession, case.patient_id, case.name, f"{case.born:%Y-%m-%d}", f"{case.seen:%Y-%m-%d}",
             f"Dr {RADIOLOGIST}", prefix + text)  # fmt: skip
    return dict(zip(COLUMNS, cells, strict=True))


def _write_reports(path: Path, rows: list[dict]) -> None:
    """As such systems export it: English as UTF-8 with a mark and commas, else Windows-1252 and semicolons."""
    english = rows[0]["language"] == "en"
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, delimiter="," if english else ";", lineterminator="\r\n")
    writer.writeheader()
    reports = {row["report"]["AccessionNumber"]: row["report"] for row in rows}
    first = next(iter(reports.values()))
    # A report that was corrected, and one of a study that is not in the export.
    writer.writerows([*reports.values(), first | {"Report": first["Report"] + "\nAddendum."}])
    writer.writerow(first | {"AccessionNumber": "RX1999000001"})
    path.write_bytes(text.getvalue().encode("utf-8-sig" if english else "cp1252"))


def _move_into_zip(root: Path, paths: list[str]) -> None:
    with zipfile.ZipFile(root / "export" / "older studies.zip", "w") as archive:
        for number, path in enumerate(paths):
            # The time of the member is fixed: equal exports are equal files.
            entry = zipfile.ZipInfo(path.removeprefix("export/"))
            entry.compress_type = zipfile.ZIP_STORED if number == 0 else zipfile.ZIP_DEFLATED
            archive.writestr(entry, (root / path).read_bytes())
            (root / path).unlink()
            for folder in list(Path(path).parents)[:2]:
                if not os.listdir(root / folder):
                    (root / folder).rmdir()


__all__ = ["COLUMNS", "RADIOLOGIST", "Case", "case_of", "dicom_object", "write_image", "write_tables"]
