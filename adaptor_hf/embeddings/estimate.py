"""What a cache would take: bytes by arithmetic on the columns, seconds by embedding a few rows on this machine."""

from __future__ import annotations

import logging
import os
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ..files import aside_of
from .build import build_cache
from .columns import Column
from .extract import columns_of
from .faults import EXCLUDED, fault_counts
from .shards import KEY_BYTES
from .stored import StoredImages, StoredTexts
from .text_batches import TextBatches

if TYPE_CHECKING:
    from datasets import Dataset

    from .reader import EmbeddingCache

logger = logging.getLogger(__name__)

ROWS = 32
# Tokenizing is cheap, so that means and shares of rare events can be seen.
TEXTS = 2000
GRIDS = ("all", 7, 4)


def column_bytes(column: Column, rows: int, elements: float | None = None) -> int:
    """
    Bytes of a column on disk, but for the header of each file.

    Args:
        column: As of `columns_of`.
        rows: Images or texts.
        elements: Of a ragged column, how many a row has on average.
    """
    if not column.ragged:
        return rows * column.row_bytes
    # Each list has an offset, in the scales too.
    return round(rows * (elements or 0) * column.row_bytes) + 8 * (rows + 1) * len(column.parts)


@dataclass(frozen=True)
class Measured:
    """
    What was measured of images or of texts.

    Args:
        tower: Loaded.
        rows: To embed.
        seconds: Of a row, for the pooled vector alone.
        asked_seconds: Of a row, with what is asked for.
        elements: Of ragged columns by name, how many a row has on average.
    """

    tower: Any
    rows: int
    seconds: float
    asked_seconds: float
    elements: Mapping[str, float]

    def bytes_of(self, stored: StoredImages | StoredTexts, dtype: str, *, pooled: bool = True) -> int:
        """On disk; without `pooled` of what is kept beside the pooled vectors alone."""
        first, *more = columns_of(self.tower, stored, dtype)
        beside = sum(column_bytes(column, self.rows, self.elements.get(column.name)) for column in more)
        return beside + (self.rows * (first.row_bytes + KEY_BYTES) if pooled else 0)


@dataclass(frozen=True)
class Estimate:
    """
    What a cache would take.

    Args:
        images, texts: What was measured, None of a tower that does not run.
        asked: What is to be kept of images and of texts.
        dtype: That it is to be kept in.
        free: Bytes of the disk that are free.
    """

    images: Measured | None
    texts: Measured | None
    asked: tuple[StoredImages, StoredTexts]
    dtype: str
    free: int

    @property
    def bytes(self) -> int:
        """Of what is asked for."""
        return sum(found.bytes_of(stored, self.dtype) for found, stored in self._both())

    @property
    def seconds(self) -> float:
        """Of what is asked for, in one process."""
        return sum(found.rows * found.asked_seconds for found, _ in self._both())

    def pooled_bytes(self, dtype: str) -> int:
        """Of the pooled vectors alone."""
        return sum(found.bytes_of(type(stored)(), dtype) for found, stored in self._both())

    def _both(self) -> list[tuple[Measured, StoredImages | StoredTexts]]:
        both = zip((self.images, self.texts), self.asked, strict=True)
        return [(found, stored) for found, stored in both if found is not None]

    def table(self) -> str:
        """Bytes and hours of each choice, and of what is asked for."""
        pooled = {dtype: self.pooled_bytes(dtype) for dtype in ("float16", "int8")}
        hours = sum(found.rows * found.seconds for found, _ in self._both()) / 3600
        lines = [
            f"  {'':<44}{'float16':>12}{'int8':>12}{'hours':>9}",
            self._line("pooled vectors", pooled, _hours(hours)),
        ]
        for name, found, stored, passes in self._choices():
            sizes = {dtype: found.bytes_of(stored, dtype, pooled=False) for dtype in pooled}
            more = f"+{_hours(passes * found.rows * found.seconds / 3600)}" if passes else "+0"
            lines.append(self._line(f"+ {name}", sizes, more, pooled))
        asked = (f"  as asked for, in {self.dtype}: {_size(self.bytes)}, while it is built up to twice that; "
                 f"{_hours(self.seconds / 3600)} hours")  # fmt: skip
        if 2 * self.bytes > self.free:
            asked += f". The disk has {_size(self.free)} free: TOO LITTLE"
        return "\n".join([*lines, asked])

    def _line(self, name: str, sizes: Mapping[str, int], hours: str, before: Mapping[str, int] | None = None) -> str:
        line = f"  {name:<44}{_size(sizes['float16']):>12}{_size(sizes['int8']):>12}{hours:>9}"
        too_much = [dtype for dtype, size in sizes.items() if 2 * (size + (before or {}).get(dtype, 0)) > self.free]
        return f"{line}  more than is free{' in float16' if too_much == ['float16'] else ''}" if too_much else line

    def _choices(self) -> list[tuple[str, Measured, StoredImages | StoredTexts, int]]:
        """Name, whose it is, what is kept, and passes of the tower that it takes beside the first."""
        found: list[tuple[str, Measured, StoredImages | StoredTexts, int]] = []
        if self.images is not None:
            tokens = _given(self.images.tower, StoredImages(image_tokens="all"))
            grid = tokens.info["grid"] if tokens is not None else [0, 0]
            for side in GRIDS if tokens is not None else ():
                if side == "all" or side < min(grid):
                    name = f"all, {grid[0]} x {grid[1]}" if side == "all" else f"{side} x {side} means"
                    found.append((f"image tokens, {name}", self.images, StoredImages(image_tokens=side), 0))
            found.append(("each augmented view, pooled", self.images, StoredImages(views=1), 1))
        if self.texts is not None and _given(self.texts.tower, StoredTexts(text_tokens=True)) is not None:
            length = self.texts.elements["text_tokens"]
            found.append((f"text tokens, {length:.1f} on average", self.texts, StoredTexts(text_tokens=True), 0))
        return found


def _given(tower: Any, stored: StoredImages | StoredTexts) -> Column | None:
    """The column that is kept; None where the tower does not give it."""
    try:
        return columns_of(tower, stored, "float16")[1]
    except ValueError:
        return None


def estimate_cache(
    dataset: Dataset,
    vision_tower: Any,
    text_tower: Any,
    place: Path,
    *,
    images: Mapping[str, Any],
    texts: Mapping[str, Any],
    device: Any = None,
    dtype: str = "float16",
    max_text_length: int = 112,
    **options: Any,
) -> Estimate:
    """
    Embed up to 32 rows and extrapolate.

    Args:
        dataset: All pairs, with the columns `image` and `text`.
        vision_tower, text_tower: Loaded; None does not run.
        place: Where the cache is to be: its disk is asked for free space, and the sample lies beside it for a while.
        images, texts: What is to be kept, as arguments of `build_cache`.
        device, dtype, max_text_length, options: As of `build_cache`.

    Raises:
        ValueError: No row has a text, and a text tower is to run; no row of the sample can be embedded; or a tower does
            not have what is asked for.
    """
    asked = StoredImages(**images), StoredTexts(**texts)
    options |= {"device": device, "dtype": dtype, "max_text_length": max_text_length}
    found: dict[str, Measured | None] = {"images": None, "texts": None}
    if vision_tower is not None:
        columns_of(vision_tower.to(device), asked[0], dtype)  # what the tower does not have is said now
        rows = np.arange(len(dataset))
        found["images"] = _measured(dataset, rows, {"vision_tower": vision_tower}, images, place, options)
    if text_tower is not None:
        columns_of(text_tower.to(device), asked[1], dtype)
        rows = first_rows_of_texts(dataset)
        measured = _measured(dataset, rows, {"text_tower": text_tower}, texts, place, options)
        mean = _mean_tokens(dataset, rows, text_tower, max_text_length)
        elements = dict(measured.elements) | {"text_tokens": mean, "text_attention": mean}
        found["texts"] = Measured(text_tower, len(rows), measured.seconds, measured.asked_seconds, elements)
    return Estimate(found["images"], found["texts"], asked, dtype, shutil.disk_usage(_there(place)).free)


def first_rows_of_texts(dataset: Dataset) -> np.ndarray:
    """
    (n,) first row of each distinct text, in order of the rows.

    Raises:
        ValueError: No row has a text.
    """
    first: dict[str, int] = {}
    for row, text in enumerate(dataset["text"][:] if "text" in dataset.column_names else []):
        if text is not None:
            first.setdefault(text, row)
    if not first:
        raise ValueError(f"None of the {len(dataset)} rows has a text: nothing to train on. Check the text column.")
    return np.array(list(first.values()))


def _measured(
    dataset: Dataset, rows: np.ndarray, towers: dict[str, Any], kept: Mapping[str, Any], place: Path, options: dict
) -> Measured:
    sample = dataset.select(rows[:ROWS])
    seconds, cached = _seconds(sample, towers, place, options)
    asked, cached = _seconds(sample, towers, place, options | dict(kept)) if kept else (seconds, cached)
    if cached.faults:
        (kind,) = towers
        logger.warning(
            "%d of the %d sampled rows cannot be embedded by the %s: %s", len(cached.faults), len(sample),
            kind.replace("_", " "), fault_counts(cached.faults),
        )  # fmt: skip
    (tower,) = towers.values()
    return Measured(tower, len(rows), seconds / len(sample), asked / len(sample), cached.elements)


@dataclass(frozen=True)
class _Cached:
    """Of the cache of a sample: how many spans a row has on average, by column, and why rows are left out."""

    elements: Mapping[str, float]
    faults: list[str]


def _seconds(sample: Dataset, towers: dict[str, Any], place: Path, options: dict) -> tuple[float, _Cached]:
    """Seconds that the rows of a sample take, and what is seen in their cache."""
    with _sample_folder(place) as folder, _silent():
        taken = []
        for _ in range(2):
            start = time.perf_counter()
            try:
                cache = build_cache(
                    sample, **towers, cache_dir=folder, num_workers=0, max_fault_fraction=1.0, **options
                )
            except ValueError as error:
                # The list of faults goes with the folder.
                said = str(error).replace(f", see {folder / EXCLUDED}", "")
                raise ValueError(f"The first {len(sample)} rows cannot be measured: {said}") from error
            taken.append(time.perf_counter() - start)
        elements = {name: _mean_length(cache, name) for name in cache.stored_columns if name in ("words", "sentences")}
        cached = _Cached(elements, [row["reason"] for row in cache.excluded])
    # What the second call needs too, such as the digest of the weights, is needed once, not for each row.
    return max(taken[0] - taken[1], 1e-6), cached


def _mean_length(cache: EmbeddingCache, name: str) -> float:
    """Elements that a row of a ragged column has on average."""
    lengths = [
        pc.list_value_length(pa.ipc.open_stream(cache.path.parent / folder / shard["file"]).read_all()[name])
        for folder, manifest in cache.modality_manifests().items()
        for shard in manifest.get("columns", {}).get(name, {}).get("shards", ())
    ]
    return float(np.concatenate([one.to_numpy() for one in lengths]).mean())


@contextmanager
def _silent() -> Iterator[None]:
    """What a build says of a sample would read as said of the table."""
    package = logging.getLogger(__package__)
    level = package.level
    package.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        package.setLevel(level)


_SAMPLE = "embeddings-of-a-sample"


@contextmanager
def _sample_folder(place: Path) -> Iterator[Path]:
    """A hidden folder of its owner alone, beside a cache's place or else in the temporary folder, for a while."""
    remove_dead_samples(place)
    for beside in (_there(place.parent), Path(tempfile.gettempdir())):
        folder = aside_of(beside / _SAMPLE, clear=False).absolute()
        try:
            folder.mkdir(mode=0o700)
            break
        except OSError as error:
            refused = error
    else:
        raise refused
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def remove_dead_samples(place: str | os.PathLike) -> None:
    """Remove what dry runs on this machine for a cache at this place left when they were killed."""
    # The nearest folder that there is now need not have been there then.
    for folder in (*Path(place).parents, Path(tempfile.gettempdir())):
        with suppress(OSError):
            aside_of(folder / _SAMPLE)


def _there(folder: Path) -> Path:
    """The folder, or the nearest one above that exists."""
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    return folder


def _mean_tokens(dataset: Dataset, rows: np.ndarray, tower: Any, max_text_length: int) -> float:
    limit = min(max_text_length, tower.spec.get("max_length") or max_text_length)
    lengths = TextBatches(dataset.with_format("arrow"), tower.processor, limit).lengths(rows[:TEXTS])
    return float(np.minimum(lengths, limit).mean())


def gigabytes(count: float) -> str:
    return f"{count / 1e9:.2f} GB"


def _size(count: float) -> str:
    return gigabytes(count) if count >= 1e9 else f"{count / 1e6:.2f} MB"


def _hours(hours: float) -> str:
    return f"{hours:.2f}" if hours >= 0.1 else f"{hours:.4f}"


__all__ = [
    "Estimate",
    "Measured",
    "column_bytes",
    "estimate_cache",
    "first_rows_of_texts",
    "gigabytes",
    "remove_dead_samples",
]
