"""From the script's data arguments to the splits that contrastive training reads."""

import logging
from typing import TYPE_CHECKING

from ..private_mode import PrivacyArguments, private_rows, refuse_identifying_columns
from .recipe import DataArguments

if TYPE_CHECKING:
    from datasets import Dataset

    from ..embeddings import EmbeddingCache

logger = logging.getLogger(__name__)


def load_training_pairs(arguments: DataArguments, seed: int, privacy: PrivacyArguments | None = None) -> "Dataset":
    """
    The table of pairs with a split on every row, thinned to `train_fraction` of the training patients.

    Rows without a split are split by patient. A table that brings a split but no validation part gets one from its
    training patients: the best checkpoint must not be chosen on the test part. In private mode the ids come out as
    keyed hashes; splits are those of the ids themselves.

    Raises:
        ValueError: for anything wrong with the table; see `load_pairs`.
    """
    if arguments.dataset is not None:
        return private_rows(load_dataset_pairs(arguments, seed))
    from ..data.splits import assign_splits, check_disjoint, patient_fraction
    from ..data.tables import load_pairs

    refuse_identifying_columns(arguments.train_file, arguments.image_column, privacy or PrivacyArguments())
    pairs = load_pairs(
        arguments.train_file,
        image_column=arguments.image_column,
        text_column=arguments.text_column,
        image_root=arguments.image_root,
        patient_column=arguments.patient_column,
        study_column=arguments.study_column,
        split_column=arguments.split_column,
        id_column=arguments.id_column,
        view_column=arguments.view_column,
        filters=arguments.filter or None,
        voi_lut=arguments.voi_lut,
        missing_words=arguments.missing_word,
    )
    pairs = rename_splits(pairs, arguments.split_alias)
    shares = {"validation_fraction": arguments.validation_fraction, "test_fraction": arguments.test_fraction}
    given = set(pairs.unique("split"))
    if given and None not in given and "validation" not in given and "train" in given:
        logger.warning("The table has no validation split: taking one from its training patients.")
        pairs = split_training_rows(pairs, arguments.validation_fraction, seed)
    else:
        pairs = assign_splits(pairs, **shares, seed=seed)
    check_disjoint(pairs)
    return private_rows(patient_fraction(pairs, arguments.train_fraction, seed=seed))


def load_dataset_pairs(arguments: DataArguments, seed: int) -> "Dataset":
    """
    The pairs of a public data set, all splits in one table.

    A reference split may have the same images in two parts: then the later part is left out, with a warning.

    Raises:
        FileNotFoundError, ValueError: see `load_local_dataset`.
    """
    import datasets

    from ..data import describe, load_local_dataset
    from ..data.__main__ import parse_options

    parts = load_local_dataset(
        arguments.dataset,
        arguments.data_root,
        "pretraining",
        arguments.split_scheme,
        arguments.train_fraction,
        seed=seed,
        validation_fraction=arguments.validation_fraction,
        test_fraction=arguments.test_fraction,
        voi_lut=arguments.voi_lut,
        **parse_options(arguments.dataset_option),
    )
    if describe(parts)["overlaps"]:
        seen: set[str] = set()
        for name in list(parts):
            ids = set(parts[name]["image_id"][:])
            if ids <= seen:
                logger.warning("The images of %s are all in an earlier part of the split: it is left out.", name)
                del parts[name]
            seen |= ids
    return datasets.concatenate_datasets(list(parts.values()))


def rename_splits(pairs: "Dataset", aliases: list[str]) -> "Dataset":
    """Apply `old=new` renames to the column `split`."""
    from ..data.splits import SPLIT_ALIASES, SPLITS

    if not aliases:
        return pairs
    renames = {}
    for alias in aliases:
        old, separator, new = alias.partition("=")
        if not separator or new not in SPLITS:
            raise ValueError(f"split_alias must read old=new with new one of {', '.join(SPLITS)}, got {alias!r}.")
        renames[SPLIT_ALIASES.get(old.lower(), old)] = new
    values = pairs["split"][:]
    if missing := sorted(renames.keys() - set(values)):
        raise ValueError(f"split_alias names splits that no row has: {', '.join(missing)}.")
    return replace_splits(pairs, [renames.get(value, value) for value in values])


def split_training_rows(pairs: "Dataset", validation_fraction: float, seed: int) -> "Dataset":
    """Move a share of the training patients to validation; other rows keep their split."""
    from ..data.splits import assign_splits

    splits = pairs["split"][:]
    rows = [row for row, split in enumerate(splits) if split == "train"]
    training = replace_splits(pairs.select(rows), [None] * len(rows))
    assigned = assign_splits(training, validation_fraction=validation_fraction, test_fraction=0.0, seed=seed)
    for row, split in zip(rows, assigned["split"][:], strict=True):
        splits[row] = split
    return replace_splits(pairs, splits)


def replace_splits(pairs: "Dataset", splits: list[str | None]) -> "Dataset":
    from datasets import Value

    column = pairs.column_names.index("split")
    replaced = pairs.remove_columns("split").add_column("split", splits, feature=Value("string"))
    order = replaced.column_names[:-1]
    return replaced.select_columns([*order[:column], "split", *order[column:]])


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


__all__ = ["contrastive_splits", "load_training_pairs", "rename_splits", "split_training_rows"]
