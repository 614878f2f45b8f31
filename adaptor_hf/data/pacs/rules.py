"""Which DICOM objects are left out of a pair table, each by a rule with a name."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from functools import cache
from typing import Any

from .. import dicom

MODALITIES = ("CR", "DX")

_FOR_PROCESSING = ("1.2.840.10008.5.1.4.1.1.1.1.1", "1.2.840.10008.5.1.4.1.1.1.2.1", "1.2.840.10008.5.1.4.1.1.1.3.1")
_SECONDARY_CAPTURE = "1.2.840.10008.5.1.4.1.1.7"
_ONE_SAMPLE = ("MONOCHROME1", "MONOCHROME2", "PALETTE COLOR")
_THREE_SAMPLES = ("RGB", "YBR_FULL", "YBR_FULL_422", "YBR_ICT", "YBR_RCT")


def _image_type(facts: dict[str, Any], place: int) -> str:
    return facts["image_type"][place] if len(facts["image_type"]) > place else ""


RULES: dict[str, tuple[str, Callable[[dict[str, Any]], bool]]] = {
    "dicomdir": ("a DICOMDIR", lambda facts: facts["directory"]),
    "non_image": ("an object without pixels: a report, a presentation state", lambda facts: not facts["pixels"]),
    "encrypted": (
        "ids are in EncryptedAttributesSequence, so it cannot be told whose it is",
        lambda facts: facts["encrypted"],
    ),
    "multi_frame": (
        "more than one frame, by NumberOfFrames or by the bytes of its pixels",
        lambda facts: facts["frames"] > 1,
    ),
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
        "PhotometricInterpretation is not grey, a palette, RGB or YBR, or not of its number of samples a pixel",
        lambda facts: facts["photometric"] not in (_ONE_SAMPLE if facts["samples"] == 1 else _THREE_SAMPLES),
    ),
}
"""What a rule leaves out, in words and as a test of the facts of `header_facts`; the first that holds is counted."""

TABLE_RULES = {
    "modality": "another modality than those asked for",
    "no_uid": "no SOPInstanceUID",
    "no_decoder": "compressed in a way that no installed decoder reads; the index is the same once one is installed",
    "duplicate": "a SOPInstanceUID that an object before it has",
    "key_of_several_patients": "its key (accession number) stands for several patients here: whose report is it?",
}
"""Rules that depend on the options or on the other objects; they are counted after those of `RULES`."""

KEEPABLE = ("encrypted", "localizer", "secondary_capture", "for_processing", "no_decoder", "key_of_several_patients")
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
    if not facts["uid"]:
        return "no_uid"
    return None if "no_decoder" in keep or has_decoder(facts["syntax"], facts["bits"]) else "no_decoder"


@cache
def has_decoder(syntax: str | None, bits: int) -> bool:
    """Whether `read_image` can decode pixels of this transfer syntax (`syntax` of `header_facts`) on this machine."""
    from pydicom.uid import UID, AllTransferSyntaxes

    # Without one pydicom finds out how the header is written, which no compressed file leaves open.
    if syntax is None:
        return True
    return syntax in AllTransferSyntaxes and dicom.has_decoder(UID(syntax), bits)


__all__ = ["KEEPABLE", "MODALITIES", "RULES", "TABLE_RULES", "check_keep", "has_decoder", "left_out_by"]
