"""The sets of SLIP's dataset_catalog.json: folders of classes, lists of files, and four sets of torchvision."""

from __future__ import annotations

import io
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING

from ...files import check_regular, is_folder
from ..catalog import LoadedRows, PublicDataset, Request
from ..converted import read_converted
from ..files import find_file, list_files, record_input, require_file
from ..json_files import load_json

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd

CATALOG, LABELS, TEMPLATES = "dataset_catalog.json", "labels.json", "templates.json"
SPECIAL = ("cifar10", "cifar100", "stl10", "mnist")
METRICS = {
    "aircraft": "mean_per_class",
    "pets": "mean_per_class",
    "caltech101": "mean_per_class",
    "flowers": "mean_per_class",
    "kinetics700_frames": "mean_top1_top5",
    "hateful_memes": "roc_auc",
}
"""Metric of the sets whose metric is not "top1"; `adaptor_hf.evaluation.slip_metrics` computes it."""

CLEVR_CLASSES = ("count_10", "count_3", "count_4", "count_5", "count_6", "count_7", "count_8", "count_9")


def read(request: Request) -> LoadedRows:
    """Rows of one set of the catalog: an image and its class."""
    name = request.options["dataset"]
    catalog = load_json(record_input(require_file(request.root, CATALOG, "catalog")), CATALOG, dict)
    if name not in catalog:
        known = ", ".join(sorted(catalog))
        raise ValueError(f'Pass dataset="...": one of the sets of {CATALOG}: {known}. Got {name!r}.')
    entry = catalog[name]
    kind = entry.get("type") if isinstance(entry, dict) else None
    if kind not in ("imagefolder", "filelist", "special"):
        raise ValueError(f"{CATALOG}, {name}: type {kind!r}, expected imagefolder, filelist or special.")
    folder, notes = _folder(request.root, name, entry)
    if kind == "special":
        rows, classes = _read_special(request.root, folder, name)
    else:
        parts = {split: entry.get(split) for split in ("train", "test")}
        if not all(isinstance(part, str) for part in parts.values()):
            raise ValueError(f"{CATALOG}, {name}: expected train and test to name folders, found {parts}.")
        read_kind = _read_folders if kind == "imagefolder" else _read_lists
        rows, classes = read_kind(request.root, folder, parts, name)
    if find_file(request.root, LABELS):
        _check_labels(class_texts(request.root, name), classes, name)
    rows["source"] = f"{CATALOG}:{name}"
    notes.append(f"SLIP's metric of {name} is {metric_of(name)}.")
    return LoadedRows(rows, class_names=classes, table_rows=len(rows), notes=notes)


def metric_of(name: str) -> str:
    """Name of the metric of a set: "top1", "mean_per_class", "mean_top1_top5" or "roc_auc"."""
    return METRICS.get(name, "top1")


def class_texts(root: str | os.PathLike, name: str) -> list[list[str]]:
    """
    Names of each class in order of its number, from labels.json; a class with synonyms has several.

    Raises:
        FileNotFoundError, ValueError: No labels.json, or none of this set in it.
    """
    return [[label] if isinstance(label, str) else list(label) for label in _entry(Path(root), LABELS, name)]


def _entry(root: Path, file: str, name: str) -> list:
    content = load_json(require_file(root, file), file, dict)
    if not isinstance(content.get(name), list):
        raise ValueError(f"{file}: no list for {name!r}. It has: {', '.join(sorted(content))}.")
    return content[name]


def _folder(root: Path, name: str, entry: dict) -> tuple[str, list[str]]:
    """Folder of the set relative to the root: where the catalog says, or a folder of the set's name."""
    said = os.path.normpath(os.path.join(root, str(entry.get("path", ""))))
    inside = os.path.relpath(said, root)
    if not inside.startswith("..") and os.path.isdir(said) and inside != ".":
        return inside.replace(os.sep, "/"), []
    if (root / name).is_dir():
        return name, [f"The catalog's path of {name} is not in the root: its folder {name} is taken."]
    raise FileNotFoundError(
        f"{CATALOG}, {name}: the path {entry.get('path')!r} is no folder under {root}, and there is no folder {name} "
        "either. Put the set, or a symbolic link to it, there."
    )


def _read_folders(root: Path, folder: str, parts: dict[str, str], name: str) -> tuple[pd.DataFrame, list[str]]:
    """As torchvision's ImageFolder: a class is a folder, numbered in alphabetical order."""
    import pandas as pd

    tables, classes = [], None
    for split, part in parts.items():
        base = f"{folder}/{part}"
        if not (root / base).is_dir():
            raise FileNotFoundError(f"{CATALOG}, {name}: no folder {base} in {root}. Is the set unpacked?")
        names = sorted(entry.name for entry in os.scandir(root / base) if is_folder(entry) and entry.name[0] != ".")
        if classes is not None and names != classes:
            odd = sorted(set(names) ^ set(classes))
            raise ValueError(f"{name}: train and test have other classes, such as {', '.join(odd[:5])}.")
        classes = names
        files = sorted(list_files(root, [f"{base}/{label}" for label in names]).sizes)
        number = {label: position for position, label in enumerate(names)}
        depth = base.count("/") + 1
        tables.append(
            pd.DataFrame({"image": files, "labels": [number[file.split("/")[depth]] for file in files], "split": split})
        )
    rows = pd.concat(tables, ignore_index=True).astype({"image": object, "split": object})
    return rows.assign(image_id=rows["image"]), classes or []


def _read_lists(root: Path, folder: str, parts: dict[str, str], name: str) -> tuple[pd.DataFrame, list[str]]:
    """SLIP's file lists: `<part>_images.npy` with paths, `<part>_labels.npy` with numbers (clevr_counts: words)."""
    import pandas as pd

    tables = []
    for split, part in parts.items():
        images = _list_values(root, f"{folder}/{part}_images")
        labels = _list_values(root, f"{folder}/{part}_labels")
        if len(images) != len(labels):
            raise ValueError(f"{name}, {part}: {len(images)} images but {len(labels)} labels.")
        paths = [_relative(str(path), root, folder) for path in images]
        tables.append(pd.DataFrame({"image": paths, "labels": labels, "split": split}, dtype=object))
    rows = pd.concat(tables, ignore_index=True)
    if name == "clevr_counts":
        classes = list(CLEVR_CLASSES)
        unknown = sorted(set(map(str, rows["labels"])) - set(classes))
        if unknown:
            raise ValueError(f"{name}: unknown label {unknown[0]!r}, expected {', '.join(classes)}.")
        rows["labels"] = rows["labels"].map(lambda label: classes.index(str(label)))
    else:
        rows["labels"] = rows["labels"].astype("int64")
        if rows["labels"].min() < 0:
            raise ValueError(f"{name}: a negative label. Labels are class numbers from 0.")
        classes = [str(number) for number in range(int(rows["labels"].max()) + 1)]
        if find_file(root, LABELS):
            texts = class_texts(root, name)
            classes = [text[0] for text in texts] if len(texts) >= len(classes) else classes
    return rows.assign(image_id=rows["image"]), classes


def _list_values(root: Path, stem: str) -> np.ndarray:
    import numpy as np

    path = root / f"{stem}.npy"
    if not path.is_file():
        return read_converted(root, stem, ("value",))[0]["value"].to_numpy()
    try:
        return np.load(check_regular(record_input(path)), allow_pickle=False)
    except ValueError:
        raise ValueError(
            f"{path} holds a pickle, which is not read while loading. Convert it once: "
            f"python -m adaptor_hf.data.convert {path} {path.with_suffix('.parquet')}, then move {path.name} away."
        ) from None


def _relative(path: str, root: Path, folder: str) -> str:
    """A path of a list, which is absolute on the machine that wrote it, relative to the root."""
    path = path.replace("\\", "/")
    prefix = f"{root.as_posix()}/"
    if path.startswith(prefix):
        return path[len(prefix) :]
    if path.startswith("/"):
        _, found, rest = path.partition(f"/{folder.rpartition('/')[2]}/")
        return f"{folder}/{rest}" if found else path
    return f"{folder}/{path}"


def _read_special(root: Path, folder: str, name: str) -> tuple[pd.DataFrame, list[str]]:
    """CIFAR, STL10 and MNIST: their files hold arrays, so the images become PNG bytes."""
    import pandas as pd
    from torchvision import datasets

    # CIFAR's files are pickles: torchvision reads them only after it has checked their known MD5 sums.
    makers = {
        "cifar10": lambda train: datasets.CIFAR10(root / folder, train=train),
        "cifar100": lambda train: datasets.CIFAR100(root / folder, train=train),
        "stl10": lambda train: datasets.STL10(root / folder, split="train" if train else "test"),
        "mnist": lambda train: datasets.MNIST(root / folder, train=train),
    }
    if name not in makers:
        raise ValueError(f"{CATALOG}: {name} is special, expected one of {', '.join(SPECIAL)}.")
    for file in list_files(root, [folder], suffixes=None).sizes:
        record_input(root / file)
    tables, classes = [], []
    for split in ("train", "test"):
        try:
            part = makers[name](split == "train")
        except (RuntimeError, FileNotFoundError) as error:
            raise FileNotFoundError(
                f"{name}: torchvision finds no whole copy in {root / folder} ({error}). Download it with torchvision."
            ) from None
        classes = list(part.classes)
        images, labels = zip(*((_png(image), int(label)) for image, label in part), strict=True)
        ids = [f"{split}/{position}" for position in range(len(images))]
        tables.append(pd.DataFrame({"image": images, "image_id": ids, "labels": labels, "split": split}))
    return pd.concat(tables, ignore_index=True), classes


def _png(image) -> dict:
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", compress_level=1)
    return {"bytes": buffer.getvalue(), "path": None}


def _check_labels(texts: list[list[str]], classes: list[str], name: str) -> None:
    """The classes must be those of labels.json in the same order, as far as their names tell."""
    if len(texts) != len(classes):
        raise ValueError(f"{name}: {len(classes)} classes on disk, {len(texts)} in {LABELS}.")
    place = {_letters(text): number for number, labels in enumerate(texts) for text in labels}
    for number, label in enumerate(classes):
        other = place.get(_letters(label), number)
        if other != number and _letters(label) not in map(_letters, texts[number]):
            raise ValueError(
                f"{name}: the class {label!r} is number {number} by its folder and {other} in {LABELS}. Rename the "
                "folders so that their alphabetical order is that of the labels."
            )


def _letters(text: str) -> str:
    return re.sub(r"[\W_]+", "", text.lower())


DATASETS = (
    PublicDataset(
        name="slip_catalog",
        title="SLIP's downstream sets",
        tasks=("classification",),
        expected_files="""\
dataset_catalog.json (of SLIP); labels.json and templates.json (of SLIP, optional)
<path of the catalog, or the set's name>/train/<class>/*.jpg and test/<class>/*.jpg (imagefolder)
<path>/train_images.npy, train_labels.npy, test_images.npy, test_labels.npy (filelist)
<path>/cifar-10-batches-py and the like, as torchvision has them (cifar10, cifar100, stl10, mnist)""",
        license="by set",
        homepage="https://github.com/facebookresearch/SLIP",
        restricted=False,
        tested="fixture",
        read=read,
        image_mode="RGB",
        split_schemes=("official",),
        options={"dataset": None},
        option_help={"dataset": "name of the set in dataset_catalog.json"},
        split_notes={
            "official": "train and test as the catalog names them; its test is a validation part for cub200, eurosat, "
            "kitti_distance, patch_camelyon, ucf101_frames, kinetics700_frames, clevr_counts, hateful_memes (dev) and "
            "imagenet. A validation part is taken from train."
        },
        traps=(
            "Classes are numbered by the alphabetical order of their folders, which must be that of labels.json: names "
            "that are in both are compared.",
            "clevr_counts has words as labels in a fixed order: count_10, count_3 ... count_9.",
            "fer2013 has several names a class (class_texts).",
            "The metric differs: mean per class for aircraft, pets, caltech101 and flowers, the mean of top 1 and top "
            "5 for kinetics700_frames, ROC AUC for hateful_memes, else top 1 (adaptor_hf.evaluation.slip_metrics).",
            "birdsnap and voc2007 have labels but no entry in the catalog.",
        ),
    ),
)

__all__ = ["DATASETS", "METRICS", "class_texts", "metric_of", "read"]
