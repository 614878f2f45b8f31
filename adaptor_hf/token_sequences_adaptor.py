"""The sequence that an Adaptor reads of an image or a text: the pooled embedding, then the tokens, and its mask.

This file is flat on purpose: it is copied beside a checkpoint as remote code.
"""

import torch


def token_sequence(pooled: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    """
    Args:
        pooled (`torch.Tensor` of shape `(B, D)`), tokens (`torch.Tensor` of shape `(B, N, D)`): Of the same inputs.

    Returns:
        `torch.Tensor` of shape `(B, 1 + N, D)`.

    Raises:
        ValueError: the pooled embedding has another width than the tokens, as with `pooling="cls+mean"`.
    """
    if pooled.shape[-1] != tokens.shape[-1]:
        raise ValueError(
            f"The pooled embedding is {pooled.shape[-1]} wide and the tokens are {tokens.shape[-1]} wide, as with "
            'pooling="cls+mean" or several layers side by side: they make no sequence. Use a tower and an Adaptor with '
            'pooling="cls" or "mean", and of several layers layers_merge="mean".'
        )
    return torch.cat([pooled[:, None], tokens], dim=1)


def check_sequence(embeds: torch.Tensor | None, width: int, name: str) -> torch.Tensor | None:
    """
    Embeddings `(B, width)` or `(B, N, width)` as a sequence `(B, N, width)`.

    Raises:
        ValueError: another shape.
    """
    if embeds is None:
        return None
    if embeds.ndim not in (2, 3) or embeds.shape[-1] != width:
        raise ValueError(
            f"{name} must be of shape (batch, {width}) or (batch, tokens, {width}), got {tuple(embeds.shape)}."
        )
    return embeds[:, None] if embeds.ndim == 2 else embeds


def check_mask(mask: torch.Tensor | None, sequence: torch.Tensor | None) -> None:
    """
    Raises:
        ValueError: a mask that is not of the sequence's shape `(B, N)`.
    """
    if mask is not None and (sequence is None or mask.shape != sequence.shape[:2]):
        expected = None if sequence is None else tuple(sequence.shape[:2])
        raise ValueError(f"An embedding mask must be of shape {expected}, got {tuple(mask.shape)}.")


def expand_mask(mask: torch.Tensor | None, sequence: torch.Tensor | None) -> torch.Tensor | None:
    """`(B, N)` of ones and zeros to what is added to attention scores, `(B, 1, 1, N)` in the sequence's dtype."""
    if mask is None:
        return None
    blocked = mask[:, None, None, :] == 0
    return torch.zeros_like(blocked, dtype=sequence.dtype).masked_fill(blocked, torch.finfo(sequence.dtype).min)


__all__ = ["check_mask", "check_sequence", "expand_mask", "token_sequence"]
