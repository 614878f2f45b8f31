"""Which DICOM objects are left out of a pair table, each by a rule with a name."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Any

MODALITIES = ("CR", "DX")

_FOR_PROCESSING = ("1.2.840.10008.5.1.4.1.1.1.1.1", "1.2.840.10008.5.1.4.1.1.1.2.1", "1.2.840.10008.5.1.4.1.1.1.3.1")
_SECONDARY_CAPTURE = "1.2.840.10008.5.1.4.1.1.7"
_GREY_OR_COLOUR = ("MONOCHROME1", "MONOCHROME2", "RGB", "YBR_FULL", "YBR_FULL_422", "YBR_ICT", "YBR_RCT")


def _image_type(facts: dict[str, Any], place: int) -> str:
    return facts["image_type"][place] if len(facts["image_type"]) > place else ""


RULES: dict[str, tuple[str, Callable[[dict[str, Any]], bool]]] = {
    "dicomdir": ("a DICOMDIR", lambda facts: facts["directory"]),
    "non_image": ("an object without pixels: a report, a presentation state", lambda facts: not facts["pixels"]),
    "encrypted": (
        "ids are in EncryptedAttributesSequence, so it cannot be told whose it is",
        lambda facts: facts["encrypted"],
    ),
    "multi_frame": ("more than one frame", lambda facts: facts["frames"] > 1),
    "localizer": (
        "ImageType, series or protocol says localizer, scout or topogram",
        lambda facts: facts["localizer"] or "LOCALIZER" in facts["image_type"],
    ),
    "secondary_capture": (
        "the SOP class is Secondary Capture, or ImageType's second value SECONDARY",
        lambda facts: (facts["sop_class"] or "").startswith(_SECONDARY_CAPTURE) or _image_type(facts, 1) == "SECONDARY",
    ),
    "for_processing": (
        "PresentationIntentType or the SOP class is FOR PROCESSING",
        lambda facts: facts["intent"] == "FOR PROCESSING" or facts["sop_class"] in _FOR_PROCESSING,
    ),
    "photometric": (
        "PhotometricInterpretation is neither grey nor RGB or YBR",
        lambda facts: facts["photometric"] not in _GREY_OR_COLOUR,
    ),
}
"""What a rule leaves out, in words and as a test of the facts of `header_facts`; the first that holds is counted."""

TABLE_RULES = {
    "modality": "another modality than those asked for",
    "no_uid": "no SOPInstanceUID",
    "duplicate": "a SOPInstanceUID that an object before it has",
    "key_of_several_patients": "its key (accession number) stands for several patients here: whose report is it?",
}
"""Rules that depend on the options or on the other objects; they are counted after those of `RULES`."""

KEEPABLE = ("encrypted", "localizer", "secondary_capture", "for_processing", "key_of_several_patients")
"""Rules that can be switched off; what the others leave out cannot be read or told apart."""


def check_keep(keep: Sequence[str]) -> None:
    """
    Raises:
        ValueError: A name is not of `KEEPABLE`.
    """
    if unknown := [name for name in keep if name not in KEEPABLE]:
        raise ValueError(f"keep={unknown[0]!r} is no rule that can be switched off. Those are: {', '.join(KEEPABLE)}.")


def left_out_by(facts: dict[str, Any], modalities: Collection[str], keep: Collection[str] = ()) -> str | None:
    """Name of the rule that leaves an object out, from its own header; None for an image that is wanted."""
    for name, (_, holds) in RULES.items():
        if name not in keep and holds(facts):
            return name
    if facts["modality"] not in modalities:
        return "modality"
    return None if facts["uid"] else "no_uid"


__all__ = ["KEEPABLE", "MODALITIES", "RULES", "TABLE_RULES", "check_keep", "left_out_by"]
