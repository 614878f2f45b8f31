"""Whether the files of a data set are in colour: a sample is looked at, since their format does not tell."""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from .archives import image_source
from .dicom import DICOM_SUFFIXES, HEADER_BYTES, is_grey_dicom, looks_like_dicom
from .images import opened, read_image

if TYPE_CHECKING:
    import datasets

logger = logging.getLogger(__name__)

SAMPLE = 200
"""Files that are looked at."""
CHROMA = 20
"""Levels of 255 by which channels of a pixel must differ. JPEG at quality 75 moves grey ones by 5 at most, a film that
was photographed has a cast of about 10."""
PIXEL_SHARE = 0.01
"""Share of a picture's pixels that must be in colour: a marker in a corner of a radiograph is less."""
FILE_SHARE = 0.05
"""Share of the files that must be in colour for a data set to be read in colour."""

_SIDE = 128
_GREY_MODES = ("1", "L", "LA", "La", "I", "F", "I;16", "I;16L", "I;16B", "I;16N")


@dataclass(frozen=True)
class ColourCounts:
    """Files of a sample: in colour, grey, and those that cannot be read."""

    colour: int = 0
    grey: int = 0
    unreadable: int = 0

    @property
    def mode(self) -> str:
        """ "RGB" where at least `FILE_SHARE` of the readable files are in colour, else "L"."""
        return "RGB" if self.colour and self.colour >= FILE_SHARE * (self.colour + self.grey) else "L"

    @property
    def mixed(self) -> bool:
        """Whether there are files of both kinds."""
        return self.colour > 0 and self.grey > 0

    def __str__(self) -> str:
        unreadable = f"; {self.unreadable} more cannot be read" if self.unreadable else ""
        return f"{self.colour} of {self.colour + self.grey} files looked at are in colour{unreadable}"


def is_colour(source: Any) -> bool:
    """
    Whether a picture has colour, whatever its format: channels that differ by more than `CHROMA` levels in over
    `PIXEL_SHARE` of the pixels, in a copy of at most 128 pixels a side. A grey picture that is stored as RGB, with a
    palette or with alpha is grey. Files of one channel are told by their header.

    Args:
        source: As for `read_image`.

    Raises:
        What `read_image` raises.
    """
    if not isinstance(source, (np.ndarray, Image.Image)):
        with opened(source) as (stream, name):
            head = stream.read(HEADER_BYTES)
            stream.seek(0)
            if looks_like_dicom(head) or os.path.splitext(name)[1].lower() in DICOM_SUFFIXES:
                if is_grey_dicom(stream):
                    return False
            elif _grey_header(stream):
                return False
    picture = read_image(source, mode="RGB", min_size=_SIDE)
    # Averages over many pixels: what compression adds to single ones goes.
    picture.thumbnail((_SIDE, _SIDE), Image.Resampling.BOX)
    pixels = np.asarray(picture).astype(np.int16)
    return float((pixels.max(axis=2) - pixels.min(axis=2) > CHROMA).mean()) > PIXEL_SHARE


def count_colour(dataset: datasets.Dataset, sample: int = SAMPLE, seed: int = 0) -> ColourCounts:
    """
    Look at the images of some rows, drawn by the seed: the same rows of the same table each time.

    Args:
        dataset: With a column `image` of paths, or of `datasets.Image` or `RadiographImage`.
        sample: Rows at most.
    """
    rows = np.arange(len(dataset))
    if len(rows) > sample:
        rows = np.sort(np.random.default_rng(seed).choice(rows, sample, replace=False))
    values = dataset.select_columns(["image"]).with_format("arrow")
    counts = {"colour": 0, "grey": 0, "unreadable": 0}
    for row in rows:
        value = values[[int(row)]].column("image")[0].as_py()
        source = image_source(value) if isinstance(value, dict) else value
        try:
            counts["colour" if is_colour(source) else "grey"] += 1
        except (OSError, ValueError, ImportError, TypeError):
            # Building the cache, or reading the row, says what is wrong with the file.
            counts["unreadable"] += 1
    return ColourCounts(**counts)


def choose_mode(dataset: datasets.Dataset, override: str = "image_mode={}") -> str:
    """
    "L" or "RGB" by what `count_colour` finds, with a line in the log; a warning where files are of both kinds. Where no
    file can be read it is "L".

    Args:
        override: What messages say overrides the choice, with {} for the other mode.
    """
    counts = count_colour(dataset)
    other = {"L": "RGB", "RGB": "L"}[counts.mode]
    log = logger.warning if counts.mixed else logger.info
    rule = f" At {FILE_SHARE:.0%} or more all are read in colour, below that as grey." if counts.mixed else ""
    if counts.colour or counts.grey:
        log("Images are read as %s: %s.%s %s overrides it.", counts.mode, counts, rule, override.format(other))
    return counts.mode


def warn_of_colour(dataset: datasets.Dataset) -> None:
    """A warning where images are to be read as grey, as a model may ask, and enough of them are in colour."""
    if (counts := count_colour(dataset)).mode == "RGB":
        logger.warning(
            "Images are read as grey (image_mode=L), but %s: their colour is not used. A model has to be trained with "
            "image_mode=RGB to use it.",
            counts,
        )


def _grey_header(stream) -> bool:
    """Whether a file's header says that it has one channel; its pixels are not decoded."""
    try:
        return Image.open(stream).mode in _GREY_MODES
    except Exception:
        # Whatever a damaged file raises, `read_image` names it.
        return False
    finally:
        stream.seek(0)


__all__ = ["ColourCounts", "choose_mode", "count_colour", "is_colour", "warn_of_colour"]
