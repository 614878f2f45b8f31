"""Whether a tower's weights are still those that were loaded: a checkpoint without towers would lose a change.

This file is flat on purpose: it is copied beside a checkpoint as remote code.
"""

from typing import NamedTuple

import torch

from .precision_adaptor import COMPUTES

SAMPLE = 64
# What torch.compile, checkpointing and FSDP put into names.
WRAPPERS = ("_orig_mod.", "_checkpoint_wrapped_module.", "_fsdp_wrapped_module.")
# model.half().float(), and the like: `.to(dtype)` of other libraries goes past modules, so it is told from the values.
CASTS = (
    (torch.float16,),
    (torch.bfloat16,),
    (torch.float16, torch.bfloat16),
    (torch.bfloat16, torch.float16),
)


class Mark(NamedTuple):
    """What is kept of a tensor: its dtype and shape, the sum of its bits as integers, and some of its values."""

    dtype: torch.dtype
    shape: torch.Size
    bits: int
    sample: torch.Tensor


@torch.no_grad()
def mark_weights(state: dict[str, torch.Tensor]) -> dict[str, Mark] | None:
    """
    Marks of parameters and persistent buffers, about 1 KB a tensor; one pass over the weights.

    Args:
        state (`dict`): A state dict. Quantised entries, which are no plain tensors, get no mark.

    Returns:
        `dict`: By name, or `None` if there are no weights yet (`torch.device("meta")`).
    """
    tensors = {_plain(name): value for name, value in state.items() if _is_plain(value)}
    if any(value.is_meta for value in tensors.values()):
        return None
    return {name: Mark(value.dtype, value.shape, _bits(value), _sample(value)) for name, value in tensors.items()}


@torch.no_grad()
def changed_weights(marks: dict[str, Mark], state: dict[str, torch.Tensor]) -> list[str]:
    """
    Names of weights that differ from their marks, are new, or are gone, sorted.

    Another device or floating dtype is no change, and neither is the way back (`model.half().float()`). Quantised
    weights, and those that are not on this process (`meta`, sharded), cannot be compared and count as unchanged. In a
    tower whose dtype was changed, a change of a few values alone may be missed.
    """
    state = {_plain(name): value for name, value in state.items()}
    # A quantised layer keeps its name, and holds integers, packed objects and scales in place of the weight.
    quantised = {
        name.rpartition(".")[0]
        for name, mark in marks.items()
        if mark.dtype in COMPUTES and name in state and not _is_comparable(state[name])
    }
    layers = {name.rpartition(".")[0] for name in state}
    found = set()
    for name, mark in marks.items():
        module = name.rpartition(".")[0]
        if name in state:
            value = state[name]
            if _is_plain(value) and _is_comparable(value) == (mark.dtype in COMPUTES) and not _is_same(value, mark):
                found.add(name)
        elif any(layer == module or layer.startswith(f"{module}._packed") for layer in layers):
            quantised.add(module)
        else:
            found.add(name)
    for name in state.keys() - marks.keys():
        parents = {name[:end] for end, letter in enumerate(name) if letter == "."}
        if _is_plain(state[name]) and not parents & quantised:
            found.add(name)
    return sorted(found)


def _plain(name: str) -> str:
    for wrapper in WRAPPERS:
        name = name.replace(wrapper, "")
    return name


def _is_plain(value) -> bool:
    return type(value) in (torch.Tensor, torch.nn.Parameter)


def _is_comparable(value) -> bool:
    return _is_plain(value) and value.dtype in COMPUTES


def _is_same(value: torch.Tensor, mark: Mark) -> bool:
    if value.is_meta or (value.numel() == 0 and mark.shape.numel()):
        return True
    if value.shape != mark.shape:
        return False
    sample = _sample(value)
    if value.dtype == mark.dtype and _bits(value) == mark.bits and torch.equal(sample, mark.sample):
        return True
    return mark.dtype in COMPUTES and any(_is_cast(value, sample, mark, steps) for steps in ((), *CASTS))


def _is_cast(value: torch.Tensor, sample: torch.Tensor, mark: Mark, steps: tuple[torch.dtype, ...]) -> bool:
    """Whether the value may be what was marked, cast to each of `steps` and then to its own dtype."""
    expected = mark.sample
    for step in steps:
        expected = expected.to(step)
    if not torch.equal(expected.to(value.dtype), sample):
        return False
    if not steps:
        back = value.to(mark.dtype)
        narrowed = value.dtype.itemsize < mark.dtype.itemsize
        return value.dtype != mark.dtype and (narrowed or _bits(back) == mark.bits)
    return torch.equal(value.to(steps[-1]).to(value.dtype), value)


def _bits(value: torch.Tensor) -> int:
    """Equal on every device, whatever the order of the sum."""
    if value.dtype == torch.bool:
        value = value.to(torch.uint8)
    kinds = {1: torch.uint8, 2: torch.int16, 4: torch.int32}
    flat = value.detach().reshape(-1)
    return int(flat.view(kinds.get(value.dtype.itemsize, torch.int64)).sum(dtype=torch.int64))


def _sample(value: torch.Tensor) -> torch.Tensor:
    """Values at an odd distance, so that they are not all of one column."""
    flat = value.detach().reshape(-1)
    return flat[:: max(1, len(flat) // SAMPLE) | 1].cpu().clone()


__all__ = ["Mark", "changed_weights", "mark_weights"]
