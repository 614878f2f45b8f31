"""Projected embeddings, which come out of an Adaptor, are told from tower embeddings, which go in.

This file is flat on purpose: it is copied beside a checkpoint as remote code.
"""

import math

import torch
from torch import nn

ROWS = 64
# Of a batch of other unit vectors.
FALSE_ALARM = 1e-4


@torch.no_grad()
def are_projected(vectors: torch.Tensor, norm: nn.Module) -> bool:
    """
    Whether vectors are outputs of this layer norm that were divided by their L2 norms, as an Adaptor's embeddings are.

    Without its weight and bias, an output of a layer norm has mean 0 and variance 1 over its D entries. For a unit
    vector there is one positive scale that gives the variance 1; with that scale the mean of any other is of the order
    of 1 / sqrt(D). In half precision that takes some rows: fewer than 4 in bfloat16 are never said to be projected.

    Not found: averages of embeddings, those that were scaled, and those of another Adaptor or of other weights.

    Args:
        vectors (`torch.Tensor` of shape `(B, D)` or `(B, N, D)`): D is the layer norm's; up to 64 rows are looked at.
        norm (`nn.LayerNorm`): The last of the Adaptor, with weight and bias; of any other layer the answer is no.
    """
    if not isinstance(norm, nn.LayerNorm) or not vectors.is_floating_point() or vectors.is_meta:
        return False
    # The larger rounding: that of the vectors, or that of the layer norm that may have given them.
    tolerance = max(3e-6, *(torch.finfo(tensor.dtype).eps / 4 for tensor in (vectors, norm.weight)))
    rows = vectors.reshape(-1, vectors.shape[-1])[:ROWS].double()
    if (tolerance * math.sqrt(rows.shape[-1])) ** len(rows) > FALSE_ALARM:
        return False
    weight, bias = norm.weight.double(), norm.bias.double()
    slope, offset = rows / weight, bias / weight
    # mean((scale * slope - offset) ** 2) = 1, a quadratic equation in the scale.
    a, b, c = slope.square().mean(-1), (slope * offset).mean(-1), offset.square().mean() - 1
    scale = (b + (b.square() - a * c).clamp(min=0).sqrt()) / a
    means = (scale[:, None] * slope - offset).mean(-1)
    is_unit = (rows.norm(dim=-1) - 1).abs() < tolerance
    return bool((is_unit & (means.abs() < tolerance)).all())


__all__ = ["are_projected"]
