"""`RadiographMask`, the lazy mask column: run lengths, shapes or files on disk, decoded to the size of the image.

Import this module before `datasets.load_from_disk` opens a folder that has such a column in a fresh process.
"""

from __future__ import annotations

import io
import logging
import os
import warnings
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
from datasets.features.features import register_feature
from PIL import Image

from .images import image_size, read_image
from .mask_drawing import decode_rle, draw_shape

logger = logging.getLogger(__name__)

_FILE = pa.struct({"path": pa.string(), "bytes": pa.binary(), "group": pa.int32()})
_STORAGE = pa.struct(
    {
        "kind": pa.string(),
        "data": pa.list_(pa.string()),
        "files": pa.list_(_FILE),
        "width": pa.int32(),
        "height": pa.int32(),
        "image": pa.string(),
    }
)
# A file may number its structures (left and right lung, ribs); more levels are grey.
MOST_LEVELS = 16
_JPEG = b"\xff\xd8"
_warned: set[str] = set()


def rle_mask(runs: Iterable[str], image: str | None, frame: tuple[int, int]) -> dict[str, Any]:
    """
    Stored value of masks as SIIM run lengths (see `decode_rle`), combined with OR.

    Args:
        runs: One text a mask; none at all is an empty mask.
        image: Path of the image that the mask belongs to.
        frame: Width and height in pixels that the run lengths were made for.
    """
    return _value("rle", data=list(runs), image=image, frame=frame)


def shape_mask(shapes: Iterable[str], image: str | None, frame: tuple[int, int] | None = None) -> dict[str, Any]:
    """
    Stored value of filled shapes (see `draw_shape`), combined with OR.

    Args:
        shapes: Such as "rectangle 10 20 30 40"; none at all is an empty mask.
        image: Path of the image that the mask belongs to.
        frame: Width and height in pixels that the coordinates refer to; None for the image's own.
    """
    return _value("shapes", data=list(shapes), image=image, frame=frame)


def box_mask(boxes: np.ndarray, image: str | None, frame: tuple[int, int] | None = None) -> dict[str, Any]:
    """Stored value of filled boxes, (n, 4) xyxy, combined with OR."""
    return shape_mask([format_shape("rectangle", box) for box in boxes], image, frame)


def file_mask(paths: Iterable[str], image: str | None) -> dict[str, Any]:
    """Stored value of mask files, combined with OR: any value above 0 is inside, in a JPEG any above 127."""
    return _value("files", files=[_file(path, group) for group, path in enumerate(paths)], image=image)


def roi_mask(candidates: Iterable[Sequence[str]], image: str | None) -> dict[str, Any]:
    """
    Stored value of mask files of which it is not known which they are, as in CBIS-DDSM, combined with OR.

    Args:
        candidates: For each mask the files that may be it. The one that has two values only is taken when the mask is
            read, and of several the one of the image's size.
        image: Path of the image that the mask belongs to.
    """
    groups = enumerate(candidates)
    return _value("roi", files=[_file(path, group) for group, paths in groups for path in paths], image=image)


def format_shape(kind: str, coordinates: Iterable[float]) -> str:
    """A shape as text: "rectangle" or "ellipse" with x1 y1 x2 y2, "polygon" with x1 y1 ... xn yn."""
    return " ".join([kind, *(repr(float(value)) for value in coordinates)])


def mask_paths(value: dict[str, Any] | None) -> list[str]:
    """Paths of the files that a stored value reads, without the image."""
    return [file["path"] for file in (value or {}).get("files") or [] if file["bytes"] is None]


def with_root(value: dict[str, Any] | None, root: str | os.PathLike) -> dict[str, Any] | None:
    """A stored value with its relative paths joined to `root`."""
    if value is None:
        return None
    files = [file | {"path": os.path.join(root, file["path"])} for file in value["files"]]
    return value | {"files": files, "image": value["image"] and os.path.join(root, value["image"])}


def read_mask(value: dict[str, Any], notes: Counter | None = None) -> Image.Image:
    """
    Decode a stored value.

    Args:
        value: What the functions of this module give, with paths that can be opened.
        notes: Counts what was tolerated: "resized" is a mask that had to be brought to the size of its image, "grey"
            one of files with more than 16 levels above 0 (a JPEG: with more grey pixels than bright ones).

    Returns:
        8-bit grey image of the size of the image: 255 inside, 0 outside.

    Raises:
        ValueError: Run lengths or shapes that are malformed or leave their frame, a mask file that is damaged or none
            of several candidates that is a mask. The message names the file.
        FileNotFoundError: A mask file or the image is not there.
    """
    name = f"mask of {value['image']}" if value["image"] else "mask"
    size = image_size(value["image"]) if value["image"] else None
    if value["kind"] in ("files", "roi"):
        parts = _from_files(value, size, notes)
    else:
        frame = (value["width"], value["height"]) if value["width"] is not None else size
        if frame is None:
            raise ValueError(f"{name}: neither the image nor its size is given. Expected one of them.")
        parts = [_draw(value, frame, name)]
    if not parts:
        raise ValueError(f"{name}: no mask file is named. Expected at least one.")
    size = size or parts[0].shape[::-1]
    inside = np.zeros(size[::-1], dtype=bool)
    for part in parts:
        inside |= _resized(part, size, notes)
    return Image.fromarray(inside.astype(np.uint8) * 255)


@dataclass
class RadiographMask:
    """
    Feature of a mask column, decoded by `read_mask` when a row is read.

    Rows decode to an 8-bit grey `PIL.Image.Image` of the size of the row's image, 255 inside and 0 outside; to None
    where the mask is not known. Writes take a stored value of this module, a picture or an array (above 0 is inside),
    or the path of a mask file. `save_to_disk` and `push_to_hub` embed each mask as PNG.

    Args:
        decode: With False rows give the stored value.
    """

    decode: bool = True
    id: str | None = field(default=None, repr=False)
    dtype: ClassVar[str] = "PIL.Image.Image"
    pa_type: ClassVar[Any] = _STORAGE
    _type: str = field(default="RadiographMask", init=False, repr=False)

    def __call__(self):
        return self.pa_type

    def encode_example(self, value: Any) -> dict[str, Any]:
        """Stored value of what a row is written with."""
        if isinstance(value, dict) and "kind" in value:
            return value
        if isinstance(value, dict):
            # What `datasets` makes of a picture or a file on its way into a table.
            return _value("files", files=[{"path": value.get("path"), "bytes": value.get("bytes"), "group": 0}])
        if isinstance(value, (str, os.PathLike)):
            return file_mask([os.path.abspath(value)], image=None)
        if isinstance(value, (list, np.ndarray, Image.Image)):
            return _embedded(np.asarray(value) > 0)
        raise TypeError(f"A mask is a stored value, a path, a picture or an array, got {type(value).__name__}.")

    def decode_example(self, value: Any, token_per_repo_id: dict | None = None) -> Image.Image | None:
        """Picture of a stored value; a value that is already a picture is returned as it is."""
        if not self.decode:
            raise RuntimeError("Decoding is off for this column: cast it to RadiographMask() to read masks.")
        return read_mask(value) if isinstance(value, dict) else value

    def flatten(self):
        """The feature itself: a mask is one value."""
        return self

    def cast_storage(self, storage: pa.Array) -> pa.Array:
        """An Arrow array of stored values, or of what `encode_example` takes, as the storage type."""
        if storage.type == self.pa_type:
            return storage
        values = [None if value is None else self.encode_example(value) for value in storage.to_pylist()]
        return pa.array(values, self.pa_type)

    def embed_storage(self, storage: pa.Array, token_per_repo_id=None, local_files=True, remote_files=True) -> pa.Array:
        """Stored values with the masks themselves in them instead of paths."""
        if not local_files:
            return storage
        return pa.array([value and _embed(value) for value in storage.to_pylist()], self.pa_type)


def _value(kind: str, *, data=(), files=(), image=None, frame=None) -> dict[str, Any]:
    width, height = frame or (None, None)
    return {"kind": kind, "data": data, "files": files, "width": width, "height": height, "image": image}


def _file(path: str, group: int) -> dict[str, Any]:
    return {"path": path, "bytes": None, "group": group}


def _embed(value: dict[str, Any]) -> dict[str, Any]:
    if value["image"] is None and all(file["bytes"] is not None for file in value["files"]):
        return value
    return _embedded(np.asarray(read_mask(value)) > 0)


def _embedded(inside: np.ndarray) -> dict[str, Any]:
    if inside.ndim != 2:
        raise ValueError(f"A mask has shape (H, W), got {inside.shape}.")
    stream = io.BytesIO()
    Image.fromarray(inside).save(stream, "PNG")
    return _value("files", files=[{"path": None, "bytes": stream.getvalue(), "group": 0}])


def _draw(value: dict[str, Any], frame: tuple[int, int], name: str) -> np.ndarray:
    inside = np.zeros(frame[::-1], dtype=bool)
    for text in value["data"]:
        try:
            if value["kind"] == "rle":
                inside |= decode_rle(text, *frame)
            else:
                draw_shape(inside, text)
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from None
    return inside


def _from_files(value: dict[str, Any], size: tuple[int, int] | None, notes: Counter | None) -> list[np.ndarray]:
    groups: dict[int, list] = {}
    for file in value["files"]:
        groups.setdefault(file["group"], []).append(file["path"] if file["bytes"] is None else file["bytes"])
    if value["kind"] == "files":
        found = [_inside(source) for sources in groups.values() for source in sources]
        if any(levels > MOST_LEVELS for *_, levels in found):
            _note_grey(notes)
        return [inside for inside, *_ in found]
    return [_roi(sources, size) for sources in groups.values()]


def _roi(sources: list, size: tuple[int, int] | None) -> np.ndarray:
    """The mask among the candidates: two values only, and of the image's size if one is."""
    second_best = None
    for source in sources:
        inside, two_values, _ = _inside(source)
        if two_values and size in (None, inside.shape[::-1]):
            return inside
        if two_values and second_best is None:
            second_best = inside
    if second_best is None:
        names = ", ".join(source if isinstance(source, str) else "embedded file" for source in sources)
        raise ValueError(
            f"{names}: not a mask. Expected a picture of two values, found a crop or a radiograph. Is the download "
            "complete?"
        )
    return second_best


def _inside(source: str | bytes) -> tuple[np.ndarray, bool, int]:
    """
    Mask of a file, whether its picture has the two values of one, and its number of levels above 0. Palettes are read
    as the grey they mean.
    """
    values = read_image(source, return_raw=True)
    if _is_jpeg(source):
        # Compression smears the edges of a mask over grey values, and lifts its background above 0.
        grey = (values > 32) & (values < 223)
        two_values = float(grey.mean()) < 0.02
        # Of a small mask the edges are all there is: a ramp has most of its bright pixels in between.
        return values > 127, two_values, len(np.unique(values[grey])) if grey.sum() > (values >= 223).sum() else 1
    two_values = bool(values.min() == 0 and ((values == 0) | (values == values.max())).all())
    return values > 0, two_values, 1 if two_values else len(np.unique(values[values > 0]))


def _note_grey(notes: Counter | None) -> None:
    if notes is not None:
        notes["grey"] += 1
    elif "grey" not in _warned:
        _warned.add("grey")
        logger.warning(
            "A mask file has many grey levels, such as a soft mask or a ramp: every value above 0 counts as inside (in "
            "a JPEG above 127). Said once."
        )


def _is_jpeg(source: str | bytes) -> bool:
    if isinstance(source, bytes):
        return source[:2] == _JPEG
    with open(source, "rb") as stream:
        return stream.read(2) == _JPEG


def _resized(part: np.ndarray, size: tuple[int, int], notes: Counter | None) -> np.ndarray:
    if part.shape[::-1] == size:
        return part
    if notes is not None:
        notes["resized"] += 1
    elif "resized" not in _warned:
        _warned.add("resized")
        logger.warning(
            "A mask of %d x %d pixels was brought to the %d x %d of its image (nearest neighbour). Said once.",
            *part.shape[::-1],
            *size,
        )
    return np.asarray(Image.fromarray(part).resize(size, Image.Resampling.NEAREST))


with warnings.catch_warnings():
    # `datasets` calls registration experimental; users can do nothing about it.
    warnings.simplefilter("ignore", UserWarning)
    register_feature(RadiographMask, "RadiographMask")

__all__ = [
    "RadiographMask",
    "box_mask",
    "file_mask",
    "format_shape",
    "mask_paths",
    "read_mask",
    "rle_mask",
    "roi_mask",
    "shape_mask",
    "with_root",
]
