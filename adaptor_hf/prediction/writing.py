"""The files that a user takes away: scores as CSV, masks as PNG, boxes as COCO JSON, and which images have none."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import xxhash
from PIL import Image

from ..data.folder_walk import stem
from ..embeddings.faults import fault_counts
from ..files import file_sha256, read_regular, write_csv, written_aside
from ..privacy.mode import is_private, private_reason
from .images import Images
from .models import DETECTION, SEGMENTATION, Loaded
from .parts import Parts

PREDICTIONS, FAULTS, BOXES, MASKS = "predictions.csv", "faults.csv", "boxes.json", "masks"
_MOST_NAME_CHARACTERS = 80


def mask_name(row: int, image_id: str) -> str:
    """
    File name of a mask: the number of its row, and what the image's id leaves of a file name. Of a private run the id
    is a keyed hash already.
    """
    kept = image_id if is_private() else re.sub(r"[^A-Za-z0-9._-]+", "_", stem(image_id)).strip("._")
    return f"{row:06d}-{kept[-_MOST_NAME_CHARACTERS:]}.png" if kept else f"{row:06d}.png"


def mask_png(classes: np.ndarray, num_classes: int) -> bytes:
    """
    A mask as PNG: one class as 0 and 255, several as class numbers with a palette, so that they are seen.

    Args:
        classes (`np.ndarray` of shape `(height, width)` and dtype `uint8`): Class numbers.
        num_classes (`int`): With the background.
    """
    if num_classes == 2:
        image = Image.fromarray(classes * np.uint8(255))
    else:
        image = Image.fromarray(classes).convert("P")
        image.putpalette([value for number in range(256) for value in _colour(number)])
    file = BytesIO()
    image.save(file, format="PNG", optimize=False)
    return file.getvalue()


def _colour(number: int) -> tuple[int, int, int]:
    """Of PASCAL VOC: the bits of the number, spread over the channels."""
    red = green = blue = 0
    for place in range(8):
        red |= (number >> 0 & 1) << (7 - place)
        green |= (number >> 1 & 1) << (7 - place)
        blue |= (number >> 2 & 1) << (7 - place)
        number >>= 3
    return red, green, blue


def write_results(output_dir: Path, images: Images, loaded: Loaded, parts: Parts, threshold: float | None) -> Counter:
    """
    Join the parts into the files of the result, one part in memory at a time.

    Returns:
        `Counter`: Images by "predicted" and by each reason of a fault; boxes by "boxes".

    Raises:
        ValueError: a part is damaged, see `Parts.read`.
    """
    counts: Counter = Counter()
    header = ["image_id", "source_row", *_columns(loaded, threshold)]

    def lines() -> Iterator[list[Any]]:
        for name, line in _named_lines(images, parts):
            if "fault" not in line:
                counts["predicted"] += 1
                yield [name["image_id"], name["source_row"], *_cells(loaded, name, line, threshold)]

    with written_aside(output_dir / PREDICTIONS) as aside:
        write_csv(aside, header, lines())
    faults: list[str] = []

    def faulty() -> Iterator[list[Any]]:
        for name, line in _named_lines(images, parts):
            if "fault" in line:
                reason = private_reason(line["fault"])
                faults.append(reason.partition(":")[0])
                yield [name["image_id"], name["source_row"], name["file"], reason]

    if counts["predicted"] < len(images):
        with written_aside(output_dir / FAULTS) as aside:
            write_csv(aside, ("image_id", "source_row", "file", "reason"), faulty())
    if loaded.kind in (SEGMENTATION, DETECTION):
        counts["boxes"] = _write_boxes(output_dir / BOXES, images, loaded, parts)
    return counts + Counter(faults)


def faults_in_words(counts: Counter) -> str:
    """How often there is each reason, the most frequent first."""
    return fault_counts(reason for reason in counts.elements() if reason not in ("predicted", "boxes"))


def written_digests(output_dir: Path) -> dict[str, str]:
    """SHA-256 of each file of the result but for masks."""
    return {name: file_sha256(output_dir / name) for name in (PREDICTIONS, FAULTS, BOXES)
            if (output_dir / name).is_file()}  # fmt: skip


def content_digest(content: bytes) -> str:
    """32 hex digits of a mask's file."""
    return xxhash.xxh3_128_hexdigest(content)


def masks_are_there(output_dir: Path, images: Images, rows: range, lines: list[dict[str, Any]]) -> bool:
    """Whether each mask of a part is the file that was written with it; True where there are none."""
    for named, line in zip(images.named(rows.start, rows.stop), lines, strict=True):
        if "mask" not in line:
            continue
        path = output_dir / MASKS / mask_name(named["source_row"], named["image_id"])
        if not path.is_file() or content_digest(read_regular(path)) != line["mask"]:
            return False
    return True


def masks_digest(output_dir: Path) -> str | None:
    """32 hex digits over names and content of all masks; None without a folder of them."""
    folder = output_dir / MASKS
    if not folder.is_dir():
        return None
    found = xxhash.xxh3_128()
    for path in sorted(folder.iterdir()):
        found.update(f"{path.name} {content_digest(read_regular(path))}\n".encode())
    return found.hexdigest()


def _named_lines(images: Images, parts: Parts) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    for rows, lines in parts.read():
        yield from zip(images.named(rows.start, rows.stop), lines, strict=True)


def _columns(loaded: Loaded, threshold: float | None) -> list[str]:
    if loaded.kind == DETECTION:
        return ["height", "width", "boxes", "highest_score"]
    names = loaded.written_names
    if loaded.kind == SEGMENTATION:
        return ["height", "width", "mask", *names]
    return names + ([] if threshold is None else [f"{name} > {threshold:g}" for name in names])


def _cells(loaded: Loaded, name: dict[str, Any], line: dict[str, Any], threshold: float | None) -> list[Any]:
    if loaded.kind == DETECTION:
        scores = [box["score"] for box in line["boxes"]]
        return [*line["size"], len(scores), max(scores, default="")]
    if loaded.kind == SEGMENTATION:
        return [*line["size"], f"{MASKS}/{mask_name(name['source_row'], name['image_id'])}", *line["shares"]]
    scores = line["scores"]
    return scores + ([] if threshold is None else [int(value > threshold) for value in scores])


def _write_boxes(path: Path, images: Images, loaded: Loaded, parts: Parts) -> int:
    """
    COCO JSON: `images`, `categories`, and `annotations` with a `score`, which is what COCO's results are. Ids of images
    are their rows in the source.
    """
    numbers = [number for number in loaded.names if number or loaded.kind == DETECTION]
    written = dict(zip(loaded.names, loaded.written_names, strict=True))
    categories = [{"id": number, "name": written[number]} for number in numbers]
    count = 0
    with written_aside(path) as aside, open(aside, "w", encoding="utf-8") as file:
        file.write(f'{{"categories": {json.dumps(categories)},\n"images": [')
        separator = "\n"
        for name, line in _named_lines(images, parts):
            if "fault" not in line:
                height, width = line["size"]
                entry = {"id": name["source_row"], "file_name": name["file"], "width": width, "height": height}
                file.write(separator + json.dumps(entry))
                separator = ",\n"
        file.write('],\n"annotations": [')
        separator = "\n"
        for name, line in _named_lines(images, parts):
            for box in line.get("boxes", ()):
                count += 1
                entry = {"id": count, "image_id": name["source_row"], **box, "iscrowd": 0}
                file.write(separator + json.dumps(entry))
                separator = ",\n"
        file.write("]}\n")
    return count


__all__ = [
    "BOXES",
    "FAULTS",
    "MASKS",
    "PREDICTIONS",
    "content_digest",
    "faults_in_words",
    "mask_name",
    "mask_png",
    "masks_are_there",
    "masks_digest",
    "write_results",
    "written_digests",
]
