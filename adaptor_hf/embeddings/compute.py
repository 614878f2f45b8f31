"""Runs a tower over planned batches: images decoded in workers while it runs, texts tokenised one batch ahead."""

import contextlib
import sys
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from ..data.content_keys import KEY_DTYPE, digest, image_reference, key_vector
from ..data.reading import Reading
from ..files import printable
from .files import NUMPY_DTYPES
from .image_store import GREY, ImageStore

READ_ERROR = "image file cannot be read"  # worth another try at the next build
DECODE_ERROR = "image cannot be decoded"


def vector_faults(vectors: np.ndarray) -> dict[int, str]:
    """Row -> reason for vectors that cannot be used: NaN, inf, or zero (it has no direction to compare)."""
    faults = {}
    finite = np.isfinite(vectors).all(axis=1)
    for row in np.nonzero(~finite)[0]:
        faults[int(row)] = f"embedding is NaN or infinite in {vectors.dtype}"
    for row in np.nonzero(finite & ~vectors.any(axis=1))[0]:
        faults[int(row)] = "embedding is all zeros"
    return faults


def embed(tower, inputs: dict, dtype: str) -> np.ndarray:
    """(n, D) pooled embeddings in storage dtype, computed in float32 on the CPU and in half precision on CUDA where the
    numbers allow it; what overflows the storage dtype becomes inf, found later."""
    import torch

    device = next(tower.parameters()).device
    inputs = {name: value.to(device, non_blocking=True) for name, value in inputs.items()}
    # float16 keeps three bits more than bfloat16 and runs fast on every card since the T4; what overflows runs again.
    half = torch.autocast("cuda", dtype=torch.float16) if device.type == "cuda" else contextlib.nullcontext()
    with torch.inference_mode():
        with half:
            pooled = tower(**inputs).pooler_output
        if device.type == "cuda" and not torch.isfinite(pooled).all():
            pooled = tower(**inputs).pooler_output
    with np.errstate(over="ignore"):
        return pooled.float().cpu().numpy().astype(NUMPY_DTYPES[dtype])


def target_pixels(processor) -> int | None:
    """Longest side that an image processor asks for, or None when it does not say."""
    sides = []
    for name in ("size", "crop_size"):
        value = getattr(processor, name, None)
        if isinstance(value, int):
            sides.append(value)
        elif value is not None:
            items = dict(value).values()
            sides += [item for item in items if isinstance(item, int)]
    return max(sides, default=None)


class ImageBatches:
    """Map-style dataset whose items are whole planned batches, so that one worker makes one batch.

    Args:
        dataset: datasets.Dataset with the column `image`, formatted as Arrow.
        rows: (n,) row of the data set for each planned position.
        starts: (m,) planned position at which each batch starts.
        batch_size: positions of a batch; the last one may be smaller.
        processor: image processor of the tower.
        keys: (n,) source key of each planned position, for the store.
        store: where resized images are kept, if at all.
        reading: how image files become pixels.
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
    ) -> None:
        self.dataset = dataset.select_columns(["image"])
        self.rows = rows
        self.starts = starts
        self.batch_size = batch_size
        self.processor = processor
        self.keys = keys
        self.store = store
        self.reading = reading
        side = target_pixels(processor)
        self.min_size = store.min_size if store else 3 * side if side else None

    def __len__(self) -> int:
        return len(self.starts)

    def __getitem__(self, index: int) -> dict:
        import torch

        start = self.starts[index]
        values = self.dataset[self.rows[start : start + self.batch_size]].column("image").to_pylist()
        pixels, digests, kept, faults = [], [], [], {}
        for offset, value in enumerate(values):
            key = self.keys[[start + offset]].tobytes()
            stored = self.store.read(key) if self.store else None
            try:
                image, content = stored or self._read(value)
                pixels.append(self.processor(images=[image], return_tensors="pt")["pixel_values"][0])
            except Exception as error:
                # Whatever a decoder raises on a damaged file, the fault is the file's and must not stop the build.
                faults[offset] = _reason(error)
                continue
            if self.store and stored is None:
                self.store.write(key, image, content)
            digests.append(content)
            kept.append(offset)
        stacked = torch.stack(pixels) if pixels else None
        return {"pixel_values": stacked, "digests": b"".join(digests), "kept": kept, "faults": faults}

    def _read(self, value) -> tuple[Any, bytes]:
        from ..data.archives import read_bytes

        path, data = image_reference(value)
        if data is None:
            data = read_bytes(path)
        image = self.reading.read(data, self.min_size)
        return self.store.shrink(image) if self.store else image, digest(data)


def _reason(error: Exception) -> str:
    if isinstance(error, OSError | ImportError | MemoryError):
        return f"{READ_ERROR}: {(getattr(error, 'strerror', None) or str(error) or type(error).__name__)[:200]}"
    return f"{DECODE_ERROR}: {printable(' '.join(str(error).split())[:200]) or type(error).__name__}"


def image_batches(batches: ImageBatches, num_workers: int, pin_memory: bool) -> Iterator[dict]:
    """The planned batches in order, decoded in `num_workers` processes (0: in this one)."""
    import torch
    from torch.utils.data import DataLoader

    return iter(
        DataLoader(
            batches,
            batch_size=None,
            num_workers=num_workers,
            pin_memory=pin_memory,
            prefetch_factor=2 if num_workers else None,
            # A generator of its own, so that building a cache does not shift the caller's random state.
            generator=torch.Generator(),
            worker_init_fn=silence_worker,
        )
    )


def silence_worker(worker: int) -> None:
    """A worker sends its errors to the main process; what is left are threads whose peer has just been interrupted."""
    sys.excepthook = lambda *error: None


def prefetch(function: Callable[[Any], Any], items: Iterable[Any]) -> Iterator[Any]:
    """Results of `function` in order, computed one item ahead in a thread."""
    with ThreadPoolExecutor(1) as pool:
        future = None
        for item in items:
            upcoming = pool.submit(function, item)
            if future is not None:
                yield future.result()
            future = upcoming
        if future is not None:
            yield future.result()


class TextBatches:
    """Tokenises texts of a data set by row.

    Args:
        dataset: datasets.Dataset with the column `text`, formatted as Arrow.
        tokenizer: tokenizer of the tower.
        max_length: tokens a text is cut to, special tokens included.

    Attributes:
        unknown: tokens that the tokenizer did not know, of all texts that `lengths` has seen.
    """

    def __init__(self, dataset, tokenizer: Any, max_length: int) -> None:
        self.unknown = 0
        self.dataset = dataset.select_columns(["text"])
        self.tokenizer = tokenizer
        self.max_length = max_length

    def texts(self, rows: np.ndarray) -> list[str]:
        return self.dataset[rows].column("text").to_pylist()

    def lengths(self, rows: np.ndarray, block: int = 512) -> np.ndarray:
        """(n,) int32 token counts before truncation, special tokens included."""
        counts = np.empty(len(rows), dtype=np.int32)
        for start in range(0, len(rows), block):
            texts = self.texts(rows[start : start + block])
            encoded = self.tokenizer(texts, truncation=False, padding=False, return_attention_mask=False, verbose=False)
            counts[start : start + len(texts)] = [len(ids) for ids in encoded["input_ids"]]
            if self.tokenizer.unk_token_id is not None:
                self.unknown += sum(ids.count(self.tokenizer.unk_token_id) for ids in encoded["input_ids"])
        return counts

    def encode(self, rows: np.ndarray) -> dict:
        """Model inputs of these rows, cut to max_length and padded to the longest of the batch."""
        return dict(
            self.tokenizer(
                self.texts(rows), truncation=True, max_length=self.max_length, padding="longest", return_tensors="pt"
            )
        )


def digests_of(raw: bytes) -> np.ndarray:
    """(n,) keys from concatenated 16-byte digests."""
    return key_vector([raw]) if raw else np.empty(0, dtype=KEY_DTYPE)
