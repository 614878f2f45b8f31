"""Stored numbers as tensors of a batch: int8 times its scales, ragged rows padded; the same on every device."""

import torch

from .columns import Column

# Both are of the same tokens.
_MASKED = {"text_tokens": "text_attention_mask", "text_attention": "text_attention_mask"}


def fixed_batch(column: Column, parts: list[torch.Tensor]) -> torch.Tensor:
    """(n, *shape) float16 or float32 of what is stored; int8 becomes float16, int16 int64.

    Args:
        column: of fixed shape.
        parts: (n, *shape) numbers, and with int8 their scales.
    """
    values = parts[0]
    if column.dtype == "int8":
        # In float32, so that the product is rounded once.
        values = (values.float() * parts[1].reshape(*values.shape[:-1], 1)).half()
    return values.long() if column.dtype == "int16" else values


def ragged_batch(
    column: Column, parts: list[torch.Tensor], starts: torch.Tensor, lengths: torch.Tensor
) -> dict[str, torch.Tensor]:
    """Rows of different length, padded to the longest: (n, L, ...) by name, and for text tokens their mask.

    Args:
        column: of ragged shape.
        parts: (total, ...) elements, and with int8 their scales.
        starts: (n,) int64, first element of each row.
        lengths: (n,) int64, elements of each row.

    Returns:
        The column, padded with zeros, whole numbers with -1; and `text_attention_mask`, (n, L) int64.
    """
    longest = int(lengths.max()) if len(lengths) else 0
    place = torch.arange(longest, device=lengths.device)
    mask = place < lengths[:, None]
    fill = -1 if column.dtype == "int16" else 0
    padded = []
    for part in parts:
        out = part.new_full((*mask.shape, *part.shape[1:]), fill)
        out[mask] = part[(starts[:, None] + place)[mask]]
        padded.append(out)
    found = {column.name: fixed_batch(column, padded)}
    if column.name in _MASKED:
        found[_MASKED[column.name]] = mask.long()
    return found


def batch_names(column: Column) -> list[str]:
    """Names of what a column adds to a batch."""
    return [column.name, *([_MASKED[column.name]] if column.name in _MASKED else [])]
