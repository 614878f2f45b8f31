"""What a tower gives for a cache: the pooled vector, and what is kept beside it."""

import contextlib
from typing import Any

import numpy as np
import torch
from torch.nn import functional

from ..frozen_towers_adaptor import TextTower, VisionFeatures, VisionTower
from ..pyramids_adaptor import run_with_maps
from ..tower_layers_adaptor import blocks_of, recorded_outputs, tower_name
from ..towers.attention import class_attention
from .columns import Column, Ragged
from .stored import StoredImages, StoredTexts


def columns_of(tower: VisionTower | TextTower, stored: StoredImages | StoredTexts, dtype: str) -> list[Column]:
    """
    The columns that `extract` gives, the pooled vector `embedding` first; at most two passes over an empty input.

    Args:
        tower: A `VisionTower` or `TextTower`.
        stored: What is kept beside the pooled vector.
        dtype: Of what the tower computes: "float16", "float32" or "int8". Attention, which is one number a token, is
            float16 instead of int8; spans are int16, and what views show is float32.

    Raises:
        ValueError: The tower does not have what is asked for.
    """
    columns = [Column("embedding", (tower.hidden_size,), dtype)]
    if stored == type(stored)():
        return columns
    numbers = "float16" if dtype == "int8" else dtype
    if isinstance(stored, StoredTexts):
        _check_texts(tower, stored)
        known = {
            "text_tokens": ((None, tower.token_size), dtype),
            "text_attention": ((None,), numbers),
            "words": ((None, 2), "int16"),
            "sentences": ((None, 2), "int16"),
        }
        return columns + [Column(name, *known[name]) for name in known if getattr(stored, name)]
    with torch.inference_mode():
        image = tower.empty_image()
        if stored.image_attention:
            # Before its blocks are looked for: of a CNN it would be said that it has none.
            _check_class_token(tower, tower.features(image))
        found, info = _image_values(tower, image, stored)
    for name, values in found.items():
        if name != "embedding":
            kind = numbers if name == "image_attention" else dtype
            columns.append(Column(name, tuple(values.shape[1:]), kind, info.get(name, {})))
    if stored.views:
        made = {"recipe": stored.view_recipe or "crop", "seed": stored.view_seed}
        columns.append(Column("view_embeds", (stored.views, tower.hidden_size), dtype, made))
        if "image_tokens" in found:
            shape = (stored.views, *found["image_tokens"].shape[1:])
            columns.append(Column("view_tokens", shape, dtype, info["image_tokens"] | made))
        columns.append(Column("view_boxes", (stored.views, 5), "float32", made))
        if stored.recipe.turns:
            columns.append(Column("view_maps", (stored.views, 2, 3), "float32", made))
    return columns


def extract(
    tower: VisionTower | TextTower, inputs: dict[str, Any], stored: StoredImages | StoredTexts
) -> dict[str, np.ndarray | Ragged]:
    """
    The columns of `columns_of` by name, in float32: arrays `(n, *shape)`, or `Ragged` where rows differ in length.

    They are computed in float32 on the CPU, and in half precision on CUDA where the numbers allow it. Spans are int16,
    as they came.

    Args:
        tower: A `VisionTower` or `TextTower`.
        inputs: `pixel_values` `(n, C, H, W)`, and with `stored.views` also `view_pixel_values` `(n, K, C, H, W)` and
            what `ImageBatches` says of them; or what `TextBatches.encode` gives.
        stored: What is kept beside the pooled vector.

    Raises:
        ValueError: The tower does not have what is asked for.
    """
    device = next(tower.parameters()).device
    given = {name: value.to(device, non_blocking=True) for name, value in inputs.items() if torch.is_tensor(value)}
    # float16 keeps three bits more than bfloat16 and runs fast on every card since the T4; what overflows runs again.
    half = torch.autocast("cuda", dtype=torch.float16) if device.type == "cuda" else contextlib.nullcontext()
    run = _run_images if isinstance(stored, StoredImages) else _run_texts
    with torch.inference_mode():
        with half:
            found = run(tower, given, stored)
        if device.type == "cuda" and not all(torch.isfinite(values).all() for values in found.values()):
            found = run(tower, given, stored)
    arrays = {name: values.float().cpu().numpy() for name, values in found.items()}
    if isinstance(stored, StoredImages):
        shown = [name for name in ("view_boxes", "view_maps") if name in inputs]
        return arrays | {name: np.asarray(inputs[name], np.float32) for name in shown}
    lengths = inputs["attention_mask"].sum(dim=1).numpy()
    offsets = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])
    ragged = {name: Ragged(values, offsets) for name, values in arrays.items() if name != "embedding"}
    return arrays | ragged | {name: inputs[name] for name in ("words", "sentences") if getattr(stored, name)}


def _run_images(tower: VisionTower, inputs: dict[str, torch.Tensor], stored: StoredImages) -> dict[str, torch.Tensor]:
    if not stored.key:
        return {"embedding": tower(**inputs).pooler_output}
    found, _ = _image_values(tower, inputs["pixel_values"], stored)
    if stored.views:
        only_tokens = StoredImages(image_tokens=stored.image_tokens)
        views = inputs["view_pixel_values"].unbind(dim=1)
        passes = [_image_values(tower, view, only_tokens)[0] for view in views]
        names = {"embedding": "view_embeds", "image_tokens": "view_tokens"}
        found |= {names[name]: torch.stack([one[name] for one in passes], dim=1) for name in passes[0]}
    return found


def _run_texts(tower: TextTower, inputs: dict[str, torch.Tensor], stored: StoredTexts) -> dict[str, torch.Tensor]:
    with contextlib.ExitStack() as watched:
        if stored.text_attention:
            attention = watched.enter_context(class_attention(tower, "text_attention"))
        output = tower(**inputs)
    found = {"embedding": output.pooler_output}
    is_token = inputs["attention_mask"].bool() if stored != StoredTexts() else None
    if stored.text_tokens:
        found["text_tokens"] = output.last_hidden_state[is_token]
    if stored.text_attention:
        found["text_attention"] = attention[0][is_token]
    return found


def _image_values(
    tower: VisionTower, pixel_values: torch.Tensor, stored: StoredImages
) -> tuple[dict[str, torch.Tensor], dict[str, dict[str, Any]]]:
    """What is asked for by name, `(n, *shape)`, and what the manifest says of it."""
    with contextlib.ExitStack() as watched:
        if stored.image_attention:
            attention = watched.enter_context(class_attention(tower, "image_attention"))
        blocks = _shallow_blocks(tower, stored.shallow)
        layers = watched.enter_context(recorded_outputs(blocks or []))
        features = tower.features(pixel_values, run=run_with_maps if blocks is None else None)
    found, info = {"embedding": features.pooled}, {}
    count = features.grid[0] * features.grid[1]
    if stored.image_tokens is not None:
        grid = features.grid
        if stored.image_tokens != "all":
            grid = _checked_cells(tower, features, "image_tokens", [stored.image_tokens] * 2)
        prefix = [] if features.class_token is None else [features.class_token[:, None]]
        found["image_tokens"] = torch.cat([*prefix, _cell_means(features, grid)], dim=1)
        info["image_tokens"] = {"grid": list(grid), "prefix": len(prefix)}
    if stored.regions is not None:
        cells = _checked_cells(tower, features, "regions", stored.regions)
        found["regions"] = _cell_means(features, cells)
        info["regions"] = {"grid": list(cells)}
    if stored.shallow:
        if blocks is None:
            found["shallow"] = torch.cat(_stage_means(tower, features.maps, stored.shallow), dim=-1)
        else:
            found["shallow"] = torch.cat([layer[:, -count:].mean(dim=1) for layer in layers], dim=-1)
        info["shallow"] = {"depths": list(stored.shallow)}
    if stored.image_attention:
        _check_class_token(tower, features)
        grid = info.get("image_tokens", {"grid": features.grid})["grid"]
        found["image_attention"] = _cell_sums(attention[0][:, -count:], features.grid, grid)
        info["image_attention"] = {"grid": list(grid)}
    return found, info


def _check_class_token(tower: VisionTower, features: VisionFeatures) -> None:
    if features.class_token is None:
        raise ValueError(
            f"tower {tower_name(tower.spec)!r} has no class token, whose attention image_attention is. Leave "
            "image_attention out, or take a tower with one, such as a ViT or DINOv2."
        )


def _cell_means(features: VisionFeatures, cells: list[int]) -> torch.Tensor:
    """(B, R * C, D) mean tokens of R x C cells. Of n rows of tokens, cell i has those from floor(i n / R) to
    ceil((i + 1) n / R): where R does not divide n, neighbouring cells share a row."""
    if list(cells) == list(features.grid):
        return features.tokens
    maps = features.tokens.transpose(1, 2).unflatten(2, features.grid)
    return functional.adaptive_avg_pool2d(maps, tuple(cells)).flatten(2).transpose(1, 2)


def _cell_sums(values: torch.Tensor, grid: list[int], cells: list[int]) -> torch.Tensor:
    """(B, h * w) to (B, R * C) sums over cells of equal area; a token on a border is divided by its area, so that the
    whole sum stays."""
    if list(cells) == list(grid):
        return values
    rows, columns = (_shares(size, count).to(values.device) for size, count in zip(grid, cells, strict=True))
    # In half precision the sum would not stay.
    with torch.autocast(values.device.type, enabled=False):
        return (rows @ values.unflatten(1, grid) @ columns.T).flatten(1)


def _shares(size: int, cells: int) -> torch.Tensor:
    """(cells, size): how much of each of `size` intervals of length 1 lies in each of `cells` equal parts of them."""
    starts = torch.arange(size, dtype=torch.float32)
    borders = torch.arange(cells + 1, dtype=torch.float32)[:, None] * size / cells
    overlap = torch.minimum(starts + 1, borders[1:]) - torch.maximum(starts, borders[:-1])
    return overlap.clamp(min=0)


def _checked_cells(tower: VisionTower, features: VisionFeatures, option: str, cells: Any) -> list[int]:
    if any(not 1 <= wanted <= size for wanted, size in zip(cells, features.grid, strict=True)):
        raise ValueError(
            f"{option} asks for a grid of {cells[0]} x {cells[1]}, and tower {tower_name(tower.spec)!r} has one of "
            f"{features.grid[0]} x {features.grid[1]} tokens. Take at least 1 and at most these."
        )
    return list(cells)


def _shallow_blocks(tower: VisionTower, depths: tuple[int, ...]) -> list[torch.nn.Module] | None:
    """The blocks of a transformer at these depths; None where its means come from the maps of another network."""
    if not depths:
        return []
    try:
        blocks = blocks_of(tower.model, tower_name(tower.spec), "shallow")
    except ValueError:
        return None
    _check_depths(tower, depths, len(blocks), "blocks")
    return [blocks[depth - 1] for depth in depths]


def _stage_means(tower: VisionTower, maps: list[torch.Tensor], depths: tuple[int, ...]) -> list[torch.Tensor]:
    """(B, C) means of a network's stages: the last map of each resolution, the finest one first."""
    stages = list({tuple(one.shape[-2:]): one for one in maps or []}.values())
    _check_depths(tower, depths, len(stages), "stages of feature maps")
    return [stages[depth - 1].mean(dim=(2, 3)) for depth in depths]


def _check_depths(tower: VisionTower, depths: tuple[int, ...], count: int, what: str) -> None:
    if any(not 1 <= depth <= count for depth in depths):
        raise ValueError(
            f"shallow asks for the depths {list(depths)}, and tower {tower_name(tower.spec)!r} has {count} {what}, "
            "numbered from 1. Take numbers of these."
        )


def _check_texts(tower: TextTower, stored: StoredTexts) -> None:
    name, tokenizer = tower_name(tower.spec), tower.processor
    spans = [option for option in ("words", "sentences") if getattr(stored, option)]
    if spans and not getattr(tokenizer, "is_fast", False):
        raise ValueError(
            f"tower {name!r} has a slow tokenizer ({type(tokenizer).__name__}), which does not say where tokens come "
            f"from. Leave {' and '.join(spans)} out, or save a fast tokenizer (tokenizer.json) beside its weights."
        )
    if not stored.text_attention:
        return
    if tokenizer.cls_token is None:
        raise ValueError(
            f"tower {name!r} has no class token, whose attention text_attention is. Leave text_attention out, or take "
            "a tower with one, such as a BERT."
        )
    inputs = {
        key: value.to(next(tower.parameters()).device) for key, value in tokenizer("", return_tensors="pt").items()
    }
    with torch.inference_mode():
        _run_texts(tower, inputs, stored)


__all__ = ["columns_of", "extract"]
