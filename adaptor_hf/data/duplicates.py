"""Images that stand in several splits as byte copies, whatever their ids are."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from .splits import SPLITS

if TYPE_CHECKING:
    from ..embeddings import EmbeddingCache

logger = logging.getLogger(__name__)

ACTIONS = ("refuse", "drop", "keep")
"""What `--duplicates` takes."""

_EXAMPLES = 5


@dataclass
class Copies:
    """
    Image contents in several splits.

    Attributes:
        contents: Number of distinct contents in more than one split.
        shared: Number of contents for each pair of splits that has any, such as {("train", "test"): 3}.
        rows: `(n,)` bool, rows that show such a content.
        training: `(n,)` bool, the rows of "train" among them.
        examples: Places of two rows of one content in two splits, one pair for each of some contents.
        across_sources: Of the contents, those that stand in more than one source.
    """

    contents: int
    shared: dict[tuple[str, str], int]
    rows: np.ndarray
    training: np.ndarray
    examples: list[tuple[int, int]]
    across_sources: int = 0


def copies_across(digests: np.ndarray, splits: Sequence[str], sources: np.ndarray | None = None) -> Copies:
    """
    Find image contents that stand in more than one split.

    Args:
        digests: `(n,)` digests of the images' contents, bytes; empty where there is no image.
        splits: `(n,)` split of each row.
        sources: `(n,)` source of each row, where there are several.

    Raises:
        ValueError: Arrays of different length.
    """
    digests, splits = np.asarray(digests), np.asarray(splits, dtype=object).astype(str)
    if len(digests) != len(splits):
        raise ValueError(f"digests and splits are of the same rows, got {len(digests)} and {len(splits)}.")
    places = np.flatnonzero(digests != digests.dtype.type())
    order = places[np.argsort(digests[places], kind="stable")]
    starts = np.flatnonzero(np.r_[True, digests[order][1:] != digests[order][:-1]]) if len(order) else order
    shared: dict[tuple[str, str], int] = {}
    rows, examples, contents, across = np.zeros(len(digests), bool), [], 0, 0
    sizes = np.diff(np.r_[starts, len(order)])
    # A group of one row cannot be in two splits, and there may be millions of these.
    starts, sizes = starts[sizes > 1], sizes[sizes > 1]
    by_first_row = np.argsort(order[starts])
    for start, size in zip(starts[by_first_row], sizes[by_first_row], strict=True):
        group = order[start : start + size]
        names = sorted(set(splits[group]), key=_rank)
        if len(names) == 1:
            continue
        contents += 1
        across += sources is not None and len(set(sources[group].tolist())) > 1
        rows[group] = True
        for place, first in enumerate(names):
            for second in names[place + 1 :]:
                shared[first, second] = shared.get((first, second), 0) + 1
        if len(examples) < _EXAMPLES:
            examples.append(tuple(int(group[splits[group] == name][0]) for name in names[:2]))
    shared = dict(sorted(shared.items(), key=lambda item: (_rank(item[0][0]), _rank(item[0][1]))))
    return Copies(contents, shared, rows, rows & (splits == "train"), examples, across)


def describe_copies(copies: Copies, source_rows: Sequence[int | str], splits: Sequence[str]) -> str:
    """
    Counts and example rows of `copies_across`, without ids and paths.

    Args:
        copies: What was found.
        source_rows: `(n,)` numbers by which rows are named, of several sources with the source's name.
        splits: `(n,)` split of each row.
    """
    counts = ", ".join(f"{count} in both {first} and {second}" for (first, second), count in copies.shared.items())
    shown = ", ".join(
        " and ".join(f"{source_rows[place]} ({splits[place]})" for place in pair) for pair in copies.examples
    )
    across = f" ({copies.across_sources} of them in more than one source)" if copies.across_sources else ""
    more = f", and {copies.contents - len(copies.examples)} more" if copies.contents > len(copies.examples) else ""
    return (
        f"{copies.contents} images are in several splits as byte copies, whatever their ids: {counts}{across}. Source "
        f"rows {shown}{more} (0-based, header not counted)."
    )


def without_copies(cache: EmbeddingCache, action: str = "refuse") -> EmbeddingCache:
    """
    Check that no image of a cache stands in two splits; the digests of the cache are compared, no file is read.

    Args:
        cache: All splits.
        action: "refuse" stops where there are copies. "drop" leaves the training rows among them out, and says how
            many; held-out rows stay. "keep" says how many and goes on, as published protocols do.

    Returns:
        The cache itself, or a view of the rows that are left.

    Raises:
        ValueError: There are copies and `action` is "refuse", all training rows are copies, or `action` is unknown.
            The message has counts and source rows.
    """
    if action not in ACTIONS:
        raise ValueError(f"duplicates (--duplicates) is refuse, drop or keep, got {action!r}.")
    digests = cache.image_digests()
    if digests is None:
        logger.info("The cache does not know its images' contents: copies of images across splits are not looked for.")
        return cache
    if len(cache.splits) < 2:
        return cache
    ids = cache.pairs.with_format("arrow").select_columns(["split", "source_row"])[:]
    splits, source_rows = ids["split"].to_pylist(), ids["source_row"].to_pylist()
    copies = copies_across(digests, splits, cache.source_codes)
    if not copies.contents:
        return cache
    if cache.source_codes is not None:
        names = cache.source_names
        source_rows = [f"{row} of {names[code]}" for row, code in zip(source_rows, cache.source_codes, strict=True)]
    said = describe_copies(copies, source_rows, splits)
    if action == "refuse":
        raise ValueError(
            f"{said} Held-out results would be too good. Correct the table (python -m adaptor_hf.data check --table "
            "finds them), give the copies the same patient id, or pass --duplicates drop to leave them out of training."
        )
    if action == "keep":
        logger.warning("%s They stay: held-out results are too good.", said)
        return cache
    logger.warning("%s %d training rows are left out.", said, copies.training.sum())
    if copies.training.sum() == splits.count("train"):
        raise ValueError("All training images are copies of held-out ones: there is nothing to train on.")
    return cache.select(np.flatnonzero(~copies.training))


def _rank(split: str) -> tuple[int, str]:
    return (SPLITS.index(split) if split in SPLITS else len(SPLITS)), split


__all__ = ["ACTIONS", "Copies", "copies_across", "describe_copies", "without_copies"]
