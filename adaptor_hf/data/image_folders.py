"""Folders of class folders as tables: the names of folders are the labels."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa

from ..files import open_regular
from .content_keys import content_key, digest
from .folder_walk import FoundImage, Walk, foreign_ending, stem, walk_images
from .missing import is_missing
from .positive import VAGUE_WORDS, spelling_key
from .splits import SPLIT_ALIASES

SUBFOLDER = "subfolder"
"""Column of a table of class folders: the folder between class and file, where there is one."""

_IMAGE_WORDS = {"image", "images", "img", "imgs"}
_MASK_WORDS = {"mask", "masks", "seg", "segs", "segmentation", "segmentations", "annotation", "annotations", "gt",
               "labels"}  # fmt: skip
_NO_MASK = {"no", "non", "not", "with", "without"}
_MASK_FILE = re.compile(r"(?P<image>.+?)[\s_-]+(?:masks?|seg|segmentation)(?:[\s_-]*\d+)?", re.IGNORECASE)
# Images above the level of the classes that are passed over; more of them are another layout.
_STRAY_SHARE = 0.05
_HEAD_BYTES = 4096
_SHOWN = 5
_WAY_OUT = "Or write the images and their labels into a table (metadata.csv in the folder, with a column file_name)."


@dataclass
class ClassFolders:
    """
    Images of a folder of class folders, in order of their paths, and what is to be said about them.

    Args:
        root (`Path`): The folder, absolute.
        images (`list[FoundImage]`): Those that are read.
        labels (`list[str]`): Name of each image's class folder.
        splits (`list[str]`, *optional*): Name of each image's folder of a split.
        subfolders (`list[str]`, *optional*): Name of the folder between class and file.
        ignored (`Counter`): Files that are passed over, by kind.
        warnings (`list[str]`): What may mislead, without names of files.
    """

    root: Path
    images: list[FoundImage]
    labels: list[str]
    splits: list[str] | None = None
    subfolders: list[str] | None = None
    ignored: Counter = field(default_factory=Counter)
    warnings: list[str] = field(default_factory=list)

    def table(self) -> pa.Table:
        """Columns `image` (absolute paths), `label`, and `subfolder` where there is such a level."""
        columns = {"image": [os.path.join(self.root, *image.parts) for image in self.images], "label": self.labels}
        if self.subfolders is not None:
            columns[SUBFOLDER] = self.subfolders
        return pa.table({name: pa.array(cells, pa.string()) for name, cells in columns.items()})

    def counts(self) -> dict[str, Any]:
        """Numbers of classes, images, subfolders, images by format and files passed over."""
        return {
            "classes": len(set(self.labels)),
            "images": len(self.images),
            "subfolders": len(set(self.subfolders or ())),
            "formats": dict(Counter(image.kind for image in self.images).most_common()),
            "ignored": dict(self.ignored.most_common()),
        }

    def check_columns(self, text_column: str | None, told: Iterable[str | None]) -> None:
        """
        Refuse a run that needs what class folders do not have, or that does not say what the subfolders are.

        Args:
            text_column (`str`, *optional*): Column of reports.
            told (`Iterable[str]`): Columns that the run gives a meaning.

        Raises:
            ValueError: reports are wanted, or there are subfolders whose meaning nobody told.
        """
        if text_column is not None:
            raise ValueError(
                f"{self.root}: a folder of {len(set(self.labels))} class folders has no reports. Pairs need a "
                "metadata.csv in the folder, with columns file_name and text."
            )
        if self.subfolders is None or SUBFOLDER in told:
            return
        images = Counter(zip(self.labels, self.subfolders, strict=True))
        lone = " There is one class folder: if the classes are the level below, name that folder." * (
            len(set(self.labels)) == 1
        )
        raise ValueError(
            f"{self.root}: between the class folders and the images is one more level of {len(images)} folders with "
            f"{min(images.values())} to {max(images.values())} images each, and nothing says what they are. If each is "
            f"a patient, pass --patient_column {SUBFOLDER}; if a study, --study_column {SUBFOLDER}. If they mean "
            f"nothing, move the images up into the class folders.{lone} {_WAY_OUT}"
        )

    def copies(self, rows: Iterable[int] | None = None) -> list[tuple[int, int]]:
        """
        Images that are byte copies of one of another class: rows of the first such one and of the copy.

        Args:
            rows (`Iterable[int]`, *optional*): Of which images; None is all.
        """
        keys = [spelling_key(label) for label in self.labels]
        groups: dict[Any, list[int]] = {}
        for place in range(len(self.images)) if rows is None else rows:
            if not is_missing(self.labels[place]):
                groups.setdefault(self.images[place].size, []).append(place)
        # Most files differ in size, or early: few are read to their end.
        for key in (self._head, self._content):
            finer: dict[Any, list[int]] = {}
            for name, places in groups.items():
                if len({keys[place] for place in places}) > 1:
                    for place in places:
                        finer.setdefault((name, key(place)), []).append(place)
            groups = finer
        groups = {name: places for name, places in groups.items() if len({keys[place] for place in places}) > 1}
        return sorted(
            (places[0], place) for places in groups.values() for place in places if keys[place] != keys[places[0]]
        )

    def _head(self, place: int) -> bytes:
        with open_regular(os.path.join(self.root, *self.images[place].parts)) as file:
            return digest(file.read(_HEAD_BYTES))

    def _content(self, place: int) -> bytes:
        return content_key(os.path.join(self.root, *self.images[place].parts))


def describe_folder(counts: dict[str, Any]) -> str:
    """The numbers of `ClassFolders.counts` as a line, without any name."""
    formats = ", ".join(f"{count} {kind}" for kind, count in counts["formats"].items())
    subfolders = f", {counts['subfolders']} folders below them" if counts["subfolders"] else ""
    ignored = ", ".join(f"{count} {kind}" for kind, count in counts["ignored"].items())
    return (
        f"Class folders: {counts['classes']} classes{subfolders}, {counts['images']} images ({formats}); passed over: "
        f"{ignored or 'nothing'}."
    )


def copies_message(copies: Sequence[tuple[int, int]]) -> str:
    """What is said of images in two classes. Rows are numbered in the order of the paths."""
    shown = ", ".join(f"{first} and {copy}" for first, copy in copies[:_SHOWN])
    more = f", and {len(copies) - _SHOWN} more" if len(copies) > _SHOWN else ""
    return (
        f"{len(copies)} images are byte copies of an image in another class folder: data rows {shown}{more} (images in "
        "order of their paths, 0-based). One picture cannot be of two classes that exclude each other: take the copies "
        "out, or where an image has several labels, write a table with a column of 0 and 1 for each."
    )


def read_class_folders(folder: Path) -> ClassFolders | None:
    """
    A folder of class folders: `CLASS/image` or `SPLIT/CLASS/image`, with one more level under the classes if need be.

    Folders are splits where all that hold images at the top are called so (`SPLIT_ALIASES`, in any case). Files and
    folders of masks beside images are no images. Names of files decide nothing else.

    Returns:
        None where no folder in it holds an image.

    Raises:
        ValueError: another layout, saying at which level how many images are; a split without a class that another has;
            names that are no Unicode.
    """
    walk = walk_images(folder)
    root = Path(os.path.abspath(folder))
    if not any(len(image.parts) > 1 for image in walk.images):
        if inside := [parts for parts in walk.foreign if len(parts) > 1]:
            raise ValueError(f"{root}: its folders hold files of formats that are not read: {_endings(inside)}.")
        return None
    _check_unicode(walk, root)
    first = {image.parts[0] for image in walk.images if len(image.parts) > 1}
    named = sorted(name for name in first if _is_split(name))
    if named and len(named) < len(first):
        others = sorted(first - set(named))
        raise ValueError(
            f"{root}: of its {len(first)} folders with images {_names(named)} {_is(named)} called as a split is, "
            f"{_names(others)} {_is(others)} not. If they are classes, rename {_names(named)} (such as "
            f"{named[0] + '_class'!r}); if they are splits, keep nothing else beside them. {_WAY_OUT}"
        )
    start = int(bool(named))
    images = _without_masks(_without_stray(walk, start, root), start, walk, root)
    level, *below = _levels(images, start, root)
    result = ClassFolders(root, images, [image.parts[level] for image in images], ignored=+walk.ignored)
    if named:
        result.splits = [image.parts[0] for image in images]
    if below:
        result.subfolders = [image.parts[below[0]] for image in images]
    _check_classes(result, walk, level, start)
    _warn(result)
    return result


def _check_unicode(walk: Walk, root: Path) -> None:
    wrong = 0
    for image in walk.images:
        try:
            "/".join(image.parts).encode("utf-8")
        except UnicodeEncodeError:
            wrong += 1
    if wrong:
        raise ValueError(f"{root}: the paths of {wrong} images are no Unicode text (UTF-8). Rename files and folders.")


def _without_stray(walk: Walk, start: int, root: Path) -> list[FoundImage]:
    """Images in some folder below the splits; few beside the class folders are passed over and counted."""
    inside = [image for image in walk.images if len(image.parts) > start + 1]
    stray = len(walk.images) - len(inside)
    where = "the folders of splits" if start else "the folder"
    if not inside:
        raise ValueError(f"{root}: {stray} images lie in {where} itself and none in folders of classes. {_WAY_OUT}")
    if stray > max(1, _STRAY_SHARE * len(walk.images)):
        raise ValueError(
            f"{root}: mixed depths: {stray} images lie in {where} itself, {len(inside)} in folders below. Each needs a "
            f"class folder: move them, or take them out. {_WAY_OUT}"
        )
    walk.ignored["images in no class folder"] += stray
    return inside


def _without_masks(images: list[FoundImage], start: int, walk: Walk, root: Path) -> list[FoundImage]:
    """Images without those in folders of masks, and without `x_mask.png` beside `x.png`."""
    classes = {image.parts[start] for image in images}
    masks = sorted(name for name in classes if _is_mask_word(name))
    plain = sorted(name for name in classes if _is_image_word(name))
    if 0 < len(masks) + len(plain) < len(classes):
        called = [*plain, *masks]
        raise ValueError(
            f"{root}: {_names(called)} {_is(called)} called as folders of images or masks are, and would be "
            f"{len(called)} of {len(classes)} classes. Move them out, or rename them if they are classes. {_WAY_OUT}"
        )
    names = {(image.parts[:-1], stem(image.parts[-1])) for image in images}
    kept, in_folders, by_name = [], 0, 0
    for image in images:
        beside = _MASK_FILE.fullmatch(stem(image.parts[-1]))
        if any(map(_is_mask_word, image.parts[start:-1])):
            in_folders += 1
        elif beside is not None and (image.parts[:-1], beside["image"]) in names:
            by_name += 1
        else:
            kept.append(image)
    walk.ignored["masks, by the name of their folder"] += in_folders
    walk.ignored["masks, by their name beside an image's"] += by_name
    if not kept:
        raise ValueError(f"{root}: all {len(images)} images lie in folders called as masks are. Rename the folders.")
    return kept


def _levels(images: list[FoundImage], start: int, root: Path) -> list[int]:
    """Places of the class and, if there is one, of the subfolder among the parts of a path; all are at one depth."""
    depths = Counter(len(image.parts) - 1 - start for image in images)
    if len(depths) > 1:
        counts = ", ".join(f"{depths[depth]} with {depth} folders above them" for depth in sorted(depths))
        below = " below the splits" * start
        raise ValueError(
            f"{root}: mixed depths{below}: images are {counts}. All class folders need the same layout. {_WAY_OUT}"
        )
    # A level that is "images" everywhere says nothing.
    levels = [
        level
        for level in range(start, len(images[0].parts) - 1)
        if not all(_is_image_word(image.parts[level]) for image in images)
    ]
    if not levels:
        raise ValueError(
            f"{root}: its folders are called as folders of images and masks are, and none is a class. For masks, write "
            "a table with columns file_name and mask (metadata.csv in the folder) and pass --mask_column mask."
        )
    for level in levels[1:]:
        if all(_is_split(image.parts[level]) for image in images):
            raise ValueError(
                f"{root}: folders that are called as splits are lie {level} levels down. Splits are the first level, "
                "classes the next: name the folder that holds the splits, or move the classes into them."
            )
    if len(levels) > 2:
        raise ValueError(
            f"{root}: the images lie {len(levels) - 1} levels below their class folders, expected none or one. "
            f"{_WAY_OUT}"
        )
    return levels


def _check_classes(result: ClassFolders, walk: Walk, level: int, start: int) -> None:
    """Refuse a split that lacks a class and a class in formats that are not read; count folders without an image."""
    full = {image.parts[: level + 1] for image in result.images}
    foreign = [parts for parts in walk.foreign if len(parts) > level + 1]
    if unread := {parts[: level + 1] for parts in foreign} - full:
        raise ValueError(
            f"{result.root}: {len(unread)} class folders hold no image but files of formats that are not read "
            f"({_endings(foreign)}). Convert them to PNG or DICOM, or take the folders out."
        )
    if foreign:
        result.warnings.append(f"{len(foreign)} files in class folders are not read: {_endings(foreign)}.")
    empty = [
        parts
        for parts in walk.folders
        if len(parts) == level + 1 and parts not in full and not any(map(_is_mask_word, parts))
        and (not start or _is_split(parts[0]))
    ]  # fmt: skip
    if empty:
        result.warnings.append(f"{len(empty)} folders at the level of the classes have no image and are no classes.")
    if result.splits is None:
        return
    spelled = sorted(set(result.splits))
    if len({SPLIT_ALIASES[_plain(name)] for name in spelled}) < len(spelled):
        result.warnings.append(f"Several folders are one split: {_names(spelled)}.")
    bare = sum(len(parts) == 1 and _is_split(parts[0]) and parts[0] not in spelled for parts in walk.folders)
    if bare:
        result.warnings.append(f"{bare} folders of splits have no image.")
    of_split: dict[str, dict[str, str]] = {}
    for split, label in zip(result.splits, result.labels, strict=True):
        classes = of_split.setdefault(SPLIT_ALIASES[_plain(split)], {})
        if not is_missing(label):
            classes[spelling_key(label)] = label
    everywhere = {key: label for classes in of_split.values() for key, label in classes.items()}
    for split, classes in of_split.items():
        if lacking := sorted(everywhere[key] for key in everywhere.keys() - classes.keys()):
            raise ValueError(
                f"{result.root}: the split {split} has no image of {len(lacking)} of {len(everywhere)} classes: "
                f"{_names(lacking)}. Is the folder complete? If so, write a table, or merge the folders of the splits: "
                "rows are then split by patient."
            )


def _warn(result: ClassFolders) -> None:
    classes = Counter(result.labels)
    counts: dict[str, Counter] = {label: Counter() for label in classes}
    for image, label in zip(result.images, result.labels, strict=True):
        counts[label][image.kind] += 1
    kinds = sorted({image.kind for image in result.images})
    shares = {label: [counts[label][kind] / classes[label] for kind in kinds] for label in classes}
    apart = max(
        (sum(abs(x - y) for x, y in zip(a, b, strict=True)) / 2 for a in shares.values() for b in shares.values()),
        default=0,
    )
    if apart >= 0.5:
        shown = "; ".join(
            f"{label!r} " + ", ".join(f"{count} {kind}" for kind, count in counts[label].most_common())
            for label in sorted(classes)[:_SHOWN]
        )
        result.warnings.append(
            f"The file format tells the class of most images ({shown}): what a format does to pixels is then learnt "
            "instead of findings. Convert all images in one way."
        )
    stems = Counter((image.parts[:-1], stem(image.parts[-1])) for image in result.images)
    if twice := sum(count - 1 for count in stems.values() if count > 1):
        result.warnings.append(
            f"{twice} images have the name of another in their folder but for the ending: a picture that is saved in "
            "two formats counts twice, and may be in two splits. Keep one of each."
        )
    for label in sorted(classes):
        if spelling_key(label) in VAGUE_WORDS:
            result.warnings.append(
                f"The folder {label!r} ({classes[label]} images) is a class of its own, unless --missing_word "
                f"{spelling_key(label)} says that its images have no label."
            )
        elif is_missing(label):
            result.warnings.append(
                f"The folder {label!r} ({classes[label]} images) is called by a word for a missing value: its images "
                "have no label. If it is a class, rename the folder."
            )
    of_name: dict[str, set[str]] = {}
    for label, subfolder in zip(result.labels, result.subfolders or (), strict=False):
        of_name.setdefault(subfolder, set()).add(label)
    if shared := sum(len(labels) > 1 for labels in of_name.values()):
        result.warnings.append(
            f"{shared} of {len(of_name)} names of folders below the classes are there in several classes: taken as "
            "patients, each is one."
        )


def _endings(files: Sequence[tuple[str, ...]]) -> str:
    found = Counter(foreign_ending(parts[-1]) for parts in files)
    return ", ".join(f"{count} {ending}" for ending, count in found.most_common(_SHOWN))


def _plain(name: str) -> str:
    return name.strip().lower()


def _is_split(name: str) -> bool:
    return _plain(name) in SPLIT_ALIASES


def _is_image_word(name: str) -> bool:
    return _plain(name) in _IMAGE_WORDS


def _is_mask_word(name: str) -> bool:
    """Such as "masks", "lung masks", "leftMask"; not "no_mask"."""
    words = re.findall(r"[^\W\d_]+", re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name).lower())
    return bool(words) and not _NO_MASK & set(words) and (words[-1] in _MASK_WORDS or words == ["ground", "truth"])


def _names(names: Sequence[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(map(repr, names[:_SHOWN])) + more


def _is(names: Sequence[str]) -> str:
    return "is" if len(names) == 1 else "are"


__all__ = [
    "SUBFOLDER",
    "ClassFolders",
    "copies_message",
    "describe_folder",
    "read_class_folders",
]
