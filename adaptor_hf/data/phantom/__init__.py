"""Deterministic chest-radiograph phantoms with reports, for tests and demonstrations.

    python -m adaptor_hf.data.phantom --output_dir DIR --n 1000 --image_size 256 --seed 0

Drawn, not simulated from patients: results on phantoms show that the machinery works, and nothing about medicine.
"""

from .findings import FINDINGS, Finding
from .generate import contact_sheet, generate_phantoms, write_phantoms
from .prompts import ZERO_SHOT_PROMPTS

__all__ = ["FINDINGS", "ZERO_SHOT_PROMPTS", "Finding", "contact_sheet", "generate_phantoms", "write_phantoms"]
