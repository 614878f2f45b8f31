"""From the script's arguments to data sets and models."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..configuration_adaptor import AdaptorConfig
from ..data.private_rows import private_rows, refuse_identifying_columns
from ..data.reading import Reading
from ..data.split_rule import SplitRule
from ..data.table_arguments import public_options
from ..data.training_rows import id_namespaces, write_training_rows
from ..evaluation.naming import weights_digest
from ..evaluation.tasks import TASKS
from ..file_records import check_model
from ..modeling_adaptor import AdaptorModel
from ..privacy.mode import check_private_mode, is_private
from ..towers_adaptor import TextTower, VisionTower, load_text_tower, load_vision_tower
from .arguments import DownstreamArguments, named_tower, pairs_of, table_options
from .controls import saved_controls
from .data import LabelledData, labelled_data, load_public, load_table, split_table
from .overlap import TOWER_SYSTEMS, seen_rows
from .provenance import is_trained, tower_folder, tower_name

if TYPE_CHECKING:
    from datasets import Dataset

    from ..data.training_rows import Seen

logger = logging.getLogger(__name__)


@dataclass
class LoadedParts:
    """
    A data set for one task.

    Args:
        parts (`dict[str, Dataset]`): `train`, `validation`, `test`, as far as there are rows.
        split_hash (`str`): Name of the split.
        seen (`dict[str, Seen]`): Of each model, what of `test` was in its pre-training.
        leak (`str`, *optional*): What the split, a reference's, is known to leak.
    """

    parts: dict[str, Dataset]
    split_hash: str
    seen: dict[str, Seen]
    leak: str | None = None


def split_rule_of(arguments: DownstreamArguments, dataset: str | None = None) -> SplitRule:
    """
    The rule that the checkpoint was trained under, else the default one; options that are given override it. Of several
    sources, the rule of the public data set that is asked for (by default `--dataset`).
    """
    dataset = dataset or arguments.dataset
    known = AdaptorConfig.from_pretrained(arguments.model).split_rule
    rule = SplitRule() if known is None else SplitRule.from_dict(known).of(dataset)
    scheme = arguments.split_scheme
    if scheme is None and dataset is not None and rule.dataset != dataset:
        scheme = "official"
    return rule.with_options(
        scheme=scheme,
        seed=arguments.split_seed,
        validation_fraction=arguments.validation_fraction,
        test_fraction=arguments.test_fraction,
        ids=arguments.ids,
    )


def load_parts(arguments: DownstreamArguments, task: str) -> LoadedParts:
    """
    Parts of the data set or table by the split rule of the checkpoint, none of them with a test on training rows.

    Args:
        arguments ([`DownstreamArguments`]): Of the script.
        task (`str`): What a public data set is loaded for, see `load_public_dataset`.

    Raises:
        FileNotFoundError, ValueError: as of the loaders; test rows that were in pre-training.
    """
    check_private_mode(arguments)
    leak = None
    if arguments.dataset is None:
        refuse_identifying_columns(
            arguments.table, arguments.image_column, arguments, arguments.delimiter, arguments.encoding
        )
    rule = split_rule_of(arguments)
    if arguments.dataset is not None:
        from ..data import describe
        from ..data.catalog import parse_options

        parts, split_hash = load_public(
            arguments.dataset, arguments.data_root, task, split_scheme=rule.scheme, **public_options(arguments, rule),
            **parse_options(arguments.dataset_option),
        )  # fmt: skip
        leak = describe(next(iter(parts.values())))["leak"]
    else:
        table = load_table(arguments.table, **table_options(arguments))
        options = ("split_seed", "validation_fraction", "test_fraction")
        if table.unique("split") != [None] and (given := [o for o in options if getattr(arguments, o) is not None]):
            logger.warning("The table has splits of its own: --%s changes none of them.", ", --".join(given))
        parts, split_hash = split_table(table, rule, split_alias=arguments.split_alias)
    seen = {} if "test" not in parts else _seen(arguments, parts["test"], arguments.name, arguments.table)
    return LoadedParts(*private_parts(parts, split_hash, arguments.subgroup_column), seen, leak)


def model_folders(arguments: DownstreamArguments) -> dict[str, str]:
    """System to checkpoint, of those that were pre-trained."""
    controls = pairs_of(arguments.control_model) or saved_controls(arguments.model)
    return {"adaptor": arguments.model, **controls}


def trained_towers(arguments: DownstreamArguments) -> dict[str, str]:
    """Folders of the trained towers that the task computes with, by `TOWER_SYSTEMS`."""
    config, found = AdaptorConfig.from_pretrained(arguments.model), {}
    reads_texts = set(TASKS[arguments.task].needs) & {"reports", "prompts"}
    for system, kind in zip(TOWER_SYSTEMS, ("vision", "text"), strict=True):
        reference = getattr(arguments, f"{kind}_tower") or getattr(config, f"{kind}_tower")
        if (kind == "vision" or reads_texts) and (folder := tower_folder(reference)) is not None:
            # Of one inside a checkpoint's own weights there is no folder.
            found[system] = arguments.model if config.towers_in_checkpoint and not folder.is_dir() else str(folder)
    return found


def _seen(arguments: DownstreamArguments, test: Dataset, name: str, table: str | None) -> dict[str, Seen]:
    return seen_rows(
        test, model_folders(arguments) | trained_towers(arguments), name=name, table=table,
        namespace=arguments.id_namespace, cache_dir=cache_dir_of(arguments), allow=arguments.allow_seen,
        check=arguments.check,
    )  # fmt: skip


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
    loaded = load_parts(arguments, "classification")
    data = labelled_data(
        arguments.name, loaded.parts, loaded.split_hash, classes=arguments.classes or None,
        label_policy=arguments.label_policy, positive_label=arguments.positive_label,
        declared=arguments.dataset is not None,
    )  # fmt: skip
    data.seen, data.leak = loaded.seen, loaded.leak
    return data


def load_external_parts(arguments: DownstreamArguments, task: str) -> dict[str, LoadedParts]:
    """Each of `--external` by name, with its test part alone; all rows of a table that brings no split."""
    from ..data.catalog import dataset_names
    from ..data.splits import split_hash

    found, rule = {}, split_rule_of(arguments)
    for name, place in pairs_of(arguments.external).items():
        if name in dataset_names():
            mine = split_rule_of(arguments, name)
            scheme = mine.scheme if mine.dataset == name else "official"
            parts, hashed = load_public(name, place, task, split_scheme=scheme, **public_options(arguments, rule))
            source = None
        else:
            refuse_identifying_columns(
                place, arguments.image_column, arguments, arguments.delimiter, arguments.encoding
            )
            table, source = load_table(place, **table_options(arguments)), place
            parts, hashed = {"test": table}, split_hash(table)
            if "test" in (splits := table["split"][:]):
                parts = {"test": table.select([row for row, split in enumerate(splits) if split == "test"])}
        if "test" not in parts:
            raise ValueError(f"External set {name} has no test part; it has {', '.join(parts)}.")
        # An external set is another place's: its patient ids are no namespace of --table.
        seen = _seen(replace(arguments, id_namespace=None), parts["test"], name, source)
        parts, hashed = private_parts({"test": parts["test"]}, hashed, arguments.subgroup_column)
        found[name] = LoadedParts(parts, hashed, seen)
    return found


def load_external(arguments: DownstreamArguments) -> list[LabelledData]:
    """The labelled test parts of `--external`."""
    from ..data.catalog import dataset_names

    found = []
    for name, loaded in load_external_parts(arguments, "classification").items():
        # A public data set declares its positive class; `align_classes` refuses one that is not the model's.
        chosen = {"declared": True} if name in dataset_names() else {"positive_label": arguments.positive_label}
        data = labelled_data(name, loaded.parts, loaded.split_hash, label_policy=arguments.label_policy, **chosen)
        data.seen = loaded.seen
        found.append(data)
    return found


def record_rows(arguments: DownstreamArguments, data: LabelledData, folder: str | Path) -> None:
    """
    Write the rows that a classifier with its tower was trained and chosen on into its folder, with those of the
    checkpoint and of the trained tower that it started from.
    """
    from ..embeddings.contents import content_digests

    parts = [data.parts[part] for part in ("train", "validation")]
    images = [content_digests(rows, cache_dir_of(arguments), check=arguments.check) for rows in parts]
    patients = [patient for rows in parts if "patient_id" in rows.column_names for patient in rows["patient_id"][:]]
    write_training_rows(
        folder, np.concatenate(images), None if is_private() else patients,
        id_namespaces(arguments.id_namespace or arguments.name, arguments.table),
        earlier=[arguments.model, *trained_towers(arguments).values()],
    )  # fmt: skip


def used_models(arguments: DownstreamArguments) -> list[str]:
    """Checkpoints that the arguments name, and the folders of trained towers that are no part of one."""
    models = [arguments.model, *arguments.more_models]
    towers = [str(place) for name in (arguments.vision_tower, arguments.text_tower) if (place := tower_folder(name))]
    return list(dict.fromkeys([*models, *towers]))


def check_models(arguments: DownstreamArguments) -> None:
    """
    Compare every checkpoint that the arguments name, controls among them, with the record of its run; of those without
    one it is said that they are unverified.

    Raises:
        OSError, ValueError: as of `check_model`.
    """
    places = {
        place
        for model in [arguments.model, *arguments.more_models]
        for place in model_folders(replace(arguments, model=model)).values()
    } | set(used_models(arguments))
    unverified = sum(check_model(place).state == "unverified" for place in sorted(places))
    if unverified:
        logger.info(
            "Unverified models: %d of %d. No manifest.json of a run says what their files were (downloaded, copied out "
            "of a run, or of a run that did not end). Their results say so as checkpoint_check.",
            unverified, len(places),
        )  # fmt: skip


def load_adaptor(arguments: DownstreamArguments) -> AdaptorModel:
    """
    The checkpoint with the towers whose weights are its own (those that it holds, or a vision tower that was trained)
    and the vision tower that the arguments name. Others are loaded when images are read.

    Raises:
        OSError, ValueError: as of `check_model`; the checkpoint names no vision tower, or it pools tokens itself and
            the task reads pooled embeddings.
    """
    check_model(arguments.model)
    holds_towers = AdaptorConfig.from_pretrained(arguments.model).towers_in_checkpoint
    model = AdaptorModel.from_pretrained(arguments.model, load_towers=holds_towers)
    if model.config.attention_pooling_heads is not None and "masks" not in TASKS[arguments.task].needs:
        raise ValueError(
            f"--task {arguments.task} reads one embedding of each image and text, and the checkpoint has "
            "attention_pooling_heads: its Adaptor needs their tokens. Of the tasks segmentation takes it; or train one "
            "without attention_pooling_heads."
        )
    if model.config.vision_tower is None and arguments.vision_tower is None:
        raise ValueError(
            f"The config of {arguments.model} names no vision tower: say with --vision_tower which one it was."
        )
    asked = {"vision_model": arguments.vision_tower, "text_model": arguments.text_tower}
    for name in asked:
        if asked[name] is not None:
            setattr(model, name, None)
    reference = named_tower(arguments, "vision") or model.config.vision_tower
    if model.vision_model is None and (arguments.vision_tower is not None or is_trained(reference)):
        # A head that is saved then names this tower, not the one of the checkpoint.
        model.attach_towers(load_vision_tower(reference))
    return model.eval()


def with_default_reading(arguments: DownstreamArguments) -> DownstreamArguments:
    """The arguments with the reading of the checkpoint's training, as far as they do not say another one."""
    trained = Reading.of_spec(AdaptorConfig.from_pretrained(arguments.model).vision_tower)
    voi_lut, mode, percentile = arguments.voi_lut, arguments.image_mode, arguments.range_percentile
    if voi_lut is None and (voi_lut := trained.voi_lut):
        logger.info("DICOM files are read as displayed, as in the training of this model. --voi_lut False changes it.")
    if percentile is None and (percentile := trained.range_percentile):
        logger.info("range_percentile is %g, as in the training. --range_percentile 0 changes it.", percentile)
    if mode == "auto" and (mode := trained.mode) == "RGB":
        logger.info("Images are read in colour, as in the training of this model. --image_mode L changes it.")
    return replace(arguments, voi_lut=voi_lut, image_mode=mode, range_percentile=percentile)


def load_tower(arguments: DownstreamArguments, model: AdaptorModel, device: str) -> VisionTower:
    """The vision tower itself; its spec says how image files are read."""
    tower = vision_tower_of(arguments, model)
    tower = tower.to(device) if isinstance(tower, VisionTower) else load_vision_tower(tower, device=device)
    tower.spec = arguments.reading.in_spec(tower.spec)
    return tower


def vision_tower_of(arguments: DownstreamArguments, model: AdaptorModel) -> Any:
    """What `build_cache` takes for the vision tower: the checkpoint's own, if it has one, else its name."""
    return model.vision_model or named_tower(arguments, "vision") or model.config.vision_tower


def load_checkpoint_text_tower(arguments: DownstreamArguments, model: AdaptorModel, device: str) -> TextTower:
    """The checkpoint's text tower."""
    if model.text_model is not None:
        return model.text_model.to(device)
    reference = named_tower(arguments, "text") or model.config.text_tower
    if reference is None:
        raise ValueError(
            f"The config of {arguments.model} names no text tower: say with --text_tower which one it was."
        )
    return load_text_tower(reference, device=device)


def cost_of(arguments: DownstreamArguments, seconds: float) -> dict[str, dict[str, Any]]:
    """What a comparison says of the model's vision tower (licence, size of embeddings, minutes) and its weights."""
    model = load_adaptor(arguments)
    spec = arguments.reading.in_spec(model.config.vision_tower or {})
    # Stored as float16.
    gigabytes = 2 * spec.get("hidden_size", 0) * 100_000 / 1e9
    tower = {"license": spec.get("license"), "gigabytes": gigabytes, "minutes": seconds / 60}
    return {tower_name(spec): tower, weights_digest(model): {"minutes": seconds / 60}}


def cache_dir_of(arguments: DownstreamArguments) -> Path:
    return Path(arguments.cache_dir or Path(arguments.output_dir) / "embeddings")


__all__ = [
    "LoadedParts",
    "cache_dir_of",
    "check_models",
    "cost_of",
    "load_adaptor",
    "load_checkpoint_text_tower",
    "load_classification",
    "load_external",
    "load_external_parts",
    "load_parts",
    "load_tower",
    "model_folders",
    "record_rows",
    "split_rule_of",
    "trained_towers",
    "used_models",
    "vision_tower_of",
    "with_default_reading",
]
