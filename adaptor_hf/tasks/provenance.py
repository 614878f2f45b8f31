"""What a result says of where it comes from: towers, sizes, and whether the tower saw the data set."""

from __future__ import annotations

from typing import Any

from ..data.catalog import share_images, with_same_images
from ..data.reading import Reading
from ..random_towers_adaptor import is_random


def tower_saw(spec: dict[str, Any] | None, dataset: str) -> str:
    """
    `yes`, `no` or `unknown`: whether a tower was pre-trained on images of a data set. A phantom nobody saw, and random
    weights saw nothing.
    """
    if dataset.startswith("phantom") or is_random(spec):
        return "no"
    seen = (spec or {}).get("pretraining_data")
    names = _pretraining_names(dataset)
    if not seen or not names:
        return "unknown"
    return "yes" if names & set(seen) else "no"


def disjoint_sets(first: str, second: str) -> bool:
    """Whether two public data sets have no image in common by their origin; False where that is not known."""
    ours, theirs = _pretraining_names(first), _pretraining_names(second)
    return bool(ours and theirs) and not share_images(first, second)


def _pretraining_names(dataset: str) -> set[str]:
    """What towers call a public data set and those whose images are in it; none where that is not declared."""
    return {one.pretraining_name for one in with_same_images(dataset).values()} - {None}


def tower_name(spec: dict[str, Any] | None) -> str | None:
    """
    What results call a tower: its preset or hub id; of a local folder its last part alone; of random weights with their
    seed. With ", RGB" or
    ", voi_lut" or the like where images were read so (`Reading`): other pixels are another run.
    """
    if spec is None:
        return None
    name = str(spec.get("preset") or spec.get("name_or_path") or "")
    name = name.rstrip("/").rpartition("/")[2] if name.startswith(("/", ".", "~")) else name
    seed = f"init_seed={spec['init_seed']}" if is_random(spec) else ""
    return ", ".join(part for part in (name, seed, Reading.of_spec(spec).label) if part)


def input_size(spec: dict[str, Any] | None) -> int | None:
    """Side of the images that a vision tower gets, in pixels."""
    processing = (spec or {}).get("image_processor") or {}
    cropped = processing.get("do_center_crop", True) and processing.get("crop_size")
    size = processing.get("crop_size") if cropped else processing.get("size")
    return (size or {}).get("height") or (size or {}).get("shortest_edge")


__all__ = ["disjoint_sets", "input_size", "tower_name", "tower_saw"]
