"""What lies in a PACS export beside the radiographs one wants."""

import copy
import io
from pathlib import Path

TROUBLE = {
    "for_processing": "raw/1",
    "localizer": "scout/1",
    "secondary_capture": "screen/1",
    "duplicate": "sent again/1",
    "truncated": "cut/1",
    "multi_frame": "loop/1",
    "non_image": "reports/SR1",
    "presentation_state": "reports/PR1",
    "modality": "ct/1",
    "not_dicom": "autorun.inf",
    "empty": "reports/empty",
}
"""Name of each object under `export/`, by what is the matter with it: mostly the rule that leaves it out."""


def troubled_objects(root: Path, paths: list[str]) -> dict[str, bytes]:
    """Content of each object of TROUBLE by its name, made of images that are written already."""
    import pydicom

    def taken(number: int, **tags):
        dataset = copy.deepcopy(pydicom.dcmread(root / paths[number % len(paths)]))
        dataset.SOPInstanceUID = f"{dataset.SOPInstanceUID}.9{number}"
        for keyword, value in tags.items():
            setattr(dataset, keyword, value)
        return dataset

    sr = _without_pixels(taken(0, SOPClassUID="1.2.840.10008.5.1.4.1.1.88.11", Modality="SR"))
    pr = _without_pixels(taken(1, SOPClassUID="1.2.840.10008.5.1.4.1.1.11.1", Modality="PR"))
    loop = taken(4, NumberOfFrames="2")
    loop.PixelData = loop.PixelData * 2
    whole = _bytes(taken(5))
    contents = {
        "for_processing": _bytes(taken(0, PresentationIntentType="FOR PROCESSING")),
        "localizer": _bytes(taken(1, ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"])),
        "secondary_capture": _bytes(taken(2, SOPClassUID="1.2.840.10008.5.1.4.1.1.7", Modality="OT")),
        "duplicate": (root / paths[3 % len(paths)]).read_bytes(),
        "truncated": whole[: len(whole) * 3 // 5],
        "multi_frame": _bytes(loop),
        "non_image": _bytes(sr),
        "presentation_state": _bytes(pr),
        "modality": _bytes(taken(6, SOPClassUID="1.2.840.10008.5.1.4.1.1.2", Modality="CT")),
        "not_dicom": b"[autorun]\r\nopen=viewer.exe\r\n",
        "empty": b"",
    }
    return {TROUBLE[what]: content for what, content in contents.items()}


def directory_file(paths: list[str]) -> bytes:
    """A DICOMDIR that names these files, and one that is not there. Of its records only those of images are written."""
    import pydicom
    from pydicom.dataset import FileMetaDataset
    from pydicom.uid import ExplicitVRLittleEndian

    dataset = pydicom.Dataset()
    dataset.FileSetID = "PHANTOM"
    dataset.OffsetOfTheFirstDirectoryRecordOfTheRootDirectoryEntity = 0
    dataset.OffsetOfTheLastDirectoryRecordOfTheRootDirectoryEntity = 0
    dataset.FileSetConsistencyFlag = 0
    records = []
    for path in [*paths, "IMAGES/P99999/S1/I1"]:
        record = pydicom.Dataset()
        record.OffsetOfTheNextDirectoryRecord, record.RecordInUseFlag = 0, 0xFFFF
        record.OffsetOfReferencedLowerLevelDirectoryEntity = 0
        record.DirectoryRecordType, record.ReferencedFileID = "IMAGE", path.split("/")
        records.append(record)
    dataset.DirectoryRecordSequence = records
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.1.3.10"
    dataset.file_meta.MediaStorageSOPInstanceUID = "1.2.826.0.1.3680043.10.1471.1"
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    return _bytes(dataset)


def _without_pixels(dataset):
    for keyword in ("PixelData", "Rows", "Columns"):
        delattr(dataset, keyword)
    return dataset


def _bytes(dataset) -> bytes:
    stream = io.BytesIO()
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.get(
        "SOPInstanceUID", dataset.file_meta.get("MediaStorageSOPInstanceUID")
    )
    dataset.save_as(stream, enforce_file_format=True)
    return stream.getvalue()


__all__ = ["TROUBLE", "directory_file", "troubled_objects"]
