"""From a cache's batch to what the Adaptor reads: the pooled embedding first, then the tokens."""

from collections.abc import Mapping

import torch

from ..token_sequences_adaptor import token_sequence
from .columns import Column
from .stored import HOW


def stored_column(stored: Mapping[str, Column], name: str, cache: str = "this cache") -> Column:
    """
    A column of `cache.stored_columns`.

    Raises:
        ValueError: the cache has no such column; the message says how to build one.
    """
    if name not in stored:
        kept = f"it keeps {', '.join(stored)}" if stored else "it keeps one vector an image and a text"
        make = (
            f"Build it again with {HOW[name]}; the same options of `python -m adaptor_hf.embeddings build` otherwise."
            if name in HOW
            else f"What a build can store: {', '.join(HOW)}."
        )
        raise ValueError(f"{cache} has no {name}: {kept}. {make}")
    return stored[name]


def grid_of(column: Column) -> tuple[int, int]:
    """Rows and columns of the grid of `image_tokens`."""
    rows, columns = column.info["grid"]
    return int(rows), int(columns)


def image_sequence(batch: Mapping[str, torch.Tensor], column: Column) -> torch.Tensor:
    """
    The Adaptor's input of a batch's images.

    Args:
        batch: With `image_embeds` (n, D) and `image_tokens` (n, T, D), of a view with that column.
        column: `cache.stored_columns["image_tokens"]`, which says whether a class token comes first. It is left out: a
            live tower's sequence has none.

    Returns:
        (n, 1 + h * w, D): the pooled embedding, then the grid's tokens row by row.

    Raises:
        ValueError: the batch has no tokens, or they are not as wide as the pooled embedding.
    """
    _check_has(batch, "image_tokens")
    return token_sequence(batch["image_embeds"], batch["image_tokens"][:, int(column.info["prefix"]) :])


def text_sequence(batch: Mapping[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """
    The Adaptor's input of a batch's texts.

    Args:
        batch: With `text_embeds` (n, D), `text_tokens` (n, L, D) and `text_attention_mask` (n, L), of a view with the
            column `text_tokens`.

    Returns:
        (n, 1 + L, D): the pooled embedding, then all tokens, special ones too; and its mask (n, 1 + L) int64, 1 for the
        pooled embedding and for tokens, 0 for padding.

    Raises:
        ValueError: the batch has no tokens, or they are not as wide as the pooled embedding.
    """
    _check_has(batch, "text_tokens")
    mask = batch["text_attention_mask"]
    return token_sequence(batch["text_embeds"], batch["text_tokens"]), torch.cat(
        [torch.ones_like(mask[:, :1]), mask], 1
    )


def with_sequences(batch: dict[str, torch.Tensor], stored: Mapping[str, Column]) -> dict[str, torch.Tensor]:
    """
    A cache's batch as the Adaptor reads it: sequences in the place of pooled embeddings and tokens, where it has some.

    Args:
        batch: Of a view with `image_tokens`, `text_tokens`, both or none.
        stored: `cache.stored_columns`.

    Returns:
        `image_embeds` (n, 1 + T, D), `text_embeds` (n, 1 + L, D) and its `text_attention_mask`, and all else as it was.

    Raises:
        ValueError: tokens are not as wide as the pooled embedding.
    """
    found = {name: values for name, values in batch.items() if name not in ("image_tokens", "text_tokens")}
    if "image_tokens" in batch:
        found["image_embeds"] = image_sequence(batch, stored["image_tokens"])
    if "text_tokens" in batch:
        found["text_embeds"], found["text_attention_mask"] = text_sequence(batch)
    return found


def _check_has(batch: Mapping[str, torch.Tensor], name: str) -> None:
    if name not in batch:
        raise ValueError(
            f'This batch has no {name}. Open the cache with open_cache(path, columns=("{name}",)), or take '
            f'cache.with_columns("{name}").'
        )


__all__ = ["grid_of", "image_sequence", "stored_column", "text_sequence", "with_sequences"]
