"""Deterministic chest-radiograph phantoms with reports, labels, boxes and masks, for tests and demonstrations.

    python -m adaptor_hf.phantom DIR --n 1000 --image_size 256 --seed 0
    python -m adaptor_hf.phantom DIR --n 200 --layout mimic_cxr
    python -m adaptor_hf.phantom DIR --n 200 --language de

Drawn, not simulated from patients: results on phantoms show that the machinery works, and nothing about medicine.
"""

from .findings import FINDINGS, Finding
from .generate import contact_sheet, generate_phantoms, write_phantoms
from .layouts import LAYOUTS, write_layout
from .prompts import ZERO_SHOT_PROMPTS
from .targets import MASKS
from .translated_reports import LANGUAGES

__all__ = [
    "FINDINGS",
    "LANGUAGES",
    "LAYOUTS",
    "MASKS",
    "ZERO_SHOT_PROMPTS",
    "Finding",
    "contact_sheet",
    "generate_phantoms",
    "write_layout",
    "write_phantoms",
]
