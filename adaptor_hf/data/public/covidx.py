"""COVIDx (COVID-Net): chest radiographs with three classes (A), two (B) or two grades (Sev), all label files."""

from __future__ import annotations

import re
from io import TextIOWrapper
from pathlib import Path
from typing import TYPE_CHECKING

from ...files import open_regular
from ..catalog import LoadedRows, PublicDataset, Request
from ..files import find_file, record_input, require_file
from ..reference_splits import check_size, two_way_split

if TYPE_CHECKING:
    import pandas as pd

CLASSES = (["normal", "pneumonia", "COVID-19"], ["negative", "positive"], ["level1", "level2"])
"""Class words of the three kinds of label files, in the order of their numbers."""

VERSIONS = ("1", "2", "3", "4", "5", "6", "7A", "7B", "8A", "8B", "9A", "9B", "Sev")

_FOLDERS = ("", "labels/", "covidnet/labels/")
_SOURCES = {"rnsa": "rsna"}


def read(request: Request) -> LoadedRows:
    """Rows of one image each, in the order of the label files."""
    import pandas as pd

    files = _label_files(request.root, request.options["version"])
    loaded = LoadedRows(pd.DataFrame(), notes=[f"Labels: {' and '.join(path.name for path in files.values())}."])
    parts = []
    for split, path in files.items():
        part = _read_labels(path, path.relative_to(request.root).as_posix(), loaded)
        folder = split if split == "train" or (request.root / "test").is_dir() else _test_folder(request.root)
        parts.append(part.assign(split=split, image=folder + "/" + part["image_id"]))
    rows = pd.concat(parts, ignore_index=True)
    words = set(rows["word"])
    loaded.class_names = next((names for names in CLASSES if words <= set(names)), None)
    if loaded.class_names is None:
        raise ValueError(
            f"{' and '.join(path.name for path in files.values())}: the classes {sorted(words)} are of different kinds "
            "of label files. Expected the train and test file of one version."
        )
    rows["labels"] = rows.pop("word").map({name: code for code, name in enumerate(loaded.class_names)})
    if request.split_scheme == "mgca":
        train = rows["split"] == "train"
        rows.loc[train, "split"] = two_way_split(int(train.sum()), 0.2)
        loaded.notes += check_size(int(train.sum()), 30130, "MGCA")
    loaded.rows, loaded.table_rows = rows, len(rows) + len(loaded.faults)
    return loaded


def parse_line(line: str) -> tuple[str, str, str, str | None]:
    """
    Patient, file, class and source of a line of a label file.

    Patient ids may have blanks, and older files have no source: the class is the last word that is one.

    Raises:
        ValueError: No class word, or no patient or file before it.
    """
    words = line.split()
    known = [place for place, word in enumerate(words) if any(word in names for names in CLASSES)]
    if not known or known[-1] < 2:
        raise ValueError(f"expected 'patient file class [source]' with a class of {CLASSES}, found {line.strip()!r}")
    place = known[-1]
    source = words[place + 1] if place + 1 < len(words) else None
    return " ".join(words[: place - 1]), words[place - 1], words[place], _SOURCES.get(source, source)


def _read_labels(path: Path, name: str, loaded: LoadedRows) -> pd.DataFrame:
    import pandas as pd

    rows = []
    with TextIOWrapper(open_regular(record_input(path)), encoding="utf-8") as lines:
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            try:
                patient, file, word, _ = parse_line(line)
            except ValueError as error:
                loaded.faults.append(f"{name}:{number}: {error}")
                continue
            rows.append((patient, file, word, f"{name}:{number}"))
    if not rows:
        raise ValueError(f"{name}: no line of it is 'patient file class [source]'. {' '.join(loaded.faults[:1])}")
    return pd.DataFrame(rows, columns=["patient_id", "image_id", "word", "source"], dtype=object)


def _label_files(root: Path, version: str | None) -> dict[str, Path]:
    """Train and test label file of a version; of the only one that is there if none is asked for."""
    if version is None:
        there = {
            found[1]: None
            for folder in _FOLDERS
            for path in sorted((root / folder).glob("train_COVIDx*.txt"))
            if (found := re.fullmatch(r"train_COVIDx(\w*)\.txt", path.name))
        }
        if len(there) > 1:
            names = ", ".join(repr(name or "1") for name in there)
            raise ValueError(f"{root}: there are label files of several versions. Pass version=, one of {names}.")
        if there:
            return _label_files(root, next(iter(there)) or "1")
        names = {split: f"{split}.txt" for split in ("train", "test")}
    elif str(version) not in VERSIONS:
        raise ValueError(
            f"version is one of {', '.join(VERSIONS)}, the end of a label file's name, got {version!r}. (Kaggle's "
            "version 5 is 9A and 9B.)"
        )
    else:
        suffix = "" if str(version) == "1" else str(version)
        names = {split: f"{split}_COVIDx{suffix}.txt" for split in ("train", "test")}
    return {
        split: find_file(root, [folder + name for folder in _FOLDERS]) or require_file(root, name, "label file")
        for split, name in names.items()
    }


def _test_folder(root: Path) -> str:
    """Some releases call the folder of the test images otherwise."""
    return "competition_test" if (root / "competition_test").is_dir() else "test"


DATASETS = (
    PublicDataset(
        name="covidx",
        title="COVIDx (COVID-Net)",
        tasks=("classification",),
        expected_files="""train/<file>
test/<file>                            (or competition_test/)
train_COVIDx9A.txt test_COVIDx9A.txt   of any version, here or in labels/
train.txt test.txt                     or the files of the Kaggle release""",
        license="Each source has its own licence (some non-commercial); the label files are AGPL-3.0.",
        homepage="https://github.com/lindawangg/COVID-Net/blob/master/docs/COVIDx.md",
        restricted=True,
        same_images=("rsna", "nih_chestxray14"),
        pretraining_name="COVIDx",
        tested="fixture",
        read=read,
        split_schemes=("official", "mgca"),
        options={"version": None},
        option_help={
            "version": f"Which label files: {', '.join(VERSIONS)}. None takes the only ones that are there, or "
            "train.txt and test.txt."
        },
        split_notes={
            "official": "Train and test file; a validation part is taken from train by patient. 9A: 30,130 and 400 "
            "(100 / 100 / 200).",
            "mgca": "Train 80/20 by image: 24,104 / 6,026 / 400 with 9A.",
        },
        leaks={
            "official": "In versions 6 and 7B a patient (ANON191) is in train and test. 129 of the 200 RSNA test "
            "images of 9A are of NIH patients who are in train. All COVID-19 test images are of one source (RICORD), "
            "and no other test image is: source and label are confounded.",
            "mgca": "Validation is split by image: with 9A, 3,036 of its 6,026 images are of a patient who is in "
            "train. What leaks in the official split leaks here too.",
        },
        traps=(
            "Version 5 on Kaggle is 9A and 9B, not the files called COVIDx5.",
            "A patient id may have blanks ('COVID 1'), older files have no source: reading the columns by number fails "
            "for versions 3 to 5, 7 and 8.",
            "MGCA maps every word but normal and pneumonia to COVID-19: a B file becomes a single class.",
            "Version 1 lists 3,079 training images twice; 9A and 9B list images that are not on Kaggle.",
            "Images come in all sizes and modes, also RGBA, and a few show other parts of the body.",
        ),
    ),
)
