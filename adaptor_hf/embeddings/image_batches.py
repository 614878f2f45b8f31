"""Planned batches of images, read and processed in worker processes while a tower runs."""

import sys
from collections.abc import Iterator
from itertools import islice
from typing import Any

import numpy as np

from ..data.content_keys import digest, image_reference
from ..data.reading import Reading
from ..data.views import decoded_size, view_pixels, view_seed_of, view_size
from ..files import printable
from .image_store import GREY, ImageStore
from .stored import StoredImages

READ_ERROR = "image file cannot be read"  # worth another try at the next build
DECODE_ERROR = "image cannot be decoded"


def check_store(store: ImageStore, processor: Any, stored: StoredImages) -> None:
    """Refuse a store whose images are too small for the smallest crop of a view.

    Raises:
        ValueError: A crop would have fewer pixels than the tower takes; the message says which size is enough.
    """
    if not stored.views:
        return
    side = max(view_size(processor))
    needed = int(np.ceil(side / stored.recipe.smallest_side))
    if store.size < needed:
        raise ValueError(
            f"the smallest views of view_recipe={stored.view_recipe or 'crop'!r} show "
            f"{stored.recipe.smallest_side:.0%} of an image's side in the {side} pixels that the vision tower takes, "
            f"and image_store_size is {store.size}: set image_store_size={needed} or more, or leave image_store out"
        )


def images_in_part(batch_size: int, views: int) -> int:
    """
    Images that a worker makes at a time: those of a planned batch, or with views so many fewer that their pixels, and
    so the shared memory of all that is on its way, are no more than those of a batch without views.
    """
    return max(1, batch_size // (1 + views))


class ImageBatches:
    """Map-style dataset whose items are planned batches or, with views, parts of them: `parts` of each batch.

    Args:
        dataset: datasets.Dataset with the column `image`, formatted as Arrow.
        rows: (n,) row of the data set for each planned position.
        starts: (m,) planned position at which each batch starts.
        batch_size: positions of a planned batch; the last one may be smaller.
        processor: image processor of the tower.
        keys: (n,) source key of each planned position, for the store.
        store: where resized images are kept, if at all.
        reading: how image files become pixels.
        stored: what is kept of an image.

    An item has `inputs` of the tower: `pixel_values` (n, C, H, W), with views also `view_pixel_values`
    (n, K, C, H, W), `view_boxes` (n, K, 5), and of recipes that turn images `view_maps` (n, K, 2, 3), all float32;
    the `digests` of the n files, side by side; `kept`, their offsets in the item; `faults`, reasons by offset; and
    `images`, the number of its positions.
    """

    def __init__(
        self,
        dataset,
        rows: np.ndarray,
        starts: np.ndarray,
        batch_size: int,
        processor: Any,
        keys: np.ndarray,
        store: ImageStore | None = None,
        reading: Reading = GREY,
        stored: StoredImages = StoredImages(),  # noqa: B008
    ) -> None:
        self.dataset = dataset.select_columns(["image"])
        self.rows = rows
        size = images_in_part(batch_size, stored.views)
        ends = np.minimum(starts + batch_size, len(rows))
        parts = [np.arange(start, end, size) for start, end in zip(starts, ends, strict=True)]
        self.parts = [len(of_batch) for of_batch in parts]
        self.starts = np.concatenate([starts[:0], *parts])
        self.stops = np.concatenate(
            [starts[:0], *(np.minimum(of_batch + size, end) for of_batch, end in zip(parts, ends, strict=True))]
        )
        self.processor = processor
        self.keys = keys
        self.store = store
        self.reading = reading
        self.stored = stored
        self.min_size = store.min_size if store else decoded_size(processor)

    def __len__(self) -> int:
        return len(self.starts)

    def __getitem__(self, index: int) -> dict:
        import torch

        start, stop = self.starts[index], self.stops[index]
        values = self.dataset[self.rows[start:stop]].column("image").to_pylist()
        inputs, digests, kept, faults = [], [], [], {}
        for offset, value in enumerate(values):
            key = self.keys[[start + offset]].tobytes()
            stored = self.store.read(key) if self.store else None
            try:
                image, content = stored or self._read(value)
                inputs.append(self._inputs(image, content))
            except Exception as error:
                # Whatever a decoder raises on a damaged file, the fault is the file's and must not stop the build.
                faults[offset] = fault_reason(error)
                continue
            if self.store and stored is None:
                self.store.write(key, image, content)
            digests.append(content)
            kept.append(offset)
        names = inputs[0] if inputs else ()
        stacked = {name: torch.stack([of_image[name] for of_image in inputs]) for name in names}
        return {
            "images": len(values), "inputs": stacked, "digests": b"".join(digests), "kept": kept, "faults": faults,
        }  # fmt: skip

    def _inputs(self, image: Any, content: bytes) -> dict[str, Any]:
        plain = {"pixel_values": self.processor(images=[image], return_tensors="pt")["pixel_values"][0]}
        return plain | self._views(image, content) if self.stored.views else plain

    def _views(self, image: Any, content: bytes) -> dict[str, Any]:
        import torch

        recipe, seed = self.stored.recipe, self.stored.view_seed
        seeds = [view_seed_of(seed, number, content) for number in range(self.stored.views)]
        pixels, geometries = view_pixels(image, self.processor, recipe, seeds)
        columns = {"view_pixel_values": pixels}
        columns["view_boxes"] = torch.from_numpy(np.stack([geometry.box for geometry in geometries]))
        if recipe.turns:
            maps = np.stack([geometry.matrix for geometry in geometries])
            columns["view_maps"] = torch.from_numpy(maps.astype(np.float32))
        return columns

    def _read(self, value) -> tuple[Any, bytes]:
        from ..data.archives import read_bytes

        path, data = image_reference(value)
        if data is None:
            data = read_bytes(path)
        image = self.reading.read(data, self.min_size)
        return self.store.shrink(image) if self.store else image, digest(data)


def fault_reason(error: Exception) -> str:
    """Why an image is left out, in one line; it may name the file."""
    if isinstance(error, OSError | ImportError | MemoryError):
        return f"{READ_ERROR}: {(getattr(error, 'strerror', None) or str(error) or type(error).__name__)[:200]}"
    return f"{DECODE_ERROR}: {printable(' '.join(str(error).split())[:200]) or type(error).__name__}"


def image_batches(batches: ImageBatches, num_workers: int, pin_memory: bool) -> Iterator[dict]:
    """The planned batches in order, decoded in `num_workers` processes (0: in this one)."""
    import torch
    from torch.utils.data import DataLoader

    loader = DataLoader(
        batches,
        batch_size=None,
        num_workers=num_workers,
        pin_memory=pin_memory,
        prefetch_factor=2 if num_workers else None,
        # A generator of its own, so that building a cache does not shift the caller's random state.
        generator=torch.Generator(),
        worker_init_fn=silence_worker,
    )
    items = iter(loader)
    return (_joined(list(islice(items, count))) for count in batches.parts)


def _joined(parts: list[dict]) -> dict:
    """One planned batch of its parts."""
    import torch

    if len(parts) == 1:
        return parts[0]
    firsts = np.cumsum([0, *(part["images"] for part in parts)]).tolist()
    inputs = [part["inputs"] for part in parts if part["inputs"]]
    return {
        "images": firsts[-1],
        "inputs": {name: torch.cat([of_part[name] for of_part in inputs]) for name in (inputs[0] if inputs else ())},
        "digests": b"".join(part["digests"] for part in parts),
        "kept": [first + offset for first, part in zip(firsts, parts, strict=False) for offset in part["kept"]],
        "faults": {
            first + offset: reason
            for first, part in zip(firsts, parts, strict=False)
            for offset, reason in part["faults"].items()
        },
    }


def silence_worker(worker: int) -> None:
    """A worker sends its errors to the main process; what is left are threads whose peer has just been interrupted."""
    sys.excepthook = lambda *error: None
