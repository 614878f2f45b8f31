"""One vector of a sequence of tokens: attention whose query is the tokens' mean (LoVT, ECCV 2022).

This file is flat on purpose: it is copied beside a checkpoint as remote code.
"""

import torch
from torch import nn

from .layers_adaptor import PackedLinear, ZeroBiasLinear


class AttentionPooling(nn.Module):
    """
    Multi-head attention over the tokens of a sequence with one query, the mean of the tokens that are there.

    Args:
        width (`int`): Of the tokens and of the vector that comes out.
        num_heads (`int`): Must divide `width`.
    """

    def __init__(self, width: int, num_heads: int):
        super().__init__()
        self.num_heads = num_heads
        self.q_proj = PackedLinear(width, width)
        self.k_proj = PackedLinear(width, width)
        self.v_proj = PackedLinear(width, width)
        self.out_proj = ZeroBiasLinear(width, width)

    def forward(
        self, tokens: torch.Tensor, mask: torch.Tensor | None = None, reference: bool = False
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """
        Args:
            tokens (`torch.Tensor` of shape `(B, N, width)`): The tokens, padding included.
            mask (`torch.Tensor` of shape `(B, N)`, *optional*): 1 for tokens, 0 for padding. `None`: all are tokens.
            reference (`bool`, defaults to `False`): Divide the sum of the tokens that are there by N, as the reference
                code does: the query then depends on how far the batch is padded.

        Returns:
            `tuple[torch.Tensor, torch.Tensor]`: The pooled vectors `(B, width)`, and the weights of the tokens
            `(B, N)`, mean over the heads: 0 for padding, with sum 1; all 0 in a row without any token.
        """
        batch, length, width = tokens.shape
        there = tokens.new_ones(batch, length) if mask is None else (mask != 0).to(tokens.dtype)
        total = (tokens * there[..., None]).sum(1)
        query = total / (length if reference else there.sum(1, keepdim=True).clamp(min=1))

        def split_heads(states: torch.Tensor) -> torch.Tensor:
            return states.view(batch, -1, self.num_heads, width // self.num_heads).transpose(1, 2)

        queries = split_heads(self.q_proj(query)) * (width // self.num_heads) ** -0.5
        scores = queries @ split_heads(self.k_proj(tokens)).transpose(-1, -2)
        absent = there[:, None, None] == 0
        scores = scores.to(torch.promote_types(scores.dtype, torch.float32))
        weights = scores.masked_fill(absent, torch.finfo(scores.dtype).min).softmax(-1).masked_fill(absent, 0)
        values = split_heads(self.v_proj(tokens))
        pooled = (weights.to(values.dtype) @ values).transpose(1, 2).reshape(batch, width)
        return self.out_proj(pooled), weights.mean(1).squeeze(1)


def pool_sequence(
    pooling: nn.Module, sequence: torch.Tensor, mask: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """
    A sequence `[pooled, token_1, ..., token_N]` whose pooled vector is made of its tokens.

    Args:
        pooling ([`AttentionPooling`]): Of the sequence's width.
        sequence (`torch.Tensor` of shape `(B, 1 + N, width)`): In the pooling's dtype.
        mask (`torch.Tensor` of shape `(B, 1 + N)`, *optional*): 1 for tokens, 0 for padding. A row without any token
            keeps its pooled vector.

    Returns:
        `tuple[torch.Tensor, torch.Tensor]`: The sequence, and the weights of the tokens `(B, N)`.

    Raises:
        ValueError: it has no tokens.
    """
    if sequence.shape[1] == 1:
        width = sequence.shape[-1]
        raise ValueError(
            "With config.attention_pooling_heads the pooled embedding is made of tokens, got one embedding each of "
            f"width {width}. Give sequences (batch, 1 + tokens, {width}), such as of a cache that keeps tokens, or "
            "pixel_values and input_ids."
        )
    pooled, weights = pooling(sequence[:, 1:], None if mask is None else mask[:, 1:])
    if mask is not None:
        pooled = torch.where((mask[:, 1:] != 0).any(1, keepdim=True), pooled, sequence[:, 0])
    return torch.cat([pooled[:, None], sequence[:, 1:]], dim=1), weights


__all__ = ["AttentionPooling", "pool_sequence"]
