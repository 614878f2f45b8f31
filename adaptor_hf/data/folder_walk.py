"""The files under a folder of images: images by their name or first bytes, all others by why they are none."""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import NamedTuple

from PIL import Image

from ..files import is_folder, open_regular
from .dicom import DICOM_SUFFIXES, HEADER_BYTES, looks_like_dicom
from .image_formats import endings

HIDDEN = "hidden or of the system"
FOREIGN = "of formats that are not read"
LINKS = "links that lead nowhere or in a circle"
TABLES = "tables that are no metadata file"
OTHER = "other files that are no images"

_SYSTEM_FILES = {"thumbs.db", "desktop.ini", "dicomdir", "icon\r"}
_SYSTEM_FOLDERS = {"__macosx", "@eadir", "$recycle.bin", "#recycle", "system volume information", "lost+found"}
_TABLES = (".csv", ".tsv", ".xlsx", ".xls", ".parquet", ".jsonl", ".json", ".csv.gz")
_TEXTS = (".txt", ".md", ".rst", ".html", ".htm", ".xml", ".py", ".ipynb", ".yaml", ".yml", ".log")
_FOREIGN = (*endings(), ".jxl", ".raw", ".dng", ".npy", ".zip", ".tar", ".tar.gz", ".7z", ".rar", ".czi")
# Pillow opens these, but they are no pictures, or need other programs.
_NO_PICTURES = {"MPEG", "HDF5", "GRIB", "BUFR", "WMF", "EPS", "FLI"}
_MAGIC = {b"\x89PNG\r\n": "PNG", b"\xff\xd8\xff": "JPEG", b"II*\0": "TIFF", b"MM\0*": "TIFF", b"GIF8": "GIF"}


class FoundImage(NamedTuple):
    """Names of the folders from the root on and of the file, its format, and its size in bytes."""

    parts: tuple[str, ...]
    kind: str
    size: int


@dataclass
class Walk:
    """What is under a folder: images in order of their parts, all folders but hidden ones, and what was passed over."""

    images: list[FoundImage] = field(default_factory=list)
    folders: list[tuple[str, ...]] = field(default_factory=list)
    foreign: list[tuple[str, ...]] = field(default_factory=list)
    """Files that hold pictures or volumes in formats that `read_image` does not read."""
    ignored: Counter = field(default_factory=Counter)


def walk_images(folder: Path) -> Walk:
    """
    All files under a folder. Links are followed, but not in circles. A file of a format that `read_image` knows is an
    image by its suffix; one of another suffix or none by its first bytes.

    Raises:
        OSError: A folder cannot be listed.
    """
    found = Walk()
    stack: list[tuple[tuple[str, ...], str, frozenset]] = [((), os.path.abspath(folder), frozenset())]
    while stack:
        parts, path, above = stack.pop()
        state = os.stat(path)
        if (state.st_dev, state.st_ino) in above:
            found.ignored[LINKS] += 1
            continue
        if parts:
            found.folders.append(parts)
        above |= {(state.st_dev, state.st_ino)}
        with os.scandir(path) as entries:
            for entry in entries:
                name = entry.name
                if is_folder(entry):
                    if name.startswith(".") or name.lower() in _SYSTEM_FOLDERS:
                        found.ignored[f"folders {HIDDEN}"] += 1
                    else:
                        stack.append(((*parts, name), entry.path, above))
                elif name.startswith(".") or name.lower() in _SYSTEM_FILES:
                    found.ignored[HIDDEN] += 1
                elif not os.path.isfile(entry.path):
                    found.ignored[LINKS if entry.is_symlink() else OTHER] += 1
                elif kind := _kind(entry.path, name):
                    found.images.append(FoundImage((*parts, name), kind, entry.stat().st_size))
                elif foreign_ending(name):
                    found.ignored[FOREIGN] += 1
                    found.foreign.append((*parts, name))
                else:
                    found.ignored[TABLES if name.lower().endswith(_TABLES) else OTHER] += 1
    found.images.sort()
    found.folders.sort()
    return found


def foreign_ending(name: str) -> str | None:
    """The ending of a file's name where it is one of pictures, volumes or archives that are not read."""
    endings = [ending for ending in _FOREIGN if name.lower().endswith(ending)]
    return max(endings, key=len, default=None)


def stem(name: str) -> str:
    """A file's name without the ending of an image; what follows a point in `1.2.840.113` is none."""
    front, ending = os.path.splitext(name)
    return front if ending.lower() in _kinds() else name


def _kind(path: str, name: str) -> str | None:
    """Format of an image file; None of any other."""
    suffix = os.path.splitext(name)[1].lower()
    if suffix in _kinds():
        return _kinds()[suffix]
    if name.lower().endswith((*_FOREIGN, *_TABLES, *_TEXTS)):
        return None
    with open_regular(path) as file:
        head = file.read(HEADER_BYTES)
    if looks_like_dicom(head):
        return "DICOM"
    return next((kind for magic, kind in _MAGIC.items() if head.startswith(magic)), None)


@cache
def _kinds() -> dict[str, str]:
    """Format of each suffix that `read_image` reads."""
    Image.init()
    pictures = {
        suffix: kind
        for suffix, kind in Image.registered_extensions().items()
        if kind in Image.OPEN and kind not in _NO_PICTURES
    }
    return pictures | dict.fromkeys(DICOM_SUFFIXES, "DICOM")


__all__ = ["FoundImage", "Walk", "foreign_ending", "stem", "walk_images"]
