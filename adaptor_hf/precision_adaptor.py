"""Which dtype a module computes in, and unit vectors in no less than float32.

This file is flat on purpose: it is copied beside a checkpoint as remote code.
"""

from itertools import chain

import torch
from torch import nn

COMPUTES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)


def input_dtype(module: nn.Module, otherwise: torch.dtype = torch.float32) -> torch.dtype:
    """
    The floating dtype that a module takes: that of its first parameter or buffer in one that layers compute in.

    Quantised layers store integers, 8-bit floats or packed objects, which are no dtype to cast an input to. They take
    that of the layers about them.

    Args:
        module (`nn.Module`): Quantised or not.
        otherwise (`torch.dtype`, defaults to `torch.float32`): For a module that has no such tensor.
    """
    tensors = chain(module.parameters(), module.buffers())
    return next((tensor.dtype for tensor in tensors if tensor.dtype in COMPUTES), otherwise)


def unit_vectors(vectors: torch.Tensor) -> torch.Tensor:
    """`vectors` `(..., D)` divided by their L2 norms, in float32 or wider: bfloat16 misses a norm of 1 by 0.2 %."""
    return nn.functional.normalize(vectors.to(torch.promote_types(vectors.dtype, torch.float32)), dim=-1)


__all__ = ["input_dtype", "unit_vectors"]
