"""Phantoms as COVIDx with the label files 9A."""

from pathlib import Path

from .findings import side_of
from .generate import Plan
from .layout_ids import covidx_file, covidx_patient, digest

SOURCES = ("cohen", "fig1", "actmed", "sirm", "rsna", "ricord", "rnsa")
"""Words of the label files; one is misspelt there too. Here they have nothing to do with the class."""


def write_image(root: Path, planned: Plan, record: dict, seed: int) -> dict:
    """A PNG or JPEG file in train/ or test/, and its line; some are RGB, some PNG files have an alpha channel."""
    name = covidx_file(planned)
    folder = "test" if planned.split == "test" else "train"
    (root / folder).mkdir(exist_ok=True)
    code = digest(planned, seed)
    picture = record["image"].convert(("L", "RGB", "RGBA")[code[0] % (3 if name.lower().endswith("png") else 2)])
    if name.lower().endswith("png"):
        picture.save(root / folder / name, "PNG", compress_level=3)
    else:
        picture.save(root / folder / name, "JPEG", quality=95)
    line = f"{covidx_patient(planned)} {name} {class_of(planned)} {SOURCES[code[1] % len(SOURCES)]}"
    return {"file": f"{folder}_COVIDx9A.txt", "line": line}


def class_of(planned: Plan) -> str:
    """ "COVID-19" where both lungs have a consolidation, "pneumonia" where one has, else "normal"."""
    return {"": "normal", "bilateral": "COVID-19"}.get(side_of(planned.findings, "consolidation"), "pneumonia")


def write_tables(root: Path, rows: list[dict]) -> None:
    """Both label files; no header."""
    for part in ("train", "test"):
        (root / part).mkdir(exist_ok=True)
        name = f"{part}_COVIDx9A.txt"
        lines = [row["line"] + "\n" for row in rows if row["file"] == name]
        (root / name).write_text("".join(lines), encoding="utf-8")


__all__ = ["SOURCES", "class_of", "write_image", "write_tables"]
