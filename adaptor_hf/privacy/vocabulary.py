"""Words that may be said in private mode: what a closed list of the field has. A cell or a header may hold anything."""

from __future__ import annotations

from collections.abc import Sequence

from .mode import speaks_privately

OTHER = "OTHER"
"""What stands for a word that is on no list."""

# PS3.3, C.8.1.1.1 (ViewPosition) and C.8.11.7 (view codes of mammography), and how public data sets write them.
_VIEWS = """
AP PA LL RL RLD LLD RLO LLO LAO RAO LPO RPO LAT LATERAL FRONTAL OBLIQUE DECUBITUS AXIAL TANGENTIAL
CC MLO ML LM LMO SIO XCC XCCL XCCM FB CV AT RM RL RS SPINE
"""
_TWO_WORDS = (
    "AP SUPINE", "AP ERECT", "AP PORTABLE", "PA ERECT", "PA LATERAL", "AP LLD", "AP RLD", "LEFT LATERAL",
    "RIGHT LATERAL", "LATERAL ERECT", "AP AXIAL", "PA LLD", "PA RLD", "LAT HORIZONTAL", "ANTERO-POSTERIOR",
    "POSTERO-ANTERIOR",
)  # fmt: skip
# PS3.3, C.7.3.1.1.1, those in use.
_MODALITIES = """
AR AU BDUS BI BMD CR CT CTPROTOCOL DG DOC DX ECG EPS ES FID GM HC HD IO IOL IVOCT IVUS KER KO LEN LS MG MR NM OAM OCT
OP OPM OPT OPTBSV OPTENF OPV OSS OT PA PLAN POS PR PT PX REG RESP RF RG RTDOSE RTIMAGE RTINTENT RTPLAN RTRAD RTRECORD
RTSEGANN RTSTRUCT RWV SEG SM SMR SR SRF STAIN TEXTUREMAP TG US VA XA XC
"""
# PS3.16, annex L, those of radiographs.
_BODY_PARTS = """
ABDOMEN ABDOMENPELVIS ACJOINT ANKLE AORTA ARM BONE BRAIN BREAST BRONCHUS CALCANEUS CERVIX CHEST CHESTABDOMEN
CHESTABDPELVIS CLAVICLE COCCYX COLON CSPINE CTSPINE ELBOW ESOPHAGUS EXTREMITY EYE FACE FEMUR FIBULA FINGER FOOT FOREARM
HAND HEAD HEADNECK HEART HIP HUMERUS JAW JOINT KIDNEY KNEE LEG LIVER LSPINE LSSPINE LUMBAR LUNG MANDIBLE MAXILLA
MEDIASTINUM METACARPUS METATARSUS NECK NOSE ORBIT PANCREAS PATELLA PELVIS PORTABLE_CHEST RADIUS RIB RIBS SCAPULA
SACRUM SHOULDER SIJOINT SINUS SKULL SPINE SPLEEN SSPINE STERNUM STOMACH TEETH THIGH THORAX THUMB THYROID TIBIA TLSPINE
TMJ TOE TSPINE ULNA WHOLEBODY WRIST ZYGOMA
"""
_IMAGE_TYPES = """
ORIGINAL DERIVED PRIMARY SECONDARY LOCALIZER AXIAL POSTERO_ANTERIOR ANTERO_POSTERIOR LATERAL OTHER MIXED
"""
_PHOTOMETRIC = """
MONOCHROME1 MONOCHROME2 RGB HSV ARGB CMYK XYB YBR_FULL YBR_FULL_422 YBR_PARTIAL_422 YBR_PARTIAL_420 YBR_ICT YBR_RCT
"""
_WORDS = {
    "view": frozenset((*_VIEWS.split(), *_TWO_WORDS)),
    "modality": frozenset(_MODALITIES.split()),
    "body_part": frozenset(_BODY_PARTS.split()),
    "image_type": frozenset(_IMAGE_TYPES.split()),
    "intent": frozenset(("FOR PROCESSING", "FOR PRESENTATION")),
    "photometric": frozenset((*_PHOTOMETRIC.split(), "PALETTE COLOR")),
    "sex": frozenset("FMO"),
}


def listed_word(value: str | None, kind: str) -> str | None:
    """
    In private mode, a word that is on the list of its kind as it is, and `OTHER` for another one; nothing stays
    nothing. Outside private mode the value itself.

    Args:
        value (`str`): In any case.
        kind (`str`): `view`, `modality`, `body_part`, `image_type`, `intent`, `photometric` or `sex`.
    """
    if value is None or not speaks_privately():
        return value
    return value if " ".join(value.upper().split()) in _WORDS[kind] else OTHER


def column_list(names: Sequence[str], lead: str = "Columns") -> str:
    """
    A table's columns for a message; in private mode their number alone: of a table without a header line they are the
    cells of its first row.
    """
    if speaks_privately():
        return f"There are {len(names)}, whose names are hidden: without a header line they would be a row."
    return f"{lead}: {', '.join(map(repr, names))}."


__all__ = ["OTHER", "column_list", "listed_word"]
