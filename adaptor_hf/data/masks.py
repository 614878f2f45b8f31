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

from ..files import printable
from .boxes import box_fault, reaches_out, same_shape
from .images import image_size
from .mask_drawing import decode_rle, draw_shape, parse_shape, shape_box
from .mask_values import MASK_VALUES, MaskValues, array_values

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
MASK_SIZES = ("scaled", "stretch")
"""What may have another size than its image: "scaled", a copy of the same shape, up to the rounding of its sides to
whole pixels; "stretch", any mask."""

# Of a mask that is most likely inverted: shares of all pixels and of those at the edges that are inside.
_INVERTED, _INVERTED_EDGE = 0.5, 0.9
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


def file_mask(
    paths: Iterable[str], image: str | None, *, values: str = "binary", size: str = "scaled"
) -> dict[str, Any]:
    """
    Stored value of mask files, combined with OR.

    Args:
        paths: Of the files.
        image: Path of the image that the mask belongs to.
        values: One of `MASK_VALUES`: what is inside.
        size: One of `MASK_SIZES`: which masks of another size than the image are brought to its size.
    """
    for name, value, known in (("mask_values", values, MASK_VALUES), ("mask_size", size, MASK_SIZES)):
        if value not in known:
            raise ValueError(f"--{name} is one of {', '.join(known)}, got {value!r}.")
    # Only what was asked for: the digest of masks that are read by the rule stays as it is.
    asked = [word for word in (values, size) if word not in ("binary", "scaled")]
    return _value("files", data=asked, files=[_file(path, group) for group, path in enumerate(paths)], image=image)


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
            one of files with grey edges, which were cut at half of the maximum, "cut" one with a shape that leaves the
            image by more than a pixel, "inverted" one that is most likely inverted: inside at the edges of the image
            and in most of it.

    Returns:
        8-bit grey image of the size of the image: 255 inside, 0 outside.

    Raises:
        ValueError: Run lengths that are malformed or leave their frame; a shape that is malformed, without area, with
            exchanged corners or outside the image; a file that is damaged or whose values are no mask (see
            `MASK_VALUES`), or none of several candidates that is one; a mask of another shape than its image (see
            `MASK_SIZES`). The message names the file.
        FileNotFoundError: A mask file or the image is not there.
    """
    name = f"mask of {printable(value['image'])}" if value["image"] else "mask"
    size = image_size(value["image"]) if value["image"] else None
    stretched = value["kind"] == "roi" or (value["kind"] == "files" and "stretch" in _asked(value))
    if value["kind"] in ("files", "roi"):
        parts = _from_files(value, size, notes)
    else:
        frame = (value["width"], value["height"]) if value["width"] is not None else size
        if frame is None:
            raise ValueError(f"{name}: neither the image nor its size is given. Expected one of them.")
        parts = [_draw(value, frame, name, notes)]
    if not parts:
        raise ValueError(f"{name}: no mask file is named. Expected at least one.")
    size = size or parts[0].shape[::-1]
    inside = np.zeros(size[::-1], dtype=bool)
    for part in parts:
        if not stretched:
            _check_shape(part.shape[::-1], size, value["kind"], name)
        inside |= _resized(part, size, notes)
    if _looks_inverted(inside):
        _note("inverted", notes, "A mask is inside in most of its image and along its edges: is it inverted?")
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
        if isinstance(value, Image.Image):
            stream = io.BytesIO()
            value.save(stream, "PNG")
            return _embedded(MaskValues.read(stream.getvalue()).inside()[0])
        if isinstance(value, (list, np.ndarray)):
            return _embedded(array_values(np.asarray(value)).inside()[0])
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


def _asked(value: dict[str, Any]) -> list[str]:
    """How files are read, where not by the rule: see `file_mask`."""
    return [] if value["data"] is None else list(value["data"])


def _draw(value: dict[str, Any], frame: tuple[int, int], name: str, notes: Counter | None) -> np.ndarray:
    inside = np.zeros(frame[::-1], dtype=bool)
    try:
        if value["kind"] == "rle":
            for runs in value["data"]:
                inside |= decode_rle(runs, *frame)
            return inside
        boxes = [_checked_box(text, frame) for text in value["data"]]
        for text in value["data"]:
            draw_shape(inside, text)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from None
    if len(boxes) and reaches_out(boxes, frame).any():
        _note("cut", notes, "A shape of a mask leaves its image: the part outside is cut off.")
    return inside


def _checked_box(text: str, frame: tuple[int, int]) -> np.ndarray:
    kind, points = parse_shape(text)
    box = shape_box(points) if kind == "polygon" else points.ravel()
    if fault := box_fault(box, frame):
        raise ValueError(fault)
    return box


def _from_files(value: dict[str, Any], size: tuple[int, int] | None, notes: Counter | None) -> list[np.ndarray]:
    groups: dict[int, list] = {}
    for file in value["files"]:
        groups.setdefault(file["group"], []).append(file["path"] if file["bytes"] is None else file["bytes"])
    if value["kind"] == "roi":
        return [_roi(sources, size) for sources in groups.values()]
    rule = next((word for word in _asked(value) if word in MASK_VALUES), "binary")
    found, grey = [], False
    for source in (source for sources in groups.values() for source in sources):
        try:
            inside, cut = MaskValues.read(source).inside(rule)
        except ValueError as error:
            name = printable(source) if isinstance(source, str) else "embedded mask"
            raise ValueError(str(error) if str(error).startswith(name) else f"{name}: {error}") from None
        found.append(inside)
        grey |= cut
    if grey:
        _note("grey", notes, "A mask file has grey pixels beside its two values, such as soft edges: they are cut at "
                             "half of its maximum.")  # fmt: skip
    return found


def _roi(sources: list, size: tuple[int, int] | None) -> np.ndarray:
    """The mask among the candidates: two values only, and of the image's size if one is."""
    second_best = None
    for source in sources:
        values = MaskValues.read(source)
        if not values.two_values:
            continue
        inside, _ = values.inside("half")
        if size in (None, inside.shape[::-1]):
            return inside
        second_best = inside if second_best is None else second_best
    if second_best is None:
        names = ", ".join(source if isinstance(source, str) else "embedded file" for source in sources)
        raise ValueError(
            f"{names}: not a mask. Expected a picture of two values, found a crop or a radiograph. Is the download "
            "complete?"
        )
    return second_best


def _looks_inverted(inside: np.ndarray) -> bool:
    if inside.all() or inside.mean() <= _INVERTED:
        return False
    edges = np.concatenate([inside[0], inside[-1], inside[:, 0], inside[:, -1]])
    return bool(edges.mean() > _INVERTED_EDGE)


def _note(kind: str, notes: Counter | None, message: str) -> None:
    """Count what was tolerated, or say it once where nobody counts."""
    if notes is not None:
        notes[kind] += 1
    elif kind not in _warned:
        _warned.add(kind)
        logger.warning("%s Said once.", message)


def _check_shape(found: tuple[int, int], size: tuple[int, int], kind: str, name: str) -> None:
    if same_shape(found, size):
        return
    what = "the mask has" if kind == "files" else "the mask was made for"
    turned = same_shape(found[::-1], size)
    hint = " Its sides are exchanged: is one of them turned, or the image stored on its side (EXIF)?" if turned else ""
    out = (
        "Use masks of this image, or --mask_size stretch to bring each to the size of its image."
        if kind == "files"
        else "Use the images that the masks were made for, or copies of the same shape."
    )
    raise ValueError(
        f"{name}: {what} {found[0]} x {found[1]} pixels, the image {size[0]} x {size[1]}: another shape, so where the "
        f"mask lies in the image is not known.{hint} {out}"
    )


def _resized(part: np.ndarray, size: tuple[int, int], notes: Counter | None) -> np.ndarray:
    if part.shape[::-1] == size:
        return part
    own, wanted = (f"{width} x {height}" for width, height in (part.shape[::-1], size))
    _note("resized", notes, f"A mask of {own} pixels was brought to the {wanted} of its image (nearest neighbour).")
    return np.asarray(Image.fromarray(part).resize(size, Image.Resampling.NEAREST))


with warnings.catch_warnings():
    # `datasets` calls registration experimental; users can do nothing about it.
    warnings.simplefilter("ignore", UserWarning)
    register_feature(RadiographMask, "RadiographMask")

__all__ = [
    "MASK_SIZES",
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
