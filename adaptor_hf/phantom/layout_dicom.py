"""Phantoms as the RSNA Pneumonia Detection Challenge and as SIIM-ACR Pneumothorax (stage 2)."""

import io
import json
from pathlib import Path

import numpy as np
from PIL import Image

from ..data.boxes import xyxy_to_xywh
from ..data.mask_drawing import encode_rle
from ..files import write_csv
from .generate import Plan
from .layout_ids import nih_name, rsna_id, siim_id

SIZE = 1024
"""Side in pixels of every image of both sets."""


def write_rsna_image(root: Path, planned: Plan, record: dict, seed: int) -> dict:
    """The DICOM file; a row of the table for each box of a consolidation."""
    name = rsna_id(planned, seed)
    _save_dicom(root / "stage_2_train_images" / f"{name}.dcm", name, planned, record)
    chosen = [label == "consolidation" for label in record["box_labels"]]
    boxes = xyxy_to_xywh(record["boxes"][chosen] * (SIZE / record["image"].width))
    if len(boxes):
        word = "Lung Opacity"
        rows = [(name, *(f"{value:.1f}" for value in box), 1) for box in boxes]
    else:
        word = "No Lung Opacity / Not Normal" if planned.findings else "Normal"
        rows = [(name, "", "", "", "", 0)]
    original = {"subset_img_id": name, "img_id": nih_name(planned)}
    return {"labels": rows, "classes": [(name, word)] * len(rows), "original": original}


def write_rsna_tables(root: Path, rows: list[dict]) -> None:
    """Labels and classes, a row a box, and RSNA's list of the NIH originals."""
    labels = [line for row in rows for line in row["labels"]]
    classes = [line for row in rows for line in row["classes"]]
    write_csv(root / "stage_2_train_labels.csv", ("patientId", "x", "y", "width", "height", "Target"), labels)
    write_csv(root / "stage_2_detailed_class_info.csv", ("patientId", "class"), classes)
    originals = json.dumps([row["original"] for row in rows], indent=1)
    (root / "pneumonia-challenge-dataset-mappings_2018.json").write_text(originals, encoding="utf-8")


def write_siim_image(root: Path, planned: Plan, record: dict, seed: int) -> dict:
    """The DICOM file, and run lengths of the pneumothorax, "-1" for none."""
    name = siim_id(planned, seed)
    _save_dicom(root / "stage_2_images" / f"{name}.dcm", name, planned, record)
    return {"runs": (name, encode_rle(np.asarray(enlarged_mask(record["masks"]["pneumothorax"]))))}


def write_siim_tables(root: Path, rows: list[dict]) -> None:
    """Run lengths, a row an image."""
    write_csv(root / "stage_2_train.csv", ("ImageId", "EncodedPixels"), [row["runs"] for row in rows])


def enlarged_mask(mask: Image.Image) -> Image.Image:
    """A mask at the side SIZE: each pixel becomes a square."""
    return mask.resize((SIZE, SIZE), Image.Resampling.NEAREST)


def _save_dicom(path: Path, uid: str, planned: Plan, record: dict) -> None:
    """8-bit, MONOCHROME2, JPEG Baseline, without rescale and window, as the files of both sets are."""
    import pydicom
    from pydicom.dataset import FileMetaDataset
    from pydicom.encaps import encapsulate
    from pydicom.uid import JPEGBaseline8Bit

    stream = io.BytesIO()
    record["image"].resize((SIZE, SIZE), Image.Resampling.BICUBIC).save(stream, "JPEG", quality=95)
    dataset = pydicom.Dataset()
    dataset.SOPClassUID = "1.2.840.10008.5.1.4.1.1.7"
    dataset.SOPInstanceUID = uid if "-" not in uid else f"2.25.{int(uid.replace('-', ''), 16)}"
    dataset.Modality, dataset.ConversionType, dataset.BodyPartExamined = "CR", "WSD", "CHEST"
    dataset.ViewPosition, dataset.PatientID, dataset.PatientName = planned.pose.view, uid, uid
    dataset.PatientSex, dataset.PatientAge = planned.patient.sex, f"{planned.patient.age:03d}Y"
    dataset.Rows = dataset.Columns = SIZE
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation, dataset.PixelRepresentation = 1, "MONOCHROME2", 0
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = 8, 8, 7
    dataset.LossyImageCompression, dataset.LossyImageCompressionMethod = "01", "ISO_10918_1"
    dataset.PixelData = encapsulate([stream.getvalue()])
    dataset["PixelData"].VR = "OB"
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = JPEGBaseline8Bit
    path.parent.mkdir(parents=True, exist_ok=True)
    dataset.save_as(path, enforce_file_format=True)


__all__ = ["SIZE", "enlarged_mask", "write_rsna_image", "write_rsna_tables", "write_siim_image", "write_siim_tables"]
