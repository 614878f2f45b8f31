"""Runs a tower over batches, and judges what it gives."""

import contextlib

import numpy as np

from ..data.content_keys import KEY_DTYPE, key_vector
from .files import NUMPY_DTYPES


def vector_faults(vectors: np.ndarray) -> dict[int, str]:
    """Row -> reason for vectors that cannot be used: NaN, inf, or zero (it has no direction to compare)."""
    faults = {}
    finite = np.isfinite(vectors).all(axis=1)
    for row in np.nonzero(~finite)[0]:
        faults[int(row)] = f"embedding is NaN or infinite in {vectors.dtype}"
    for row in np.nonzero(finite & ~vectors.any(axis=1))[0]:
        faults[int(row)] = "embedding is all zeros"
    return faults


def embed(tower, inputs: dict, dtype: str) -> np.ndarray:
    """(n, D) pooled embeddings in storage dtype, computed in float32 on the CPU and in half precision on CUDA where the
    numbers allow it; what overflows the storage dtype becomes inf, found later."""
    import torch

    device = next(tower.parameters()).device
    inputs = {name: value.to(device, non_blocking=True) for name, value in inputs.items()}
    # float16 keeps three bits more than bfloat16 and runs fast on every card since the T4; what overflows runs again.
    half = torch.autocast("cuda", dtype=torch.float16) if device.type == "cuda" else contextlib.nullcontext()
    with torch.inference_mode():
        with half:
            pooled = tower(**inputs).pooler_output
        if device.type == "cuda" and not torch.isfinite(pooled).all():
            pooled = tower(**inputs).pooler_output
    with np.errstate(over="ignore"):
        return pooled.float().cpu().numpy().astype(NUMPY_DTYPES[dtype])


def digests_of(raw: bytes) -> np.ndarray:
    """(n,) keys from concatenated 16-byte digests."""
    return key_vector([raw]) if raw else np.empty(0, dtype=KEY_DTYPE)
