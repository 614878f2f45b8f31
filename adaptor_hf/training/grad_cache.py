"""
A batch larger than memory: embed it in parts without a graph, take the loss over all of it, embed the parts again.

Gradient caching of arXiv 2101.06983, for every objective that is a function of embeddings. Gradient accumulation is
something else: it adds no negatives.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TYPE_CHECKING

import torch
from torch import nn

from ..batch_norm_adaptor import BatchNorm
from ..objectives import Encoded, Objective
from ..objectives.loading import objective_name
from .pair_batches import side_of_column

if TYPE_CHECKING:
    from transformers import TrainingArguments

Batch = dict[str, torch.Tensor]


def backward_in_parts(
    batch: Batch,
    part_size: int,
    encode: Callable[[Batch], Encoded],
    loss_function: Callable[[Encoded], dict[str, torch.Tensor]],
    parameters: Iterable[nn.Parameter],
    *,
    backward: Callable[[torch.Tensor], None] = torch.Tensor.backward,
    no_sync: Callable[[], AbstractContextManager] = nullcontext,
) -> dict[str, torch.Tensor]:
    """
    Add the gradients of a whole batch's loss, holding the activations of one part at a time.

    Costs one more forward pass. Dropout draws the same masks in both passes, but others than an undivided batch would.

    Args:
        batch (`dict[str, torch.Tensor]`): All columns, rows first. Images and texts may differ in number: each side is
            cut for itself, and the first parts lack the side that has fewer.
        part_size (`int`): Images, and texts, embedded at once.
        encode (`Callable`): Part of the batch to its embeddings, each of which depends on its own item alone.
        loss_function (`Callable`): Embeddings of the whole batch, without logit_scale and logit_bias, to the terms of
            the loss, scalars; `"loss"` is minimised.
        parameters (`Iterable[nn.Parameter]`): Those that `loss_function` reads: the objective's, logit_scale and
            logit_bias. Those that it leaves out get no gradient; in a process group one of zero, which others wait for.
        backward (`Callable`): What `loss.backward()` is in a plain loop; it may scale its argument.
        no_sync (`Callable`): Context in which processes do not exchange gradients; left for the last part.

    Returns:
        `dict[str, torch.Tensor]`: the terms, detached.
    """
    parts = cut(batch, part_size)
    device = next(value.device for value in batch.values() if isinstance(value, torch.Tensor))
    states, encoded = [], []
    with torch.no_grad():
        for part in parts:
            states.append(random_state(device))
            encoded.append(encode(part).tensors())
    whole = _joined(encoded)
    leaves = {key: value.requires_grad_() for key, value in whole.items() if value.is_floating_point()}
    parameters = [parameter for parameter in parameters if parameter.requires_grad]
    with torch.enable_grad():
        terms = loss_function(Encoded.of_tensors(whole))
    # A tensor that the loss does not read has no gradient: a mask of decimals, say, or tokens beside pooled vectors.
    gradients = torch.autograd.grad(terms["loss"], [*leaves.values(), *parameters], allow_unused=True)
    of_leaves, of_parameters = dict(zip(leaves, gradients, strict=False)), gradients[len(leaves) :]
    done = dict.fromkeys(leaves, 0)
    for number, part in enumerate(parts):
        last = number == len(parts) - 1
        with nullcontext() if last else no_sync():
            with replayed(states[number], device):
                tensors = encode(part).tensors()
            pulls = []
            for key in (key for key in of_leaves if key in tensors):
                stop = done[key] + len(tensors[key])
                pulls.append(pull(tensors[key], of_leaves[key], slice(done[key], stop), last))
                done[key] = stop
            if last:
                pulls += [pull(*pair, slice(None), last) for pair in zip(parameters, of_parameters, strict=True)]
            pulls = [value for value in pulls if value is not None]
            # Their gradient is the loss's, by the chain rule.
            if pulls:
                backward(sum(pulls))
    return {name: value.detach() for name, value in terms.items()}


def pull(value: torch.Tensor, gradient: torch.Tensor | None, rows: slice, last: bool) -> torch.Tensor | None:
    """
    A scalar whose gradient at `value` is these rows of `gradient`, and None where there is nothing to pull.

    DistributedDataParallel waits for the gradient of every parameter, which is zero where the loss does not read it.
    """
    if not value.requires_grad:
        return None
    if gradient is None:
        # The sum of none of its elements.
        return value.flatten()[:0].sum() if last and torch.distributed.is_initialized() else None
    return (value * gradient[rows]).sum() if gradient.ndim else value * gradient


def cut(batch: Batch, part_size: int) -> list[Batch]:
    """
    A batch in parts of at most so many images, and so many texts.

    Columns of images, of texts and of rows are each cut for themselves. Those of which there are fewer are in the last
    parts: processes exchange gradients after the last one, which must therefore have both sides.
    """
    sides = {
        name: side_of_column(name) for name, value in batch.items() if isinstance(value, torch.Tensor) and value.ndim
    }
    lengths: dict[str, int] = {}
    for name, side in sides.items():
        lengths[side] = max(lengths.get(side, 0), len(batch[name]))
    count = max(-(-length // part_size) for length in lengths.values())
    first = {side: count - -(-length // part_size) for side, length in lengths.items()}

    def part(number: int) -> Batch:
        found = {}
        for name, value in batch.items():
            if name not in sides:
                found[name] = value
            elif (place := number - first[sides[name]]) >= 0:
                found[name] = value[place * part_size : (place + 1) * part_size]
        return found

    return [part(number) for number in range(count)]


def _joined(parts: list[dict[tuple[str, str], torch.Tensor]]) -> dict[tuple[str, str], torch.Tensor]:
    """Tensors of all parts by their names, concatenated; a part may lack some."""
    keys = dict.fromkeys(key for part in parts for key in part)
    return {key: torch.cat([part[key] for part in parts if key in part]) for key in keys}


def check_splits(objective: Objective, model: nn.Module) -> None:
    """
    Refuse what a batch in parts would train otherwise than the whole batch.

    Args:
        objective ([`~adaptor_hf.objectives.Objective`]): What is minimised.
        model (`nn.Module`): What embeds, in the mode in which it is trained.

    Raises:
        ValueError: the objective looks at several items at once while it embeds, or a module does: statistics of the
            batch, which would be those of a part. Both are named.
    """
    if not objective.splits:
        raise ValueError(
            "grad_cache_batch_size embeds a batch in parts, and the objective "
            f"{objective_name(type(objective))!r} embeds it as a whole (its `splits` is False). Leave "
            "grad_cache_batch_size out, with a smaller batch."
        )
    if found := [*batch_statistics(model), *batch_statistics(objective)]:
        names = ", ".join(f"{name} ({type(module).__name__})" for name, module in found[:3])
        raise ValueError(
            f"grad_cache_batch_size embeds a batch in parts, and {names}{' and more' if len(found) > 3 else ''} would "
            "take the statistics of each part for those of the batch. Leave grad_cache_batch_size out, or choose a "
            "head without batch statistics."
        )


def batch_statistics(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Modules in training mode that take the mean or spread of the batch, by their names."""
    for name, module in model.named_modules():
        takes = hasattr(module, "track_running_stats") or hasattr(module, "running_mean")
        if takes and module.training:
            yield name, module


def check_last_statistics(
    model: nn.Module,
    rows: int | None,
    arguments: TrainingArguments,
    *,
    even: bool = True,
    cure: str = "leave that batch out (--dataloader_drop_last True), or choose another --global_batch_size",
) -> None:
    """
    Refuse a training that would end at the last batch of its first epoch: a single row, where batch normalisation asks
    for a mean and a spread.

    Args:
        model (`nn.Module`): What is trained, in training mode.
        rows (`int`, *optional*): Of an epoch; where they are not known, nothing is checked.
        arguments (`TrainingArguments`): Batch size, processes, steps.
        even (`bool`): With several processes, a last batch is filled up.
        cure (`str`): What to do.

    Raises:
        ValueError: naming the module and the rows.
    """
    size, processes = arguments.per_device_train_batch_size, arguments.world_size
    steps = arguments.max_steps * arguments.gradient_accumulation_steps
    if rows is None or 0 < steps < math.ceil(rows / (size * processes)):
        return
    whole = arguments.dataloader_drop_last or getattr(arguments, "source_batches", "") == "by_source"
    whole = whole or (even and processes > 1)
    if (size if whole else rows % size or size) > 1:
        return
    for name, module in batch_statistics(model):
        # Of all processes together there are several rows, and of a map of an image several places.
        over_all = processes > 1 and isinstance(module, BatchNorm)
        if isinstance(module, nn.BatchNorm1d) and not over_all:
            raise ValueError(
                f"{rows:,} rows in batches of {size:,} leave a last batch of a single one, and {name} "
                f"({type(module).__name__}) takes the mean and spread of each batch: {cure}."
            )


def random_state(device: torch.device) -> tuple[torch.Tensor, torch.Tensor | None]:
    """State of the generators that a forward pass on this device draws from."""
    return torch.get_rng_state(), torch.cuda.get_rng_state(device) if device.type == "cuda" else None


@contextmanager
def replayed(state: tuple[torch.Tensor, torch.Tensor | None], device: torch.device):
    """Draw from a former state; afterwards the generators are where they were before."""
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.set_rng_state(state[0])
        if state[1] is not None:
            torch.cuda.set_rng_state(state[1], device)
        yield


__all__ = ["backward_in_parts", "batch_statistics", "check_last_statistics", "check_splits", "cut"]
