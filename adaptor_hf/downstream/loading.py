"""From the script's arguments to data sets and models."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..configuration_adaptor import AdaptorConfig
from ..modeling_adaptor import AdaptorModel
from ..private_mode import check_private_mode, is_private, private_rows, refuse_identifying_columns
from ..towers_adaptor import TextTower, VisionTower, load_text_tower, load_vision_tower
from .arguments import DownstreamArguments, pairs_of, table_options
from .data import LabelledData, labelled_data, load_public, load_table, split_table
from .features import weights_digest
from .provenance import tower_name, with_reading

if TYPE_CHECKING:
    from datasets import Dataset

logger = logging.getLogger(__name__)


def load_parts(arguments: DownstreamArguments, task: str) -> tuple[dict[str, Dataset], str]:
    """
    Parts of the data set or table, and the hash of their split.

    Args:
        arguments ([`DownstreamArguments`]): Of the script.
        task (`str`): What a public data set is loaded for, see `load_local_dataset`.

    Raises:
        FileNotFoundError, ValueError: as of the loaders.
    """
    check_private_mode(arguments)
    if arguments.dataset is not None:
        from ..data.__main__ import parse_options

        options = parse_options(arguments.dataset_option)
        return private_parts(*load_public(
            arguments.dataset, arguments.data_root, task, split_scheme=arguments.split_scheme,
            seed=arguments.split_seed, voi_lut=bool(arguments.voi_lut), **options,
        ))  # fmt: skip
    refuse_identifying_columns(arguments.table, arguments.image_column, arguments)
    table = load_table(arguments.table, **table_options(arguments))
    parts, split_hash = split_table(
        table,
        split_alias=arguments.split_alias,
        validation_fraction=arguments.validation_fraction,
        test_fraction=arguments.test_fraction,
        seed=arguments.split_seed,
    )
    return private_parts(parts, split_hash, arguments.subgroup_column)


def private_parts(
    parts: dict[str, Dataset], split_hash: str, keep: Sequence[str] = ()
) -> tuple[dict[str, Dataset], str]:
    """In private mode, the parts with keyed hashes as ids, and the split's hash of these; else as they are."""
    if not is_private():
        return parts, split_hash
    from ..data.splits import hash_of_split

    parts = {part: private_rows(rows, keep) for part, rows in parts.items()}
    columns = {name: [] for name in ("image_id", "patient_id")}
    for rows in parts.values():
        for name, values in columns.items():
            values += rows[name][:] if name in rows.column_names else [None] * len(rows)
    splits = [part for part, rows in parts.items() for _ in range(len(rows))]
    return parts, hash_of_split(*columns.values(), splits)


def load_classification(arguments: DownstreamArguments) -> LabelledData:
    """The labelled data of `--dataset` or `--table`."""
    parts, split_hash = load_parts(arguments, "classification")
    return labelled_data(
        arguments.name, parts, split_hash, classes=arguments.classes or None, label_policy=arguments.label_policy
    )


def load_external_parts(arguments: DownstreamArguments, task: str) -> dict[str, tuple[Dataset, str]]:
    """Name to test part and split hash of each of `--external`; all rows of a table that brings no split."""
    from ..data.catalog import MODULES
    from ..data.splits import split_hash

    found = {}
    for name, place in pairs_of(arguments.external).items():
        if name in MODULES:
            voi_lut = bool(arguments.voi_lut)
            parts, hashed = private_parts(*load_public(name, place, task, seed=arguments.split_seed, voi_lut=voi_lut))
        else:
            refuse_identifying_columns(place, arguments.image_column, arguments)
            table = private_rows(load_table(place, **table_options(arguments)), arguments.subgroup_column)
            parts, hashed = {"test": table}, split_hash(table)
            if "test" in (splits := table["split"][:]):
                parts = {"test": table.select([row for row, split in enumerate(splits) if split == "test"])}
        if "test" not in parts:
            raise ValueError(f"External set {name} has no test part; it has {', '.join(parts)}.")
        found[name] = parts["test"], hashed
    return found


def load_external(arguments: DownstreamArguments) -> list[LabelledData]:
    """The labelled test parts of `--external`."""
    policy = arguments.label_policy
    return [
        labelled_data(name, {"test": rows}, hashed, label_policy=policy)
        for name, (rows, hashed) in load_external_parts(arguments, "classification").items()
    ]


def load_adaptor(arguments: DownstreamArguments) -> AdaptorModel:
    """The checkpoint without towers: they are loaded when images are read."""
    model = AdaptorModel.from_pretrained(arguments.model, load_towers=False)
    if model.config.vision_tower is None and arguments.vision_tower is None:
        raise ValueError(
            f"The config of {arguments.model} names no vision tower: say with --vision_tower which one it was."
        )
    return model.eval()


def with_default_reading(arguments: DownstreamArguments) -> DownstreamArguments:
    """The arguments with `voi_lut` as in the training of the checkpoint, where they do not say."""
    if arguments.voi_lut is not None:
        return arguments
    spec = AdaptorConfig.from_pretrained(arguments.model).vision_tower or {}
    if voi_lut := bool(spec.get("voi_lut")):
        logger.info("DICOM files are read as displayed, as in the training of this model. --voi_lut False changes it.")
    return replace(arguments, voi_lut=voi_lut)


def load_tower(arguments: DownstreamArguments, model: AdaptorModel, device: str) -> VisionTower:
    """The vision tower itself; its spec says how DICOM files are read."""
    tower = load_vision_tower(vision_tower_of(arguments, model), device=device)
    tower.spec = with_reading(tower.spec, arguments.voi_lut)
    return tower


def vision_tower_of(arguments: DownstreamArguments, model: AdaptorModel) -> Any:
    """What `build_cache` loads the vision tower from."""
    return arguments.vision_tower or model.config.vision_tower


def load_text_side(arguments: DownstreamArguments, model: AdaptorModel, device: str) -> TextTower:
    """The checkpoint's text tower."""
    reference = arguments.text_tower or model.config.text_tower
    if reference is None:
        raise ValueError(
            f"The config of {arguments.model} names no text tower: say with --text_tower which one it was."
        )
    return load_text_tower(reference, device=device)


def cost_of(arguments: DownstreamArguments, seconds: float) -> dict[str, dict[str, Any]]:
    """What a comparison says of the model's vision tower (licence, size of embeddings, minutes) and its weights."""
    model = load_adaptor(arguments)
    spec = with_reading(model.config.vision_tower or {}, arguments.voi_lut)
    # Stored as float16.
    gigabytes = 2 * spec.get("hidden_size", 0) * 100_000 / 1e9
    tower = {"license": spec.get("license"), "gigabytes": gigabytes, "minutes": seconds / 60}
    return {tower_name(spec): tower, weights_digest(model): {"minutes": seconds / 60}}


def cache_dir_of(arguments: DownstreamArguments) -> Path:
    return Path(arguments.cache_dir or Path(arguments.output_dir) / "embeddings")


__all__ = [
    "cache_dir_of",
    "cost_of",
    "load_adaptor",
    "load_classification",
    "load_external",
    "load_external_parts",
    "load_parts",
    "load_text_side",
    "load_tower",
    "vision_tower_of",
    "with_default_reading",
]
