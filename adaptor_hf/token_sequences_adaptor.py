"""The sequence that an Adaptor reads of an image or a text: the pooled embedding, then the tokens.

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


__all__ = ["token_sequence"]
