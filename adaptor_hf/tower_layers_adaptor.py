"""Outputs of several layers of a tower, joined into one vector a token; and towers that are cut after a layer.

Of a transformer a layer is a block, of a convolutional network a stage: the blocks between two changes of resolution.

This file is flat on purpose: it is copied beside a checkpoint as remote code.
"""

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import nn

LAYER_KEYS = ("layers", "layers_merge", "layers_norm")
# In config.json of a saved ResNet that was cut, for which timm has no word: timm and transformers refuse an argument
# that they do not know. Without it transformers would draw the missing stages at random.
CUT = "cut_by_adaptor_hf_after"
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
    stages = stages_of(model)
    count = len(stages or blocks_of(model, tower_name(spec), "layers"))
    if spec["layers"][-1] > count:
        raise ValueError(
            f"tower {tower_name(spec)!r} has {count} layers, got layers={spec['layers']}. Take numbers from 1 to "
            f"{count}."
        )
    if spec["pooling"] == "pooler" and not stages:
        raise ValueError(
            f'pooling="pooler" of tower {tower_name(spec)!r} reads the last layer alone: with layers take "cls", '
            '"mean" or "cls+mean".'
        )
    has_norm = not stages and final_norm_of(model) is not None
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


def stages_of(model: nn.Module) -> list[nn.Module]:
    """The stages of a convolutional network, in order, without its stem; [] of others, hierarchical transformers too.

    Known are ResNets (those of timm, torchvision, torchxrayvision and transformers), ConvNeXt, RegNet, and timm's
    EfficientNets and MobileNets.
    """
    network, config = getattr(model, "timm_model", model), getattr(model, "config", None)
    if all(isinstance(getattr(network, f"layer{number}", None), nn.Module) for number in range(1, 5)):
        stages = [getattr(network, f"layer{number}") for number in range(1, 5)]
        # Where it was cut there is nothing.
        return [stage for stage in stages if not isinstance(stage, nn.Identity)]
    if network is not model:
        convolutional = not hasattr(network, "num_prefix_tokens") and getattr(network, "output_fmt", "NCHW") == "NCHW"
        names = ("stages", "blocks") if convolutional else ()
        found = (getattr(network, name, None) for name in names)
    else:
        known = getattr(config, "model_type", None) in ("resnet", "convnext", "convnextv2", "regnet")
        found = [model.encoder.stages] if known else []
    return next((list(one) for one in found if isinstance(one, (nn.Sequential, nn.ModuleList)) and len(one)), [])


def truncate(model: nn.Module, spec: dict[str, Any]) -> None:
    """
    Cut a network after as many blocks, or stages of a ResNet, as `truncate_layers` of its spec says, in place, and in
    its configuration, so that a saved one is the shorter network. One that has just as many stays as it is.

    A norm that follows the last block goes over the new last one, as it does when transformers loads a configuration
    with fewer layers.

    Raises:
        ValueError: the network has fewer, or cannot be cut.
    """
    count = spec.get("truncate_layers")
    if count is None:
        return
    name, stages = tower_name(spec), stages_of(model)
    if type(count) is not int or count < 1:
        raise ValueError(f"truncate_layers must be a whole number of at least 1, got {count!r}.")
    blocks = stages or blocks_of(model, name, "truncate_layers")
    if count > len(blocks):
        raise ValueError(
            f"tower {name!r} has {len(blocks)} layers, got truncate_layers={count}. Take a number from 1 to "
            f"{len(blocks)}."
        )
    if count == len(blocks):
        return
    if stages:
        cut_stages(model, name, count)
        return
    timm_model, config = getattr(model, "timm_model", None), model.config
    if timm_model is not None:
        timm_model.blocks = timm_model.blocks[:count]
        config.model_args = (config.model_args or {}) | {"depth": count}
        return
    for module in list(model.modules()):
        for child, part in module.named_children():
            if isinstance(part, nn.ModuleList) and len(part) == len(blocks) and part[0] is blocks[0]:
                setattr(module, child, part[:count])
    _shorten(config, len(blocks), count)
    if isinstance(getattr(model, "pooler", None), nn.Module) and list(model.pooler.parameters()):
        if spec["pooling"] == "pooler":
            raise ValueError(
                f'the pooler of tower {name!r} was trained on its last layer: with truncate_layers take pooling="cls" '
                'or "mean".'
            )
        model.pooler = None


def cut_stages(model: nn.Module, name: str, count: int) -> None:
    """Put nothing in place of a ResNet's stages after `count`; an earlier cut stays.

    Raises:
        ValueError: it is another network, whose head needs the width of its last stage.
    """
    network = getattr(model, "timm_model", model)
    if hasattr(network, "layer4"):
        for number in range(count + 1, 5):
            setattr(network, f"layer{number}", nn.Identity())
    elif getattr(getattr(model, "config", None), "model_type", None) == "resnet":
        model.encoder.stages = model.encoder.stages[:count]
        config = model.config
        config.depths, config.hidden_sizes = config.depths[:count], config.hidden_sizes[:count]
        _shorten(config, None, count)
    else:
        raise ValueError(
            f"tower {name!r} cannot be cut after a stage: what follows needs the width of its last one. Take "
            f"layers=[{count}], which gives the tokens of that stage."
        )


def _shorten(config: Any, old: int | None, count: int) -> None:
    """A configuration of transformers for fewer layers, in place: what it says of each layer is cut as well."""
    # Of a backbone, what is made of the number of layers.
    made = ("stage_names", "out_features", "out_indices")
    fields = {key: value for key, value in config.to_dict().items() if key not in made}
    if old is not None:
        fields = {key: value[:count] if isinstance(value, list) and len(value) == old else value
                  for key, value in fields.items()}  # fmt: skip
        fields[type(config).attribute_map.get("num_hidden_layers", "num_hidden_layers")] = count
    shorter = vars(type(config).from_dict(fields))
    told = {*fields, *made, *(f"_{key}" for key in made)}
    vars(config).update({key: value for key, value in shorter.items() if key in told and key != "_name_or_path"})


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
    blocks = stages_of(model) or blocks_of(model, tower_name(spec), "layers")
    return [blocks[number - 1] for number in spec["layers"]]


def merged_layers(
    model: nn.Module, spec: dict[str, Any], outputs: list[torch.Tensor], last: torch.Tensor
) -> torch.Tensor:
    """
    Tokens (B, N, D) or (B, N, D * layers) of the layers that a spec asks for; `last` where it asks for none. Of stages
    maps (B, C, h, w) or (B, C * layers, h, w).

    Args:
        model: the network.
        spec: the tower's.
        outputs: (B, N, D) of each chosen block, or (B, C, h, w) of each chosen stage.
        last: (B, N, D) or (B, C, h, w), what the network gives.

    Raises:
        ValueError: a layer has other tokens than the last one.
    """
    if not spec.get("layers"):
        return last
    if last.ndim == 4 and outputs[-1] is not None:
        # Stages have resolutions of their own; those of one resolution can be joined.
        last = outputs[-1]
    for number, output in zip(spec["layers"], outputs, strict=True):
        if output is None or output.shape != last.shape:
            found = None if output is None else tuple(output.shape)
            raise ValueError(
                f"tower {tower_name(spec)!r}: layer {number} gives {found}, the last one {tuple(last.shape)}, and "
                "only layers with the same tokens can be joined. Leave it out of layers."
            )
    if spec["layers_norm"]:
        norm = final_norm_of(model)
        outputs = [norm(output) for output in outputs]
    if spec["layers_merge"] == "concat":
        return torch.cat(outputs, dim=1 if last.ndim == 4 else -1)
    # In float16 a sum may overflow.
    wide = torch.promote_types(outputs[0].dtype, torch.float32)
    return torch.stack([output.to(wide) for output in outputs]).mean(dim=0).to(outputs[0].dtype)


__all__ = [
    "CUT",
    "LAYER_KEYS",
    "MERGES",
    "blocks_of",
    "chosen_blocks",
    "complete_layers",
    "cut_stages",
    "final_norm_of",
    "layer_fields",
    "merged_layers",
    "recorded_outputs",
    "stages_of",
    "tower_name",
    "truncate",
]
