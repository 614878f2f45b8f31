"""Batches of images, read and processed in worker processes while the model runs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from io import BytesIO
from typing import Any

from PIL import Image

from ..data.content_keys import image_reference
from ..data.images import read_image
from ..embeddings.image_batches import fault_reason, silence_worker
from ..image_values_adaptor import is_deep, open_images
from .images import Images
from .models import Loaded
from .scoring import Picture


class Pictures:
    """
    Map-style data set whose items are batches of images: a list of `Picture`, or of (row, reason) where one cannot be
    read.

    Args:
        images ([`Images`]): All rows.
        loaded ([`Loaded`]): Its processor and reading.
        batches (`Sequence[range]`): Rows of each batch.
    """

    def __init__(self, images: Images, loaded: Loaded, batches: Sequence[range]) -> None:
        self.rows = images.rows.select_columns(["image"])
        self.processor, self.reading = loaded.processor, loaded.reading
        self.batches = batches

    def __len__(self) -> int:
        return len(self.batches)

    def __getitem__(self, index: int) -> list[Picture | tuple[int, str]]:
        rows = self.batches[index]
        values = self.rows[rows.start : rows.stop].column("image").to_pylist()
        found: list[Picture | tuple[int, str]] = []
        for row, value in zip(rows, values, strict=True):
            try:
                found.append(self._picture(row, value))
            except Exception as error:
                # Whatever a decoder raises on a damaged file, the fault is the file's.
                found.append((row, fault_reason(error)))
        return found

    def _picture(self, row: int, value: Any) -> Picture:
        picture = read_picture(value, self.reading)
        inputs = self.processor(images=[picture], return_tensors="pt")
        return Picture(row, {name: tensor[0] for name, tensor in inputs.items()}, picture.height, picture.width)


def read_picture(value: Any, reading: dict[str, Any]) -> Image.Image:
    """
    The picture that a pipeline of `adaptor_hf.pipelines` makes of a path, or of encoded bytes.

    Raises:
        OSError, ValueError, ImportError: as of `read_image`; the row names no image.
    """
    path, data = image_reference(value)
    if data is None:
        if not path:
            raise ValueError("the row names no image")
        return open_images(path, **reading)
    mode = reading["image_mode"]
    if mode is None:
        with Image.open(BytesIO(data)) as image:
            if not is_deep(image):
                image.load()
                return image
    shown = {"voi_lut": bool(reading["voi_lut"]), "range_percentile": reading["range_percentile"] or 0.0}
    return read_image(data, mode=mode or "RGB", **shown)


def read_batches(pictures: Pictures, num_workers: int) -> Iterator[list[Picture | tuple[int, str]]]:
    """The batches in order, read in `num_workers` processes (0: in this one)."""
    import torch
    from torch.utils.data import DataLoader

    return iter(
        DataLoader(
            pictures,
            batch_size=None,
            num_workers=min(num_workers, len(pictures)),
            prefetch_factor=2 if num_workers and len(pictures) else None,
            collate_fn=_as_it_is,
            generator=torch.Generator(),
            worker_init_fn=silence_worker,
        )
    )


def _as_it_is(batch: Any) -> Any:
    return batch


__all__ = ["Pictures", "read_batches", "read_picture"]
