"""Learning rates and weight decay of towers that train: one peak of their own, and less of it for earlier layers."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn

from ..modeling_adaptor import AdaptorModel
from ..pretrained_adaptor import TOWER_NAMES
from ..tower_training_adaptor import number_of_blocks, parameter_depths

if TYPE_CHECKING:
    from .arguments import AdaptorTrainingArguments


def training_towers(model: AdaptorModel) -> dict[str, nn.Module]:
    """The towers of a model that have parameters with gradients, by name: `vision_model`, `text_model`."""
    towers = {name: getattr(model, name) for name in TOWER_NAMES if getattr(model, name, None) is not None}
    return {name: tower for name, tower in towers.items() if any(one.requires_grad for one in tower.parameters())}


def check_tower_rates(args: AdaptorTrainingArguments, model: AdaptorModel) -> None:
    """
    Check that options of towers that train have a tower to act on.

    Raises:
        ValueError: `layer_decay` or `tower_learning_rate` was given and no tower trains, or a tower that trains has no
            layers to tell apart.
    """
    towers = training_towers(model)
    given = [f"layer_decay {args.layer_decay:g}"] if args.layer_decay != 1.0 else []
    given += [] if args.tower_learning_rate is None else [f"tower_learning_rate {args.tower_learning_rate:g}"]
    if given and not towers:
        raise ValueError(
            f"{' and '.join(given)}: no tower trains, so there is nothing to apply it to. Leave it out; or let one "
            'train: model.set_trainable_towers(vision_model="full", text_model="lora"), '
            "or --train_vision_tower and --train_text_tower."
        )
    if args.layer_decay != 1.0:
        for tower in towers.values():
            parameter_depths(tower)


def refuse_own_optimizer(args: AdaptorTrainingArguments, optimizer: torch.optim.Optimizer | None) -> None:
    """Raise ValueError where rates of towers are asked for and the optimizer comes with its own."""
    if optimizer is not None and (args.layer_decay != 1.0 or args.tower_learning_rate is not None):
        raise ValueError(
            "layer_decay and tower_learning_rate make groups of the trainer's own optimizer, and optimizers= gives "
            "another one. Leave out the one or the other."
        )


def rate_scales(tower: nn.Module, layer_decay: float) -> dict[str, float]:
    """
    Layer-wise decay of learning rates, as of BEiT (arXiv 2106.08254) and SLIP's fine-tuning.

    Args:
        tower (`VisionTower` or `TextTower`): With L blocks.
        layer_decay (`float`): Factor from one block to the one before it.

    Returns:
        `dict[str, float]`: By the names of `tower.named_parameters()`, `layer_decay ** (L + 1 - depth)`: 1 after the
        last block, `layer_decay` in it, `layer_decay ** (L + 1)` before the first one.
    """
    if layer_decay == 1.0:
        return {name: 1.0 for name, _ in tower.named_parameters()}
    last = number_of_blocks(tower) + 1
    return {name: layer_decay ** (last - depth) for name, depth in parameter_depths(tower).items()}


def no_decay_in_towers(model: nn.Module) -> set[str]:
    """
    Names of tower parameters without weight decay: those of fewer than 2 dimensions, biases and scales of norms, as in
    timm, BEiT and SLIP. Names are those of `model.named_parameters()`.
    """
    inside = tuple(f"{name}." for name in TOWER_NAMES)
    of_towers = (
        (name, value)
        for name, value in model.named_parameters()
        if name.startswith(inside) or name.startswith(tuple(f"model.{one}" for one in inside))
    )
    return {name for name, value in of_towers if value.ndim < 2}


def give_towers_their_rates(
    optimizer: torch.optim.Optimizer, model: AdaptorModel, args: AdaptorTrainingArguments
) -> None:
    """
    Move the parameters of towers out of an optimizer's groups into groups of their own, one for each learning rate and
    weight decay. The other groups stay as they are, and the first.

    Args:
        optimizer (`torch.optim.Optimizer`): Before its first step.
        model (`AdaptorModel`): Whose towers train.
        args (`AdaptorTrainingArguments`): With `layer_decay` and `tower_learning_rate`.
    """
    scales: dict[int, float] = {}
    for tower in training_towers(model).values():
        of_names = rate_scales(tower, args.layer_decay)
        scales |= {id(value): of_names[name] for name, value in tower.named_parameters() if value.requires_grad}
    if not scales:
        return
    found: dict[tuple[int, float], list[nn.Parameter]] = {}
    for number, group in enumerate(optimizer.param_groups):
        for value in group["params"]:
            if id(value) in scales:
                found.setdefault((number, scales[id(value)]), []).append(value)
        group["params"] = [value for value in group["params"] if id(value) not in scales]
    for (number, scale), values in found.items():
        like = {name: setting for name, setting in optimizer.param_groups[number].items() if name != "params"}
        peak = like["lr"] if args.tower_learning_rate is None else args.tower_learning_rate
        optimizer.add_param_group(like | {"params": values, "lr": peak * scale})


__all__ = [
    "check_tower_rates",
    "give_towers_their_rates",
    "no_decay_in_towers",
    "rate_scales",
    "refuse_own_optimizer",
    "training_towers",
]
