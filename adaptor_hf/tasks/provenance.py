"""What a result says of where it comes from: towers, sizes, and whether the tower saw the data set."""

from __future__ import annotations

from typing import Any

from ..data.reading import Reading

# By what is in a data set: images of RSNA and SIIM are NIH's, COVIDx has RSNA's. Names as in `pretraining_data`.
_SAME_IMAGES = {
    "rsna": ("RSNA Pneumonia", "NIH ChestX-ray14"),
    "siim": ("SIIM", "NIH ChestX-ray14"),
    "covidx": ("COVIDx", "RSNA Pneumonia", "NIH ChestX-ray14"),
    "nih_chestxray14": ("NIH ChestX-ray14",),
    "chexpert": ("CheXpert",),
    "chexpert_5x200": ("CheXpert",),
    "mimic_cxr": ("MIMIC-CXR",),
    "openi": ("OpenI",),
    "shenzhen": ("Shenzhen",),
    "montgomery": ("Montgomery",),
    "object_cxr": ("Object-CXR",),
    "covid_rural": ("COVID Rural",),
    "cbis_ddsm": ("CBIS-DDSM",),
    "roco": ("ROCO",),
    "roco_v2": ("ROCO",),
}


def tower_saw(spec: dict[str, Any] | None, dataset: str) -> str:
    """`yes`, `no` or `unknown`: whether a tower was pre-trained on images of a data set. A phantom nobody saw."""
    if dataset.startswith("phantom"):
        return "no"
    seen = (spec or {}).get("pretraining_data")
    if not seen or dataset not in _SAME_IMAGES:
        return "unknown"
    return "yes" if set(seen) & set(_SAME_IMAGES[dataset]) else "no"


def disjoint_sets(first: str, second: str) -> bool:
    """Whether two public data sets have no image in common by their origin; False where that is not known."""
    if first == second or first not in _SAME_IMAGES or second not in _SAME_IMAGES:
        return False
    return not set(_SAME_IMAGES[first]) & set(_SAME_IMAGES[second])


def tower_name(spec: dict[str, Any] | None) -> str | None:
    """
    What results call a tower: its preset or hub id; of a local folder its last part alone. With ", RGB" or
    ", voi_lut" where images were read so (`Reading`): other pixels are another run.
    """
    if spec is None:
        return None
    name = str(spec.get("preset") or spec.get("name_or_path") or "")
    name = name.rstrip("/").rpartition("/")[2] if name.startswith(("/", ".", "~")) else name
    return ", ".join(part for part in (name, Reading.of_spec(spec).label) if part)


def input_size(spec: dict[str, Any] | None) -> int | None:
    """Side of the images that a vision tower gets, in pixels."""
    processing = (spec or {}).get("image_processor") or {}
    cropped = processing.get("do_center_crop", True) and processing.get("crop_size")
    size = processing.get("crop_size") if cropped else processing.get("size")
    return (size or {}).get("height") or (size or {}).get("shortest_edge")


__all__ = ["disjoint_sets", "input_size", "tower_name", "tower_saw"]
