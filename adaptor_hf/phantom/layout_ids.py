"""Ids of the public data sets' forms for phantoms: the same phantom and seed give the same id."""

import hashlib
import uuid

from .generate import Plan

# Steps through all seven-digit numbers, so that neighbours do not get neighbouring ids.
_STRIDE, _COUNT = 7654321, 10**7


def digest(planned: Plan, seed: int) -> bytes:
    """20 bytes that belong to an image."""
    return hashlib.blake2b(f"{seed} {planned.row()['image_id']}".encode(), digest_size=20).digest()


def mimic_ids(planned: Plan, seed: int) -> tuple[str, str, str]:
    """subject_id, study_id and dicom_id."""
    subject = 10**7 + (planned.patient_index * _STRIDE + 4999) % _COUNT
    study = 5 * 10**7 + ((planned.patient_index * 3 + planned.study_index) * _STRIDE + 7049) % _COUNT
    code = digest(planned, seed).hex()
    return str(subject), str(study), "-".join(code[start : start + 8] for start in range(0, 40, 8))


def rsna_id(planned: Plan, seed: int) -> str:
    """patientId of an image."""
    return str(uuid.UUID(bytes=digest(planned, seed)[:16], version=4))


def nih_name(planned: Plan) -> str:
    """File name of an NIH original: patient, then the image's number."""
    return f"{planned.patient_index + 1:08d}_{2 * planned.study_index + planned.image_index:03d}.png"


def siim_id(planned: Plan, seed: int) -> str:
    """ImageId."""
    number = int.from_bytes(digest(planned, seed)[:8], "big")
    return f"1.2.276.0.7230010.3.1.4.8323329.{number % 20000 + 300}.1517875{number % 1000:03d}.{number // 1000 % 10**6}"


def covidx_patient(planned: Plan) -> str:
    """Patient of a label file."""
    return f"A{planned.patient_index + 100000}"


def covidx_file(planned: Plan) -> str:
    """File name: the endings of the release, some names with brackets."""
    number = planned.study_index * 2 + planned.image_index
    ending = (".png", ".jpg", ".jpeg", ".JPG", ".PNG")[(planned.patient_index + number) % 5]
    name = f"({number})" if planned.patient_index % 4 == 0 else f"-{number}"
    return covidx_patient(planned) + name + ending
