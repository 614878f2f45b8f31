"""Outputs of several layers of a transformer tower, joined into one vector a token.

This file is flat on purpose: it is copied beside a checkpoint as remote code.
"""

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import nn

LAYER_KEYS = ("layers", "layers_merge", "layers_norm")
MERGES = ("concat", "mean")
# Of transformers' models, and of timm's under `timm_model`.
_FINAL_NORMS = ("layernorm", "norm", "final_norm", "post_layernorm", "final_layer_norm")


def tower_name(spec: dict[str, Any]) -> str:
    """What a tower is called in messages: its preset, else where it came from."""
    return spec.get("preset") or spec["name_or_path"]


def layer_fields(layers: Sequence[int] | None, merge: str | None, norm: bool | None) -> dict[str, Any]:
    """Fields of a tower spec for what was asked of `layers`, `layers_merge` and `layers_norm`; {} for the last layer.

    Raises:
        ValueError: they are of no use, or contradict each other.
    """
    if not layers:
        given = [key for key, value in zip(LAYER_KEYS[1:], (merge, norm), strict=True) if value is not None]
        if given:
            raise ValueError(f"{' and '.join(given)} without layers: name the layers that are joined as well.")
        return {}
    numbers = list(layers) if isinstance(layers, Sequence) else [None]
    if any(type(number) is not int or number < 1 for number in numbers) or sorted(set(numbers)) != numbers:
        raise ValueError(f"layers must be increasing numbers from 1, such as [6, 9, 12], got {layers!r}.")
    if merge not in (None, *MERGES):
        raise ValueError(f"layers_merge must be one of {MERGES}, got {merge!r}.")
    if norm is not None and not isinstance(norm, bool):
        raise ValueError(f"layers_norm must be True, False or None, got {norm!r}.")
    return {"layers": numbers, "layers_merge": merge or "concat", "layers_norm": norm}


def complete_layers(model: nn.Module, spec: dict[str, Any]) -> None:
    """Compares a spec's layers with the network, and fills `layers_norm`: by default True where there is such a norm.

    Raises:
        ValueError: the network has no such layers, or no norm after the last one.
    """
    if not spec.get("layers"):
        return
    count = len(blocks_of(model, tower_name(spec), "layers"))
    if spec["layers"][-1] > count:
        raise ValueError(
            f"tower {tower_name(spec)!r} has {count} layers, got layers={spec['layers']}. Take numbers from 1 to "
            f"{count}."
        )
    has_norm = final_norm_of(model) is not None
    if spec.get("layers_norm") is None:
        spec["layers_norm"] = has_norm
    elif spec["layers_norm"] and not has_norm:
        raise ValueError(
            f"tower {tower_name(spec)!r} has no norm after its last layer (each layer ends with its own): take "
            "layers_norm=False."
        )


def blocks_of(model: nn.Module, name: str, option: str) -> list[nn.Module]:
    """The blocks of a transformer, in order.

    Args:
        model: a tower's network.
        name, option: of the tower and of what was asked for, for the error.

    Raises:
        ValueError: it is no transformer whose layers all have the same tokens.
    """
    timm_model, config = getattr(model, "timm_model", None), getattr(model, "config", None)
    found = None
    if timm_model is not None:
        found = getattr(timm_model, "blocks", None) if hasattr(timm_model, "num_prefix_tokens") else None
    elif config is not None and getattr(config, "depths", None) is None:
        count = getattr(config, "num_hidden_layers", None)
        lists = (module for module in model.modules() if isinstance(module, nn.ModuleList))
        found = next((module for module in lists if len(module) == count), None)
    if not found:
        raise ValueError(
            f"tower {name!r} has no layers to take {option} from: it is no plain transformer (as ViT, DINOv2 and BERT "
            f"are). Leave {option} out, or take another tower."
        )
    return list(found)


def final_norm_of(model: nn.Module) -> nn.Module | None:
    """The norm that a network puts after its last layer; None where each layer ends with one (BERT), or none is."""
    network = getattr(model, "timm_model", model)
    norms = (getattr(network, name, None) for name in _FINAL_NORMS)
    return next((norm for norm in norms if norm is not None and not isinstance(norm, nn.Identity)), None)


@contextlib.contextmanager
def recorded_outputs(modules: list[nn.Module]) -> Iterator[list[torch.Tensor | None]]:
    """The output of each module in the last pass within the context; the first one of several."""
    outputs: list[torch.Tensor | None] = [None] * len(modules)

    def record(index: int):
        def hook(module, inputs, output) -> None:
            outputs[index] = output[0] if isinstance(output, tuple) else output

        return hook

    handles = [module.register_forward_hook(record(index)) for index, module in enumerate(modules)]
    try:
        yield outputs
    finally:
        for handle in handles:
            handle.remove()


def chosen_blocks(model: nn.Module, spec: dict[str, Any]) -> list[nn.Module]:
    """The blocks whose outputs a spec asks for; none where it asks for the last hidden state only."""
    if not spec.get("layers"):
        return []
    blocks = blocks_of(model, tower_name(spec), "layers")
    return [blocks[number - 1] for number in spec["layers"]]


def merged_layers(
    model: nn.Module, spec: dict[str, Any], outputs: list[torch.Tensor], last: torch.Tensor
) -> torch.Tensor:
    """
    Tokens (B, N, D) or (B, N, D * layers) of the layers that a spec asks for; `last` where it asks for none.

    Args:
        model: the network.
        spec: the tower's.
        outputs: (B, N, D) of each chosen block.
        last: (B, N, D) what the network gives.

    Raises:
        ValueError: a layer has other tokens than the last one.
    """
    if not spec.get("layers"):
        return last
    for number, output in zip(spec["layers"], outputs, strict=True):
        if output is None or output.shape != last.shape:
            found = None if output is None else tuple(output.shape)
            raise ValueError(
                f"tower {tower_name(spec)!r}: layer {number} gives {found}, the network {tuple(last.shape)}, and "
                "only layers with the same tokens can be joined. Leave it out of layers."
            )
    if spec["layers_norm"]:
        norm = final_norm_of(model)
        outputs = [norm(output) for output in outputs]
    if spec["layers_merge"] == "concat":
        return torch.cat(outputs, dim=-1)
    # In float16 a sum may overflow.
    wide = torch.promote_types(outputs[0].dtype, torch.float32)
    return torch.stack([output.to(wide) for output in outputs]).mean(dim=0).to(outputs[0].dtype)


__all__ = [
    "LAYER_KEYS",
    "MERGES",
    "blocks_of",
    "chosen_blocks",
    "complete_layers",
    "final_norm_of",
    "layer_fields",
    "merged_layers",
    "recorded_outputs",
    "tower_name",
]
