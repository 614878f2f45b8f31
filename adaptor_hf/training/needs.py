"""What objective and aligner need of the data: whether it is there, how it is to be had, a cache opened with it."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any

import numpy as np
from torch.utils.data import Dataset

from ..data.stored_arguments import StoredArguments, kept_of_images, kept_of_texts
from ..embeddings.reader import EmbeddingCache
from ..embeddings.sequences import stored_column
from ..embeddings.targets import TARGETS
from ..files import printable
from ..objectives.base import NEEDS, Objective
from ..objectives.loading import objective_name
from .base_trainer import global_random_state_kept
from .divided import length_of
from .pair_batches import PairCollator

_COLUMNS = {
    "image_tokens": ("image_tokens",),
    "text_tokens": ("text_tokens",),
    "words": ("words",),
    "sentences": ("sentences",),
    "views": ("view_embeds", "view_boxes"),
    TARGETS: (TARGETS,),
}
# Options of a build that keep what is needed, with an example of a value.
_OPTIONS = {"image_tokens": " all", "text_tokens": "", "words": "", "sentences": "", "views": " 2"}
_POOLED = frozenset({"image_tokens", "text_tokens"})


def cache_columns(needs: Iterable[str]) -> tuple[str, ...]:
    """
    Columns that a cache is opened with, for what an objective needs.

    Raises:
        ValueError: a need that there is none of.
    """
    needs = check_names(needs)
    found = [column for need in NEEDS if need in needs for column in _COLUMNS.get(need, ())]
    return (*found, "view_tokens") if {"views", "image_tokens"} <= needs else tuple(found)


def check_names(needs: Iterable[str], objective: str = "The objective") -> frozenset[str]:
    """
    The needs, as a set.

    Raises:
        ValueError: one that there is none of.
    """
    if isinstance(needs, str) or (unknown := sorted(set(needs) - set(NEEDS))):
        named = repr(needs) if isinstance(needs, str) else ", ".join(map(repr, unknown))
        raise ValueError(
            f"{objective} says that it needs {named}. `needs` is a frozenset of some of {', '.join(NEEDS)}; other "
            "columns of a data set reach an objective without being named."
        )
    return frozenset(needs)


def needs_of_aligner(aligner: Any) -> frozenset[str]:
    """
    What an aligner needs, whatever is minimised: tokens of both sides where it pools them by attention.

    Args:
        aligner: What may have `attention_pooling_heads`: an `AdaptorConfig`, or the fields of `--aligner`.
    """
    return frozenset() if getattr(aligner, "attention_pooling_heads", None) is None else _POOLED


def check_needs(
    objective: Objective, dataset: Dataset | Any, collator: Callable[[Any], Any] | None = None, aligner: Any = None
) -> None:
    """
    Check that a data set gives what objective and aligner need, before the first step.

    Args:
        objective ([`~adaptor_hf.objectives.Objective`]): What is minimised.
        dataset (`EmbeddingCache` or any data set): Of a cache it counts what it keeps, whichever columns it is opened
            with. Of another data set one batch is looked at, where more than pairs is needed and it has a length.
        collator (`Callable`, *optional*): Makes that batch, as of a `DataLoader`; by default [`PairCollator`].
        aligner (*optional*): As of [`needs_of_aligner`].

    Raises:
        ValueError: naming what is missing, and how it is made.
    """
    asking = _asking(objective, aligner)
    if isinstance(dataset, EmbeddingCache):
        for who, needs in asking:
            _check_cache(who, needs, dataset)
    elif any(needs - {"pairs"} for _, needs in asking) and length_of(dataset):
        # Examples may be drawn at random: the run's own draws stay what they are.
        with global_random_state_kept():
            first = dataset.__getitems__([0]) if hasattr(dataset, "__getitems__") else [dataset[0]]
            batch = (collator or PairCollator())(first)
        for who, needs in asking:
            _check_batch(who, needs, batch)


def with_needs(objective: Objective | None, dataset: Dataset | Any, aligner: Any = None) -> Dataset | Any:
    """
    A data set that gives what objective and aligner need: a cache opened with these columns, beside its own, its tokens
    as sequences that the Adaptor reads; any other data set as it is. Of a dictionary of data sets, each.

    Args:
        objective ([`~adaptor_hf.objectives.Objective`], *optional*): None where a model is read out only.
        dataset (`EmbeddingCache` or any data set): What is read.
        aligner (*optional*): As of [`needs_of_aligner`].

    Raises:
        FileNotFoundError, ValueError: the cache has no such column, or a file of it is missing or damaged.
    """
    if isinstance(dataset, dict):
        return {name: with_needs(objective, part, aligner) for name, part in dataset.items()}
    columns = cache_columns((frozenset() if objective is None else objective.needs) | needs_of_aligner(aligner))
    if not isinstance(dataset, EmbeddingCache) or not columns:
        return dataset
    # Where a recipe of views turns images, their boxes say not all.
    more = ("view_maps",) if "view_embeds" in columns and "view_maps" in dataset.stored_columns else ()
    tokens = {"image_tokens", "text_tokens"} & set(columns)
    return dataset.with_columns(*dataset.columns, *columns, *more, sequences=bool(tokens) or dataset.sequences)


def checked_with_needs(
    objective: Objective, dataset: Dataset | Any, collator: Callable[[Any], Any], aligner: Any = None
) -> Dataset | Any:
    """[`check_needs`], then [`with_needs`], of a data set or of each in a dictionary of several; None stays None."""
    if isinstance(dataset, dict):
        return {name: checked_with_needs(objective, part, collator, aligner) for name, part in dataset.items()}
    if dataset is None:
        return None
    check_needs(objective, dataset, collator, aligner)
    return with_needs(objective, dataset, aligner)


def tokens_read(objective: Objective, dataset: Dataset | Any) -> list[str] | None:
    """For `config.trained_on`: tokens that training reads, of the objective's needs or of a cache opened with them."""
    opened = dataset.columns if isinstance(dataset, EmbeddingCache) and dataset.sequences else ()
    return sorted({"image_tokens", "text_tokens"} & {*objective.needs, *opened}) or None


def as_model_reads(model: Any, dataset: Dataset | Any) -> Dataset | Any:
    """
    A data set as a model reads it, whatever it was trained with: [`with_needs`] of its aligner alone.

    Raises:
        ValueError: a cache lacks tokens that the model pools; the message says how they are kept.
    """
    config = getattr(model, "config", None)
    if isinstance(dataset, EmbeddingCache):
        for who, needs in _asking(None, config):
            _check_cache(who, needs, dataset)
    return with_needs(None, dataset, config)


def check_stored_options(objective: type[Objective], stored: StoredArguments, aligner: Any = None) -> None:
    """
    Check, before any tower runs, that the options of a build keep what objective and aligner need.

    Raises:
        ValueError: naming the options to add.
    """
    kept = kept_of_images(stored) | kept_of_texts(stored)
    for who, needs in _asking(objective, aligner):
        if missing := [need for need in NEEDS if need in needs and need in _OPTIONS and not kept.get(need)]:
            raise ValueError(
                f"{who} needs {' and '.join(_said(need) for need in missing)}. Add "
                f"{' '.join(f'--{need}{_OPTIONS[need]}' for need in missing)}."
            )


def check_labels(objective: type[Objective], column_names: Collection[str]) -> None:
    """
    Check, before any tower runs, that a table of pairs has the labels that an objective needs.

    Raises:
        ValueError: it has none.
    """
    if TARGETS in objective.needs and "labels" not in column_names:
        raise ValueError(
            f"{_named(objective)} needs targets, and the pairs have no labels: the options of a table read none. Build "
            "the cache in Python, of what adaptor_hf.tasks.data.load_table reads with label_columns and text_column, "
            "and give it as --cache instead of table and towers (docs/objectives.md, Labels)."
        )


def _asking(objective: Objective | type[Objective] | None, aligner: Any) -> list[tuple[str, frozenset[str]]]:
    """Who needs something, and what."""
    found = []
    if objective is not None:
        who = _named(objective if isinstance(objective, type) else type(objective))
        found.append((who, check_names(objective.needs, who)))
    if pooled := needs_of_aligner(aligner):
        found.append(("The aligner with attention_pooling_heads", pooled))
    return found


def _check_cache(who: str, needs: frozenset[str], cache: EmbeddingCache) -> None:
    for column in cache_columns(needs):
        try:
            if column not in cache.stored_columns and column != TARGETS and len(cache.members) == 1:
                # Without the cache's place.
                stored_column(cache.stored_columns, column, "the embedding cache")
            cache.with_columns(column)
        except ValueError as error:
            raise ValueError(f"{who} needs {_said(column)}: {error}") from None
    if "pairs" in needs:
        for modality, rows in (("image", cache.image_rows), ("text", cache.text_rows)):
            if missing := int(np.count_nonzero(rows < 0)):
                raise ValueError(
                    f"{who} needs pairs, and {missing:,} of {len(rows):,} rows of the embedding cache have no "
                    f"{modality}. Take cache.paired()."
                )


def _check_batch(who: str, needs: frozenset[str], batch: Any) -> None:
    if not isinstance(batch, Mapping):
        return
    for need in NEEDS:
        if need not in needs:
            continue
        if need.endswith("_tokens"):
            name = f"{need.removesuffix('_tokens')}_embeds"
            raw = "pixel_values" if need == "image_tokens" else "input_ids"
            there = getattr(batch.get(name), "ndim", 0) == 3 or raw in batch
            wanted = (
                f"{name} of shape (1 + tokens, D) in each example: the pooled embedding first, then the tokens; or "
                f"{raw} for a tower"
            )
        elif need == "pairs":
            there = bool({"pixel_values", "image_embeds"} & set(batch) and {"input_ids", "text_embeds"} & set(batch))
            wanted = "pixel_values or image_embeds, and input_ids or text_embeds"
        elif need == "views":
            there = any(name.startswith("view_") for name in batch)
            wanted = "view_embeds of shape (views, D) or view_pixel_values in each example"
        else:
            there, wanted = need in batch, f"a column {need} of numbers, alike in shape, in each example"
        if not there:
            raise ValueError(
                f"{who} needs {_said(need)}, and the data set does not give them: it has "
                f"{', '.join(map(str, batch))}. Give {wanted}; or train on an embedding cache that keeps them."
            )


def _said(need: str) -> str:
    return {"image_tokens": "tokens of images", "text_tokens": "tokens of texts"}.get(need, need)


def _named(objective: type[Objective]) -> str:
    return f"The objective {printable(objective_name(objective))}"


__all__ = [
    "as_model_reads",
    "cache_columns",
    "check_labels",
    "check_names",
    "check_needs",
    "check_stored_options",
    "checked_with_needs",
    "needs_of_aligner",
    "tokens_read",
    "with_needs",
]
