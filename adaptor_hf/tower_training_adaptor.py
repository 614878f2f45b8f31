"""Towers that train: which parameters get gradients, what goes into training mode, and low-rank weights (LoRA by peft).

This file is flat on purpose: it is copied beside a checkpoint as remote code.
"""

import os
import re
from typing import Any

import torch
from torch import nn

from .random_specs_adaptor import DRAWN_KEYS, is_random
from .tower_layers_adaptor import tower_name

FROZEN, LORA, FULL = "frozen", "lora", "full"
# The projections of queries and values, as the libraries name them; `qkv` holds both.
_ATTENTION = ("query", "value", "q_proj", "v_proj", "qkv", "q_lin", "v_lin", "query_proj", "value_proj", "q", "v")
# Stages of networks that are written as plain attributes: `layer1`, `denseblock2`, `transition2`.
_STAGE = re.compile(r"(?:^|\.)(?:layer|stage|denseblock|transition)(\d+)\.")
# Position biases that every layer reads stand beside the layers in these encoders, and not before them.
_SHARED_BY_LAYERS = re.compile(r"(?:rel_embeddings|relative_attention_bias|encoder\.LayerNorm|encoder\.conv)\b")


def parse_trainable(value: str | int) -> str | int:
    """
    What of a tower trains, from an option's text.

    Returns:
        `"frozen"`, `"lora"`, `"full"`, or a number of blocks of 1 or more.

    Raises:
        ValueError: it is none of these.
    """
    if value in (FROZEN, LORA, FULL):
        return value
    if isinstance(value, str) and re.fullmatch(r"[0-9]{1,4}", value):
        value = int(value)
    if type(value) is not int or value < 1:
        raise ValueError(
            f"what trains of a tower is {FROZEN}, {LORA}, {FULL} or a number of its last blocks from 1, got {value!r}."
        )
    return value


def parameter_depths(tower: nn.Module) -> dict[str, int]:
    """
    Where each parameter stands in a tower, for layer-wise learning rates and for what trains.

    Args:
        tower (`VisionTower` or `TextTower`): With blocks: a transformer's layers, or a convolutional network's stages.

    Returns:
        `dict`: By the names of `tower.named_parameters()`: 0 before the first block, k in block k (from 1), and
        `number_of_blocks(tower) + 1` after the last one (final norm, pooler).

    Raises:
        ValueError: the network has no blocks that are known.
    """
    blocks = _blocks_of(tower)
    count, seen, depths = max(blocks.values()), False, {}
    for name in blocks:
        seen = seen or blocks[name] > 0
        after = seen and not _SHARED_BY_LAYERS.search(name)
        depths[name] = blocks[name] or (count + 1 if after else 0)
    return depths


def number_of_blocks(tower: nn.Module) -> int:
    """Number L of a tower's blocks; depths go from 0 to L + 1. Raises as `parameter_depths`."""
    return max(_blocks_of(tower).values())


def _blocks_of(tower: nn.Module) -> dict[str, int]:
    """Number of each parameter's block from 1, 0 outside of blocks."""
    names = [name for name, _ in tower.named_parameters()]
    found = _numbers_of_list(tower)
    if found is None:
        found = _numbers_of_timm(tower)
    if found is None:
        matches = {name: _STAGE.search(name) for name in names}
        found = {name: int(match.group(1)) for name, match in matches.items() if match}
    if not found:
        raise ValueError(
            f"tower {tower_name(tower.spec)!r} has no blocks that are known, to train the last ones of or to give each "
            "its learning rate. Train all of it (full), or leave it frozen."
        )
    order = {number: place for place, number in enumerate(sorted(set(found.values())), start=1)}
    return {name: order[found[name]] if name in found else 0 for name in names}


def _numbers_of_list(tower: nn.Module) -> dict[str, int] | None:
    """By the list that holds the blocks: of as many as the configuration says, or `blocks` of timm's transformers."""
    network, config = tower.model, tower.config
    timm_model = getattr(network, "timm_model", None)
    if timm_model is not None:
        has_list = hasattr(timm_model, "num_prefix_tokens") and len(getattr(timm_model, "blocks", ())) > 0
        found = timm_model.blocks if has_list else None
    else:
        depths = getattr(config, "depths", None)
        count = len(depths) if depths else getattr(config, "num_hidden_layers", None)
        lists = (module for module in network.modules() if isinstance(module, nn.ModuleList))
        found = next((module for module in lists if len(module) == count), None)
    if found is None:
        return None
    numbers = {id(parameter): index for index, block in enumerate(found) for parameter in block.parameters()}
    return {name: numbers[id(value)] for name, value in tower.named_parameters() if id(value) in numbers}


def _numbers_of_timm(tower: nn.Module) -> dict[str, int] | None:
    """By the stages that timm's networks name themselves (`group_matcher`)."""
    timm_model = getattr(tower.model, "timm_model", None)
    matcher = timm_model.group_matcher(coarse=True) if hasattr(timm_model, "group_matcher") else None
    if not isinstance(matcher, dict):
        return None
    # Entries without a number are what timm adds to the last block: it comes after it.
    entries = [entry for key, entry in matcher.items() if key != "stem" and entry is not None]
    patterns = [
        pattern for entry in entries for pattern in ([entry] if isinstance(entry, str) else [e[0] for e in entry])
    ]
    numbered = [pattern for pattern in map(re.compile, patterns) if pattern.groups]
    stem = re.compile(matcher["stem"]) if isinstance(matcher.get("stem"), str) else None
    found = {}
    prefix = next(name for name, module in tower.named_modules() if module is timm_model) + "."
    for name, _ in timm_model.named_parameters():
        if stem is not None and stem.match(name):
            continue
        match = next((m for m in (pattern.match(name) for pattern in numbered) if m), None)
        if match and match.group(1) is not None:
            found[prefix + name] = int(match.group(1))
    return found


def set_trainable(tower: nn.Module, trainable: str | int, lora_rank: int = 8) -> None:
    """
    Choose what of a tower trains; the tower is changed, not copied.

    Args:
        tower (`VisionTower` or `TextTower`): The tower.
        trainable (`str` or `int`): `"frozen"`; `"lora"`: low-rank weights on the queries and values of the attention
            (alpha twice the rank, no dropout); `"full"`; or the last N blocks and all that comes after them.
        lora_rank (`int`, defaults to 8): Rank of low-rank weights that are new.

    Raises:
        ValueError: an unknown word, more blocks than there are, LoRA without attention, or full training of a tower
            with low-rank weights that are not merged.
        ImportError: LoRA without peft.
    """
    trainable = parse_trainable(trainable)
    name, depths = tower_name(tower.spec), {}
    if isinstance(trainable, int):
        depths = parameter_depths(tower)
        count = number_of_blocks(tower)
        if trainable > count:
            raise ValueError(f"tower {name!r} has {count} blocks, and {trainable} were asked to train. Take fewer.")
    if trainable not in (FROZEN, LORA) and has_lora(tower):
        raise ValueError(
            f"tower {name!r} has low-rank weights of LoRA: merge them first (merge_lora), or train them (lora)."
        )
    if trainable not in (FROZEN, LORA) and _is_quantised(tower):
        raise ValueError(
            f"tower {name!r} has quantised weights, which do not train: load it without, or train it by lora."
        )
    if trainable == LORA and not has_lora(tower):
        inject_lora(tower.model, _lora_config(tower, lora_rank))
    elif trainable == LORA and (rank := lora_rank_of(tower)) != lora_rank:
        raise ValueError(
            f"tower {name!r} has low-rank weights of rank {rank} already, and {lora_rank} was asked for. Give "
            f"lora_rank={rank}, or merge them first (merge_lora)."
        )
    if trainable != FROZEN:
        _note_trained(tower, trainable)
    for name, parameter in tower.named_parameters():
        trains = {FROZEN: False, FULL: True, LORA: "lora_" in name}.get(trainable)
        if trains is None:
            trains = depths[name] > count - trainable
        parameter.requires_grad_(trains)
    tower.trainable = trainable
    tower.train(tower.training)


def set_mode(tower: nn.Module, mode: bool) -> None:
    """Training mode for what trains and evaluation mode for the rest, or evaluation mode for all."""
    nn.Module.train(tower, False)
    if not mode or tower.trainable == FROZEN:
        return
    tower.training = True
    if tower.trainable == FULL:
        tower.model.train(True)
        return
    if tower.trainable == LORA:
        for name, module in tower.named_modules():
            if name.rpartition(".")[2].startswith("lora_"):
                module.train(True)
            elif getattr(module, "gradient_checkpointing", False):
                # Layers of transformers keep their activations unless they are in training mode; their parts are not.
                module.training = True
        return
    _train_whole_parts(tower.model)
    for module in tower.modules():
        if getattr(module, "running_mean", None) is not None:
            module.train(False)


def _train_whole_parts(module: nn.Module) -> None:
    """Training mode for the parts all of whose parameters train. At every step: what is frozen is not looked into."""
    flags = {parameter.requires_grad for parameter in module.parameters()}
    if flags == {True}:
        module.train(True)
    elif True in flags:
        for child in module.children():
            _train_whole_parts(child)


def _is_quantised(tower: nn.Module) -> bool:
    """Whether some weights are integers, or of another class than torch's own."""
    plain = (torch.Tensor, nn.Parameter)
    return any(not one.is_floating_point() or type(one) not in plain for one in tower.parameters())


def has_lora(tower: nn.Module) -> bool:
    """Whether there are low-rank weights in a tower that are not merged."""
    return any(".lora_" in name for name, _ in tower.named_parameters())


def lora_rank_of(tower: nn.Module) -> int | None:
    """Rank of a tower's low-rank weights; None without any."""
    return next((value.shape[0] for name, value in tower.named_parameters() if ".lora_A." in name), None)


def _lora_config(tower: nn.Module, rank: int):
    try:
        from peft import LoraConfig
    except ImportError as error:
        raise ImportError("low-rank weights (lora) need peft: pip install peft") from error

    names = {name.rpartition(".")[2] for name, part in tower.model.named_modules() if isinstance(part, nn.Linear)}
    targets = sorted(names & set(_ATTENTION))
    if not targets:
        raise ValueError(
            f"LoRA needs a tower with attention layers, and {tower_name(tower.spec)!r} has none. Train all of it "
            "(full) or its last N blocks (a number), or use a vision transformer."
        )
    return LoraConfig(r=rank, lora_alpha=2 * rank, lora_dropout=0.0, target_modules=targets, init_lora_weights=True)


def inject_lora(network: nn.Module, config) -> None:
    """Put low-rank weights beside a network's own, as a configuration of peft says; they are named `default`."""
    try:
        from peft import inject_adapter_in_model
    except ImportError as error:
        raise ImportError("low-rank weights (lora) need peft: pip install peft") from error
    inject_adapter_in_model(config, network)


def without_lora(state: dict[str, Any]) -> dict[str, Any]:
    """Weights of a network as they were before low-rank ones were put beside them."""
    return {name.replace(".base_layer.", "."): value for name, value in state.items() if ".lora_" not in name}


@torch.no_grad()
def merged_state(network: nn.Module, state: dict[str, Any]) -> dict[str, Any]:
    """Weights of a network with the low-rank ones added to those that they stand beside."""
    merged = without_lora(state)
    for name, module in network.named_modules():
        if hasattr(module, "get_delta_weight") and "default" in getattr(module, "lora_A", {}):
            weight = merged[f"{name}.weight"]
            merged[f"{name}.weight"] = weight + module.get_delta_weight("default").to(weight)
    return merged


@torch.no_grad()
def merge_lora(tower: nn.Module) -> None:
    """Add a tower's low-rank weights to those that they stand beside, in place; without any, nothing is done."""
    for name, module in list(tower.named_modules()):
        if hasattr(module, "get_delta_weight") and "default" in getattr(module, "lora_A", {}):
            module.merge()
            parent, _, own = name.rpartition(".")
            setattr(tower.get_submodule(parent), own, module.get_base_layer())
    if hasattr(tower.model, "peft_config"):
        del tower.model.peft_config
    if tower.trainable == "lora":
        set_trainable(tower, FROZEN)


def _note_trained(tower: nn.Module, trainable: str | int) -> None:
    """What a trained tower says of itself; it is no preset any more."""
    spec = tower.spec
    if spec.get("trained") is None:
        spec["base_tower"] = base_of(spec)
        name = spec["name_or_path"]
        is_public = not (os.path.isabs(name) or os.path.isdir(name) or ":" in name or spec.get("subfolder"))
        tower.named_base = name if is_public and spec["library"] != "torchxrayvision" else None
    # Its weights are drawn from no seed any more.
    for key in DRAWN_KEYS:
        spec.pop(key, None)
    spec |= {"trained": trainable, "preset": None, "tested": None}


def base_of(spec: dict[str, Any]) -> dict[str, Any]:
    """What a tower started from, without places of this machine: a folder by its last name alone."""
    prefix, _, place = spec["name_or_path"].rpartition(":")
    if os.path.isabs(place) or os.path.isdir(place):
        place = os.path.basename(os.path.abspath(place))
    name = f"{prefix}:{place}" if prefix else place
    base = {key: spec.get(key) for key in ("name_or_path", "revision", "preset", "library")} | {"name_or_path": name}
    return base | ({"init_seed": spec["init_seed"]} if is_random(spec) else {})


__all__ = [
    "FROZEN",
    "FULL",
    "LORA",
    "base_of",
    "has_lora",
    "inject_lora",
    "lora_rank_of",
    "merge_lora",
    "merged_state",
    "number_of_blocks",
    "parameter_depths",
    "parse_trainable",
    "set_mode",
    "set_trainable",
    "without_lora",
]
