"""From the script's data arguments to the splits that contrastive training reads."""

import logging
import os
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from ..data.catalog import dataset_names
from ..data.pair_arguments import source_arguments
from ..data.private_rows import private_rows, refuse_identifying_columns
from ..data.split_rule import SplitRule
from ..data.table_arguments import public_options, table_options
from ..privacy.mode import PrivacyArguments, is_private
from .script_arguments import DataArguments

if TYPE_CHECKING:
    from datasets import Dataset

    from ..data.sources import Source
    from ..embeddings import EmbeddingCache

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class TrainingPairs:
    """
    The table that a model is pre-trained on.

    Args:
        dataset (`datasets.Dataset`): Pairs of all splits; in private mode with keyed hashes as ids. Of several sources
            with the column `source`, and with ids that begin with whose they are.
        rule (`SplitRule`): How they were split.
        patient_ids (`list`): Of each training and validation row, never hashed, None where unknown; of the first source
            where there are several.
        namespaces (`tuple[str, ...]`): What these ids belong to.
        more (`tuple`): The same of the other sources: ids and their namespaces.
    """

    dataset: "Dataset"
    rule: SplitRule
    patient_ids: list[str | None]
    namespaces: tuple[str, ...]
    more: tuple[tuple[list[str | None], tuple[str, ...]], ...] = ()


def load_training_pairs(arguments: DataArguments, privacy: PrivacyArguments | None = None) -> TrainingPairs:
    """
    The table of pairs with a split on every row, thinned to `train_fraction` of the training patients.

    Rows without a split are split by patient, by the rule of the options. A table that brings a split but no validation
    part gets one from its training patients: the best checkpoint must not be chosen on the test part. In private mode
    the ids come out as keyed hashes; splits are those of the ids themselves. Each of several sources is loaded, split
    and thinned alone; then they are joined, see `join_sources`.

    Raises:
        ValueError: for anything wrong with the table; see `load_pairs`.
    """
    from ..data.sources import join_sources, public_label

    single = source_arguments(arguments)
    sources = [_load_source(name, one, privacy or PrivacyArguments()) for name, one in single.items()]
    shaping = [source.shaping_patients for source in sources]
    if len(sources) == 1:
        (source,) = sources
        return TrainingPairs(private_rows(source.dataset), source.rule, shaping[0], source.namespaces)
    rule = SplitRule.of_sources(
        {public_label(source.name, number): source.rule for number, source in enumerate(sources, 1)}
    )
    joined = private_rows(join_sources(sources, rule.ids), keep=("source",))
    known = [(patients, source.namespaces) for patients, source in zip(shaping, sources, strict=True)]
    return TrainingPairs(joined, rule, *known[0], tuple(known[1:]))


def _load_source(name: str, arguments: DataArguments, privacy: PrivacyArguments) -> "Source":
    """One source, by its own rules."""
    from ..data.sources import Source
    from ..data.splits import patient_fraction
    from ..data.tables import load_pairs
    from ..data.training_rows import id_namespaces

    rule = SplitRule(
        seed=arguments.split_seed,
        validation_fraction=arguments.validation_fraction,
        test_fraction=arguments.test_fraction,
        ids=arguments.ids or "canonical",
    )
    if arguments.dataset is not None:
        pairs, rule = load_dataset_pairs(arguments, rule)
    else:
        refuse_identifying_columns(
            arguments.train_file, arguments.image_column, privacy, arguments.delimiter, arguments.encoding
        )
        pairs = load_pairs(arguments.train_file, view_column=arguments.view_column, **table_options(arguments))
        pairs, rule = rule.apply(pairs, arguments.split_alias)
        pairs = patient_fraction(pairs, arguments.train_fraction, seed=rule.seed, ids=rule.ids)
    # What the card calls the data is no name of a set of ids, unless it was said.
    owner = arguments.id_namespace or arguments.dataset or arguments.dataset_name
    return Source(name, pairs, rule, id_namespaces(owner, arguments.train_file))


def load_dataset_pairs(arguments: DataArguments, rule: SplitRule) -> tuple["Dataset", SplitRule]:
    """
    The pairs of a public data set, all splits in one table, and the rule that they were split by.

    A reference split may have the same images in two parts: then the later part is left out, with a warning.

    Raises:
        FileNotFoundError, ValueError: see `load_public_dataset`.
    """
    import datasets

    from ..data import describe, load_public_dataset
    from ..data.catalog import parse_options

    parts = load_public_dataset(
        arguments.dataset,
        arguments.data_root,
        "pretraining",
        arguments.split_scheme,
        arguments.train_fraction,
        **public_options(arguments, rule),
        **parse_options(arguments.dataset_option),
    )
    described = describe(parts)
    if described["overlaps"]:
        seen: set[str] = set()
        for name in list(parts):
            ids = set(parts[name]["image_id"][:])
            if ids <= seen:
                logger.warning("The images of %s are all in an earlier part of the split: it is left out.", name)
                del parts[name]
            seen |= ids
    rule = replace(rule, scheme=described["split_scheme"], dataset=arguments.dataset)
    return datasets.concatenate_datasets(list(parts.values())), rule


def contrastive_splits(cache: "EmbeddingCache") -> dict[str, "EmbeddingCache"]:
    """
    The views of a cache that contrastive training uses: rows with an image and a text, by split.

    Raises:
        ValueError: if the training part holds fewer than two different texts.
    """
    paired = cache.paired()
    views = {name: paired.split(name) for name in ("train", "validation", "test") if paired.splits.get(name)}
    if "train" not in views or views["train"].num_texts < 2:
        pairs, texts = (len(views["train"]), views["train"].num_texts) if "train" in views else (0, 0)
        raise ValueError(
            f"Contrastive training needs at least two pairs with different texts: the training split has {pairs} pairs "
            f"and {texts} distinct texts (of {len(cache)} rows, {cache.num_image_only} have no text). Check the text "
            "column, the filters and the split."
        )
    return views


def record_training_rows(
    folder: str | os.PathLike,
    cache_views: dict[str, "EmbeddingCache"],
    pairs: TrainingPairs | None,
    namespace: str | None = None,
) -> None:
    """
    Write `training_rows.safetensors` for what a model is trained and chosen on, before it is.

    Args:
        folder: Of the run.
        cache_views: From `contrastive_splits`.
        pairs: What the cache was built from; None for a ready cache, whose own ids are taken where they are no hashes.
        namespace: Of these ids. Of a cache of several sources without one, those of a public data set are of its name.
    """
    from ..data.training_rows import place_of_tower, write_training_rows

    # A tower that an earlier run trained brings the rows of that run.
    specs = next(iter(cache_views.values()))
    earlier = [place for spec in (specs.vision_spec, specs.text_spec) if (place := place_of_tower(spec))]
    shaping = [cache_views[name] for name in ("train", "validation") if name in cache_views]
    digests = [view.image_digests() for view in shaping]
    images = None if any(part is None for part in digests) else np.concatenate(digests)
    if pairs is not None:
        known = {"ids": pairs.rule.ids, "more": pairs.more}
        write_training_rows(folder, images, pairs.patient_ids, pairs.namespaces, earlier=earlier, **known)
        return
    known = _known_patients(shaping, namespace)
    if is_private():
        write_training_rows(folder, images, None, [name for _, names in known for name in names], earlier=earlier)
    else:
        write_training_rows(folder, images, *known[0], more=known[1:], earlier=earlier)


def _known_patients(
    views: list["EmbeddingCache"], namespace: str | None
) -> list[tuple[list[str | None], tuple[str, ...]]]:
    """Of each source of a ready cache the patients of these views, as it has them, and their namespaces."""
    from ..data.sources import own_ids
    from ..data.training_rows import id_namespaces

    sources = dict.fromkeys(name for view in views for name in view.sources)
    if not sources:
        return [([patient for view in views for patient in view.pairs["patient_id"][:]], id_namespaces(namespace))]
    found = []
    for name in sources:
        parts = [view.source(name) for view in views if name in view.sources]
        owner = namespace or (name if name in dataset_names() else None)
        if owner is None:
            # Nothing can be compared with its ids; that they are there keeps the whole from counting as disjoint.
            found.append(([], (f"unnamed:{views[0].source_names.index(name) + 1}",)))
            continue
        found.append((own_ids([p for part in parts for p in part.pairs["patient_id"][:]]), id_namespaces(owner)))
    return found


__all__ = ["TrainingPairs", "contrastive_splits", "load_training_pairs", "record_training_rows"]
