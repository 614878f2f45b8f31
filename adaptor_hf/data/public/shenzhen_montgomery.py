"""Shenzhen and Montgomery County chest X-ray sets of the NLM: tuberculosis, and lung masks."""

from __future__ import annotations

import re
from pathlib import Path

from ...files import read_regular
from ..catalog import LoadedRows, PublicDataset, Request
from ..demographics import age_years, sex_code
from ..files import list_files, record_input
from ..masks import file_mask

CLASSES = ["normal", "tuberculosis"]

_PREFIX = {"shenzhen": "CHNCXR", "montgomery": "MCUCXR"}
_AGE = re.compile(r"(\d+)\s*(y|year|m|month|d|day)", re.IGNORECASE)


def read_shenzhen(request: Request) -> LoadedRows:
    """Rows of one image each, sorted by name."""
    return _read(request, "shenzhen")


def read_montgomery(request: Request) -> LoadedRows:
    """Rows of one image each, sorted by name."""
    return _read(request, "montgomery")


def _read(request: Request, name: str) -> LoadedRows:
    import pandas as pd

    pattern = re.compile(rf"({_PREFIX[name]}_\d{{4}}_([01]))(_mask)?", re.IGNORECASE)
    images: dict[str, str] = {}
    masks: dict[str, list[str]] = {}
    index = list_files(request.root)
    for path in sorted(index.sizes):
        *folders, file = path.split("/")
        match = pattern.fullmatch(file.rpartition(".")[0])
        if match is None:
            continue
        if match[3] or any("mask" in folder.lower() for folder in folders):
            masks.setdefault(match[1].upper(), []).append(path)
        else:
            images.setdefault(match[1].upper(), path)
    if not images:
        there = ", ".join(sorted(path.name for path in request.root.iterdir())[:12]) or "nothing"
        raise FileNotFoundError(
            f"No image called {_PREFIX[name]}_0001_0.png or the like under {request.root}. Is this the right root? It "
            f"has: {there}."
        )
    ids = sorted(images)
    readings = _readings(request.root)
    loaded = LoadedRows(pd.DataFrame(), class_names=CLASSES, table_rows=len(ids))
    notes = [
        _reading(read_regular(readings[image]).decode("utf-8", "replace")) if image in readings else {} for image in ids
    ]
    rows = {
        "image": [images[image] for image in ids],
        "image_id": ids,
        # One image a patient, as far as is known.
        "patient_id": ids,
        "labels": [int(image[-1]) for image in ids],
        "sex": [note.get("sex") for note in notes],
        "age": pd.Series([note.get("age") for note in notes], dtype=float),
        "source": [images[image] for image in ids],
    }
    loaded.rows = pd.DataFrame(rows)
    if request.task == "segmentation":
        loaded.rows["mask"] = [file_mask(masks[image], images[image]) if image in masks else None for image in ids]
        unmatched = len(masks.keys() - images.keys())
        if unmatched:
            loaded.dropped["mask without an image"] = unmatched
        _check_sides(name, masks, loaded)
    without = len(ids) - sum(image in readings for image in ids)
    if without:
        loaded.notes.append(f"{without} images have no clinical reading: sex and age are not known.")
    return loaded


def _check_sides(name: str, masks: dict[str, list[str]], loaded: LoadedRows) -> None:
    """Montgomery's masks are one file a lung: with one of them missing half of the mask would be."""
    sides = {
        image: sum("left" in path or "right" in path for path in map(str.lower, paths))
        for image, paths in masks.items()
    }
    halves = [image for image, count in sides.items() if count == 1 and len(masks[image]) == 1]
    if name == "montgomery" and halves:
        loaded.faults += [f"{masks[image][0]}: the mask of one lung only, the other is missing" for image in halves]
        bad = loaded.rows["image_id"].isin(halves)
        loaded.rows = loaded.rows[~bad]
        loaded.dropped["mask of one lung only"] = int(bad.sum())


def _readings(root: Path) -> dict[str, Path]:
    files = list_files(root, suffixes=(".txt",)).by_stem()
    return {stem.upper(): record_input(root / paths[0]) for stem, paths in files.items()}


def _reading(text: str) -> dict:
    """Sex and age in years of a clinical reading; what is not there is left out."""
    # Montgomery: "Patient's Sex: F", "Patient's Age: 045Y"; Shenzhen: "male 45yrs", with many misspellings.
    found: dict = {}
    sex = re.search(r"sex:\s*([FM])\b|\b(f)emal|\b(m)ale", text, re.IGNORECASE)
    if sex:
        found["sex"] = sex_code(sex[sex.lastindex])
    age = _AGE.search(text)
    if age:
        found["age"] = age_years(age[1] + age[2][0])
    return found


_TRAPS = (
    "The label is the last digit of the file's name.",
    "The two sites differ in disease, machine and population: over both of them a model can tell the site instead.",
)

DATASETS = (
    PublicDataset(
        name="shenzhen",
        title="Shenzhen chest X-ray set",
        tasks=("classification", "segmentation"),
        expected_files="""CXR_png/CHNCXR_0001_0.png              (662; also under ChinaSet_AllFiles/)
ClinicalReadings/CHNCXR_0001_0.txt
mask/CHNCXR_0001_0_mask.png            for segmentation: masks of Stirenko et al., 566 images""",
        license="NLM: public for research, citation is asked for (Jaeger 2014); masks CC BY-NC-SA 4.0 (Stirenko 2018).",
        homepage="https://lhncbc.nlm.nih.gov/LHC-downloads/downloads.html#tuberculosis-image-data-sets",
        restricted=True,
        pretraining_name="Shenzhen",
        tested="real sample",
        read=read_shenzhen,
        traps=(*_TRAPS, "About a hundred images have no mask: not annotated, not free of lungs."),
    ),
    PublicDataset(
        name="montgomery",
        title="Montgomery County chest X-ray set",
        tasks=("classification", "segmentation"),
        expected_files="""CXR_png/MCUCXR_0001_0.png              (138; also under MontgomerySet/)
ClinicalReadings/MCUCXR_0001_0.txt
ManualMask/leftMask/MCUCXR_0001_0.png
ManualMask/rightMask/MCUCXR_0001_0.png""",
        license="NLM: public for research, citation is asked for (Jaeger 2014, Candemir 2014).",
        homepage="https://lhncbc.nlm.nih.gov/LHC-downloads/downloads.html#tuberculosis-image-data-sets",
        restricted=False,
        pretraining_name="Montgomery",
        tested="fixture",
        read=read_montgomery,
        traps=(*_TRAPS, "Left and right lung are masks of their own: they are joined."),
    ),
)
