"""What a result says of where it comes from: towers, sizes, and whether the tower saw the data set."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

from ..data.catalog import dataset_names, get_dataset, share_images, with_same_images
from ..data.reading import Reading
from ..data.training_rows import TOWER_FILE, place_of_tower
from ..random_specs_adaptor import PREFIX, config_digest, is_random
from ..towers import TOWER_PRESETS
from ..towers.terms import UNKNOWN
from ..towers.words import describe_layers, describe_training
from ..towers_adaptor import TextTower, VisionTower, tower_digest

_digests: WeakKeyDictionary = WeakKeyDictionary()


def is_trained(tower: Any) -> bool:
    """Whether a tower's spec, or its folder, is of one that a run of this package has trained."""
    if isinstance(tower, Mapping):
        return tower.get("trained") is not None
    return tower is not None and (Path(tower).expanduser() / TOWER_FILE).is_file()


def tower_folder(tower: Any) -> Path | None:
    """The folder of a trained tower, by its name or spec; None of one that was not trained, or holds no folder here."""
    if not is_trained(tower):
        return None
    return Path(place_of_tower(tower) if isinstance(tower, Mapping) else tower).expanduser()


def named_spec(tower: VisionTower | TextTower) -> dict[str, Any]:
    """
    A loaded tower's spec, as results name it: where its weights are not those of its name (it was trained, or came in a
    checkpoint) with `weights`, 8 hex digits of their digest. By the name alone two of them would be one run.
    """
    if not is_trained(tower.spec) and tower.loaded_weights is not None:
        return tower.spec
    if tower not in _digests:
        _digests[tower] = tower_digest(tower)[:8]
    return tower.spec | {"weights": _digests[tower]}


def spec_of_cache(spec: Mapping[str, Any], tower: Any) -> dict[str, Any]:
    """The spec that a cache has of a tower, named as the one that reads it: equal weights may have had another name."""
    own = named_spec(tower) if isinstance(tower, VisionTower | TextTower) else {}
    return dict(spec) | {name: own[name] for name in ("weights", "trained", "base_tower") if own.get(name) is not None}


def tower_saw(spec: dict[str, Any] | None, dataset: str) -> str:
    """
    `yes`, `no` or `unknown`: whether a tower was pre-trained on images of a data set. A phantom nobody saw but a tower
    that was trained on it here, and random weights saw nothing.
    """
    seen = set((spec or {}).get("pretraining_data") or ())
    names = _pretraining_names(dataset)
    if seen & {dataset, *with_same_images(dataset), *names}:
        return "yes"
    shared = [
        name
        for name in dataset_names()
        if {name, get_dataset(name).pretraining_name} & seen and share_images(name, dataset)
    ]
    if shared:
        # Of images of a third set in both, which ones is not declared.
        return "yes" if any(dataset in with_same_images(name) for name in shared) else "unknown"
    if dataset.startswith("phantom") or is_random(spec):
        return "no"
    return "unknown" if not seen or not names or UNKNOWN in seen else "no"


def disjoint_sets(first: str, second: str) -> bool:
    """Whether two public data sets have no image in common by their origin; False where that is not known."""
    ours, theirs = _pretraining_names(first), _pretraining_names(second)
    return bool(ours and theirs) and not share_images(first, second)


def _pretraining_names(dataset: str) -> set[str]:
    """What towers call a public data set and those whose images are in it; none where that is not declared."""
    return {one.pretraining_name for one in with_same_images(dataset).values()} - {None}


def tower_name(spec: dict[str, Any] | None) -> str | None:
    """
    What results call a tower: its preset or hub id; of a local folder its last part alone; of random weights
    with their seed, and where their configuration is no preset's or timm's with 8 hex digits of its digest. Of one that
    was cut, or whose tokens are of other layers than the last, it says which. With ", RGB" or ", voi_lut" or the like
    where images were read so (`Reading`): other pixels are another run. A trained tower has the name of the one that it
    started as, how it was trained, and 8 hex digits of its weights.
    """
    if spec is None:
        return None
    base = spec.get("base_tower") or spec
    name = str(base.get("preset") or base.get("name_or_path") or "")
    name = name.rstrip("/").rpartition("/")[2] if name.startswith(("/", ".", "~")) else name
    weights = spec.get("weights")
    parts = (
        name,
        f"init_seed={base['init_seed']}" if base.get("init_seed") is not None else "",
        _config_digest(spec),
        describe_layers(spec),
        "" if spec.get("trained") is None else describe_training(spec["trained"]),
        weights and f"weights {weights}",
        Reading.of_spec(spec).label,
    )
    return ", ".join(part for part in parts if part)


def _config_digest(spec: Mapping[str, Any]) -> str:
    """Of random weights of a configuration of the user's, 8 hex digits of it: a folder's name may be another's."""
    name = str(spec.get("name_or_path")).removeprefix(PREFIX)
    if not is_random(dict(spec)) or name in TOWER_PRESETS or name.startswith("timm:"):
        return ""
    return f"config {config_digest(dict(spec))[:8]}"


def input_size(spec: dict[str, Any] | None) -> int | None:
    """Side of the images that a vision tower gets, in pixels."""
    processing = (spec or {}).get("image_processor") or {}
    cropped = processing.get("do_center_crop", True) and processing.get("crop_size")
    size = processing.get("crop_size") if cropped else processing.get("size")
    return (size or {}).get("height") or (size or {}).get("shortest_edge")


__all__ = [
    "disjoint_sets",
    "input_size",
    "is_trained",
    "named_spec",
    "spec_of_cache",
    "tower_folder",
    "tower_name",
    "tower_saw",
]
