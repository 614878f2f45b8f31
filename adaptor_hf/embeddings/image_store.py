"""Resized images kept on disk, so that a second tower need not decode large files again.

One PNG a source image: grey or RGB, 8 bit, without loss, shorter side at most `size` pixels. Behind the PNG's end,
where decoders do not look, come the digest of the source file's content and a digest of all before it and of the
file's name, so that no other image takes its place. A file is renamed when whole; one that does not fit its digest is
made anew. Version 0.1 left out the name: its files are used, and a swap of two is not noticed. Towers see what was
stored, whether it was there or just made.
"""

import io
import logging
import os
from pathlib import Path
from typing import Any

from ..data.content_keys import digest
from ..data.reading import Reading
from ..files import read_regular
from .files import write_bytes

logger = logging.getLogger(__name__)

# Part of the key of the embeddings: raise it when `shrink` or the reading of images changes.
STORE_VERSION = 1
GREY = Reading()
_DIGEST = 16


class ImageStore:
    """Folder of resized images; several caches, towers and processes may share it.

    Args:
        folder: the folder, made when something is written.
        size: largest shorter side in pixels; smaller images are kept as they are.
        reading: how files are read: images of another reading have a folder of their own.
    """

    def __init__(self, folder: str | os.PathLike, size: int, reading: Reading = GREY) -> None:
        self.folder = Path(folder)
        self.size = size
        self.reading = reading

    @property
    def identity(self) -> dict:
        """What it does to an image: part of the key of the embeddings made from it."""
        return {"size": self.size, "version": STORE_VERSION}

    def check(self, tower_size: int | None) -> None:
        """Refuse a tower that takes larger images than the stored ones.

        Raises:
            ValueError: `tower_size` in pixels is more than `size`.
        """
        if tower_size is not None and tower_size > self.size:
            raise ValueError(
                f"the vision tower takes images of {tower_size} pixels, and image_store_size is {self.size}: set "
                f"image_store_size={tower_size} or more"
            )

    @property
    def min_size(self) -> int:
        """What `read_image` should keep of a large JPEG."""
        return 3 * self.size

    def path(self, key: bytes) -> Path:
        """File of the image with this source key."""
        name = digest(key).hex()
        folder = f"{self.size}-v{STORE_VERSION}" + ("-rgb" if self.reading.mode == "RGB" else "")
        folder += "-voi" if self.reading.voi_lut else ""
        folder += f"-p{float(self.reading.range_percentile)}" if self.reading.range_percentile else ""
        return self.folder / folder / name[:2] / f"{name}.png"

    def read(self, key: bytes) -> tuple[Any, bytes] | None:
        """Stored PIL image and digest of its source's content; None when it is not there, or damaged."""
        from PIL import Image

        path = self.path(key)
        try:
            data = read_regular(path)
        except FileNotFoundError:
            return None
        sealed = data[:-_DIGEST]
        if data[-_DIGEST:] not in (digest(sealed + path.name.encode()), digest(sealed)):
            logger.warning("%s is damaged: it is made again from its source", path)
            return None
        image = Image.open(io.BytesIO(data))
        image.load()
        return image, data[-2 * _DIGEST : -_DIGEST]

    def write(self, key: bytes, image: Any, content: bytes) -> None:
        """Keep an image that `shrink` gave.

        Raises:
            OSError: the folder cannot be written; the message names it.
        """
        encoded = io.BytesIO()
        image.save(encoded, "PNG", compress_level=1)
        data = encoded.getvalue() + content
        path = self.path(key)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_bytes(path, data + digest(data + path.name.encode()))

    def shrink(self, image: Any) -> Any:
        """PIL image with a shorter side of at most `size` pixels, aspect kept."""
        from PIL import Image

        width, height = image.size
        if min(width, height) <= self.size:
            return image
        # As the image processors do it: a tower of this size and filter gets the same pixels as from the file.
        if width <= height:
            shape = self.size, int(self.size * height / width)
        else:
            shape = int(self.size * width / height), self.size
        return image.resize(shape, Image.Resampling.BICUBIC)
