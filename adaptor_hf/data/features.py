"""`RadiographImage`, the lazy image column: what `datasets.Image` is, read by `read_image`, so DICOM works too.

Import this module before `datasets.load_from_disk` opens a folder that has such a column in a fresh process.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass, field
from typing import ClassVar

import datasets
import pyarrow as pa
import pyarrow.compute as pc
from datasets.features.features import register_feature
from PIL import Image

from .archives import image_source, parse_member, read_member
from .reading import MODES, Reading


@dataclass
class RadiographImage(datasets.Image):
    """Feature of an image column that is decoded by `adaptor_hf.data.images.read_image` when a row is read.

    Stored as `datasets.Image` is: struct{bytes: binary, path: string}. Images stay on disk as they are. A relative path
    is relative to the working directory; `load_pairs` stores absolute ones.

    Args:
        mode: "L" or "RGB", see `Reading`.
        decode: With False rows give {"path", "bytes"}.
        min_size: Decode large JPEGs at reduced scale, see `read_image`.
        voi_lut: Apply a DICOM file's VOI LUT or window, see `read_image`.
        range_percentile: Scale from this percentile, not from minimum to maximum, see `read_image`.

    Rows decode to an 8-bit `PIL.Image.Image` and raise what `read_image` raises.
    """

    mode: str = "L"
    decode: bool = True
    min_size: int | None = None
    voi_lut: bool = False
    range_percentile: float = 0.0
    id: str | None = field(default=None, repr=False)
    dtype: ClassVar[str] = "PIL.Image.Image"
    _type: str = field(default="RadiographImage", init=False, repr=False)

    @property
    def reading(self) -> Reading:
        """How the files are read: what embeddings, the cache's key and checkpoints go by."""
        return Reading(self.mode, self.voi_lut, self.range_percentile)

    def decode_example(self, value: dict | Image.Image, token_per_repo_id: dict | None = None) -> Image.Image:
        """Picture of a stored value; a value that is already a picture is returned as it is."""
        if not self.decode:
            raise RuntimeError("Decoding is off for this column: cast it to RadiographImage() to read images.")
        if not isinstance(value, dict):
            return value
        source = image_source(value)
        if source is None:
            raise ValueError("An image column's value has neither bytes nor path: the row has no image.")
        return self.reading.read(source, self.min_size)

    def embed_storage(
        self, storage: pa.StructArray, token_per_repo_id=None, local_files: bool = True, remote_files: bool = True
    ) -> pa.StructArray:
        """Put the bytes of the files into the column, as `datasets.Image` does; also those of members of archives."""
        if local_files and pc.any(pc.match_substring(storage.field("path"), "::")).as_py():
            storage = pa.array([_embedded(value) for value in storage.to_pylist()], storage.type)
        return super().embed_storage(storage, token_per_repo_id, local_files, remote_files)


def stated_reading(dataset: datasets.Dataset | datasets.DatasetDict, column: str = "image") -> Reading | None:
    """The reading that an image column's feature states: a `RadiographImage`, or a `datasets.Image` with a mode. None
    for paths and for `datasets.Image()`, which state none."""
    part = next(iter(dataset.values()), None) if isinstance(dataset, datasets.DatasetDict) else dataset
    feature = (getattr(part, "features", None) or {}).get(column)
    if isinstance(feature, RadiographImage):
        return feature.reading
    mode = getattr(feature, "mode", None)
    return Reading(mode) if mode in MODES else None


def _embedded(value: dict | None) -> dict | None:
    member = parse_member(value["path"]) if value and not value["bytes"] and value["path"] else None
    return value if member is None else {"bytes": read_member(member), "path": member.name}


with warnings.catch_warnings():
    # `datasets` calls registration experimental; users can do nothing about it.
    warnings.simplefilter("ignore", UserWarning)
    register_feature(RadiographImage, "RadiographImage")
