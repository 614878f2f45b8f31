"""What a tower gives for a cache: the pooled vector, and what is kept beside it."""

import contextlib
from typing import Any

import numpy as np
import torch
from torch.nn import functional

from .columns import Column, Ragged
from .stored import StoredImages, StoredTexts


def columns_of(tower, stored: StoredImages | StoredTexts, dtype: str) -> list[Column]:
    """
    The columns that `extract` gives, the pooled vector `embedding` first; one pass over an empty image, without data.

    Args:
        tower: A `VisionTower` or `TextTower`.
        stored: What is kept beside the pooled vector.
        dtype: Of what the tower computes: "float16", "float32" or "int8".

    Raises:
        ValueError: The tower does not have what is asked for.
    """
    columns = [Column("embedding", (tower.hidden_size,), dtype)]
    if isinstance(stored, StoredTexts):
        if stored.text_tokens:
            columns.append(Column("text_tokens", (None, tower.token_size), dtype))
        return columns
    if stored.image_tokens is not None:
        with torch.inference_mode():
            features = tower.features(tower.empty_image())
        tokens, info = _image_tokens(features, stored.image_tokens)
        columns.append(Column("image_tokens", tuple(tokens.shape[1:]), dtype, info))
    return columns


def extract(tower, inputs: dict[str, Any], stored: StoredImages | StoredTexts) -> dict[str, np.ndarray | Ragged]:
    """
    The columns of `columns_of` by name, in float32: arrays `(n, *shape)`, or `Ragged` where rows differ in length.

    They are computed in float32 on the CPU, and in half precision on CUDA where the numbers allow it.

    Args:
        tower: A `VisionTower` or `TextTower`.
        inputs: `pixel_values` `(n, C, H, W)`, or what `TextBatches.encode` gives.
        stored: What is kept beside the pooled vector.
    """
    device = next(tower.parameters()).device
    inputs = {name: value.to(device, non_blocking=True) for name, value in inputs.items()}
    # float16 keeps three bits more than bfloat16 and runs fast on every card since the T4; what overflows runs again.
    half = torch.autocast("cuda", dtype=torch.float16) if device.type == "cuda" else contextlib.nullcontext()
    run = _run_images if isinstance(stored, StoredImages) else _run_texts
    with torch.inference_mode():
        with half:
            found = run(tower, inputs, stored)
        if device.type == "cuda" and not all(torch.isfinite(values).all() for values in found.values()):
            found = run(tower, inputs, stored)
    arrays = {name: values.float().cpu().numpy() for name, values in found.items()}
    if "text_tokens" in arrays:
        lengths = inputs["attention_mask"].sum(dim=1).cpu().numpy()
        arrays["text_tokens"] = Ragged(arrays["text_tokens"], np.concatenate([[0], np.cumsum(lengths)]))
    return arrays


def _run_images(tower, inputs: dict[str, torch.Tensor], stored: StoredImages) -> dict[str, torch.Tensor]:
    if not stored.key:
        return {"embedding": tower(**inputs).pooler_output}
    features = tower.features(**inputs)
    found = {"embedding": features.pooled}
    if stored.image_tokens is not None:
        found["image_tokens"], _ = _image_tokens(features, stored.image_tokens)
    return found


def _run_texts(tower, inputs: dict[str, torch.Tensor], stored: StoredTexts) -> dict[str, torch.Tensor]:
    output = tower(**inputs)
    found = {"embedding": output.pooler_output}
    if stored.text_tokens:
        found["text_tokens"] = output.last_hidden_state[inputs["attention_mask"].bool()]
    return found


def _image_tokens(features, wanted: str | int) -> tuple[torch.Tensor, dict[str, Any]]:
    """Tokens (B, T, D), the class token first, and where the grid begins and what it is."""
    tokens, (rows, columns) = features.tokens, features.grid
    if wanted != "all":
        maps = tokens.transpose(1, 2).unflatten(2, (rows, columns))
        tokens = functional.adaptive_avg_pool2d(maps, wanted).flatten(2).transpose(1, 2)
        rows = columns = wanted
    prefix = [] if features.class_token is None else [features.class_token[:, None]]
    return torch.cat([*prefix, tokens], dim=1), {"grid": [rows, columns], "prefix": len(prefix)}


__all__ = ["columns_of", "extract"]
