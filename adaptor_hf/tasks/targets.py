"""A digest of what a run predicts: other labels, masks or reports on the same images are another run."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ..data.archives import read_bytes
from ..data.masks import RadiographMask
from .data import LabelledData, plain_rows

if TYPE_CHECKING:
    from datasets import Dataset

    from ..embeddings import EmbeddingCache

PARTS = ("train", "validation", "test")


def labels_hash(data: LabelledData, test: LabelledData | None = None, parts: Sequence[str] = PARTS) -> str:
    """
    Digest of class names, of whether they exclude each other, and of the label of every image; the same for any order
    of the rows. Of the training part all rows count: shares of it and their seeds are one thing to predict.

    Args:
        data (`LabelledData`): The trained classes.
        test (`LabelledData`, *optional*): Whose `test` part is scored, with the classes of `data`; by default `data`.
        parts (`Sequence[str]`): Those that the result depends on.

    Returns:
        `str`: 16 hex digits.
    """
    found = {}
    for part in parts:
        source = test if part == "test" and test is not None else data
        values = source.labels[part]
        codes = np.where(np.isnan(values), -1, values).astype(np.int64).reshape(len(values), -1)
        found[part] = zip(source.rows(part)["image_id"], map(np.ndarray.tobytes, codes), strict=True)
    return _digest([list(data.class_names), bool(data.exclusive)], found)


def masks_hash(parts: Mapping[str, Dataset]) -> str:
    """
    Digest of the mask of every image, by its content: moved files are the same masks.

    Args:
        parts (`Mapping[str, Dataset]`): Those that the result depends on, with `mask`.

    Returns:
        `str`: 16 hex digits.
    """
    return _digest(
        ["mask"],
        {part: zip(plain_rows(rows)["image_id"], _mask_digests(rows), strict=True) for part, rows in parts.items()},
    )


def pairs_hash(pairs: EmbeddingCache, classes: np.ndarray | None = None) -> str | None:
    """
    Digest of the report, and of the class where there is one, of every image of a test part.

    Args:
        pairs (`EmbeddingCache`): Rows with image and text.
        classes (`np.ndarray` of shape `(len(pairs),)`, *optional*): int64.

    Returns:
        `str`: 16 hex digits; None where the reports are not known, as of imported embeddings.
    """
    texts = pairs.text_digests()
    if texts is None:
        return None
    kinds = np.full(len(texts), -1) if classes is None else classes
    values = (text.tobytes() + np.int64(kind).tobytes() for text, kind in zip(texts, kinds, strict=True))
    return _digest(["report"], {"test": zip(pairs.pairs["image_id"][:], values, strict=True)})


def _mask_digests(dataset: Dataset) -> Iterator[bytes]:
    masks = dataset.select_columns(["mask"])
    stored = isinstance(masks.features["mask"], RadiographMask)
    if stored:
        masks = masks.cast_column("mask", RadiographMask(decode=False))
    for row in masks:
        value = row["mask"]
        if not stored:
            inside = np.asarray(value) > 0
            yield hashlib.sha256(repr(inside.shape).encode() + np.packbits(inside).tobytes()).digest()
            continue
        described = [value["kind"], list(value["data"] or ()), value["width"], value["height"]]
        digest = hashlib.sha256(json.dumps(described).encode())
        for file in value["files"] or ():
            content = read_bytes(file["path"]) if file["bytes"] is None else file["bytes"]
            digest.update(f"\x1e{file['group']}\x1f".encode() + hashlib.sha256(content).digest())
        yield digest.digest()


def _digest(described: Any, parts: Mapping[str, Iterable[tuple[Any, bytes]]]) -> str:
    digest = hashlib.sha256(json.dumps(described).encode())
    for part, rows in sorted(parts.items()):
        digest.update(f"\x1d{part}\x1d".encode())
        for row in sorted(f"{image}\x1f".encode("utf-8", "surrogatepass") + value for image, value in rows):
            digest.update(row + b"\x1e")
    return digest.hexdigest()[:16]


__all__ = ["labels_hash", "masks_hash", "pairs_hash"]
