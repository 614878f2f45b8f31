"""`MultiLabel` and `BoxList`: columns of several labels and of boxes, as registered features of `datasets`.

Import this module before `datasets.load_from_disk` opens a folder that has such a column in a fresh process.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
import pyarrow as pa
from datasets.features.features import register_feature
from datasets.table import array_cast


@dataclass
class MultiLabel:
    """Feature of several labels a row: a float32 list of fixed length, NaN for unknown.

    Args:
        names: Name of each label, in order: `dataset.features["labels"].names`.

    Rows decode to a list of floats, or to an array or tensor in those formats. In raw labels 1 is positive, 0
    negative, -1 uncertain.
    """

    names: list[str]
    id: str | None = field(default=None, repr=False)
    dtype: ClassVar[str] = "float32"
    _type: str = field(default="MultiLabel", init=False, repr=False)

    def __post_init__(self):
        self.names = list(self.names)

    def __call__(self) -> pa.DataType:
        return pa.list_(pa.float32(), len(self.names))

    def encode_example(self, value) -> list[float]:
        """Values of one row. Raises ValueError where there are more or fewer than names."""
        values = [float("nan") if item is None else float(item) for item in value]
        if len(values) != len(self.names):
            raise ValueError(f"A row has {len(values)} labels, expected {len(self.names)}: {', '.join(self.names)}.")
        return values

    def cast_storage(self, storage: pa.Array) -> pa.Array:
        return array_cast(storage, self())


@dataclass
class BoxList:
    """Feature of a row's boxes: xyxy in pixels of the original image.

    Rows decode to a float32 array of shape (n, 4); without box, (0, 4).
    """

    id: str | None = field(default=None, repr=False)
    dtype: ClassVar[str] = "float32"
    _type: str = field(default="BoxList", init=False, repr=False)

    def __call__(self) -> pa.DataType:
        return pa.list_(pa.list_(pa.float32(), 4))

    def encode_example(self, value) -> list[list[float]]:
        """Boxes of one row. Raises ValueError where they are not (n, 4)."""
        boxes = np.asarray(value, dtype=np.float32)
        if boxes.size and (boxes.ndim != 2 or boxes.shape[1] != 4):
            raise ValueError(f"Boxes of a row have shape {boxes.shape}, expected (n, 4).")
        return boxes.reshape(-1, 4).tolist()

    def decode_example(self, value, token_per_repo_id: dict | None = None) -> np.ndarray:
        rows = [np.asarray(box, dtype=np.float32) for box in value]
        return np.stack(rows) if rows else np.zeros((0, 4), np.float32)

    def cast_storage(self, storage: pa.Array) -> pa.Array:
        return array_cast(storage, self())


with warnings.catch_warnings():
    # `datasets` calls registration experimental; users can do nothing about it.
    warnings.simplefilter("ignore", UserWarning)
    register_feature(MultiLabel, "MultiLabel")
    register_feature(BoxList, "BoxList")

__all__ = ["BoxList", "MultiLabel"]
