"""
A batch larger than memory: embed it in parts without a graph, take the loss over all of it, embed the parts again.

Gradient caching of arXiv 2101.06983. Gradient accumulation is something else: it adds no negatives.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch

Batch = dict[str, torch.Tensor]


def backward_in_parts(
    batch: Batch,
    part_size: int,
    embed: Callable[[Batch], tuple[torch.Tensor, torch.Tensor]],
    get_logit_scale: Callable[[], torch.Tensor],
    loss_function: Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor],
    *,
    backward: Callable[[torch.Tensor], None] = torch.Tensor.backward,
    no_sync: Callable[[], AbstractContextManager] = nullcontext,
) -> torch.Tensor:
    """
    Add the gradients of a whole batch's loss, holding the activations of one part at a time.

    Costs one more forward pass. Dropout draws the same masks in both passes, but others than an undivided batch would.

    Args:
        batch (`dict[str, torch.Tensor]`): Model inputs, rows first.
        part_size (`int`): Rows embedded at once.
        embed (`Callable`): Part of the batch to image and text embeddings `(b, D)`.
        get_logit_scale (`Callable`): The scale's logarithm, with its graph.
        loss_function (`Callable`): Image embeddings, text embeddings, logarithm of the scale, of all rows, to the loss.
        backward (`Callable`): What `loss.backward()` is in a plain loop; it may scale its argument.
        no_sync (`Callable`): Context in which processes do not exchange gradients; left for the last part.

    Returns:
        `torch.Tensor`: the loss, detached.
    """
    rows = len(next(iter(batch.values())))
    parts = [slice(start, start + part_size) for start in range(0, rows, part_size)]
    device = next(iter(batch.values())).device
    states, embeds = [], []
    with torch.no_grad():
        for part in parts:
            states.append(random_state(device))
            embeds.append(embed({name: value[part] for name, value in batch.items()}))
    leaves = [torch.cat(side).requires_grad_() for side in zip(*embeds, strict=True)]
    scale = get_logit_scale().detach().requires_grad_()
    with torch.enable_grad():
        loss = loss_function(*leaves, scale)
    *gradients, scale_gradient = torch.autograd.grad(loss, [*leaves, scale])
    for number, part in enumerate(parts):
        last = number == len(parts) - 1
        with nullcontext() if last else no_sync():
            with replayed(states[number], device):
                sides = embed({name: value[part] for name, value in batch.items()})
            # Its gradient is the loss's, by the chain rule.
            surrogate = sum((side * gradient[part]).sum() for side, gradient in zip(sides, gradients, strict=True))
            backward(surrogate + get_logit_scale() * scale_gradient if last else surrogate)
    return loss.detach()


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


__all__ = ["backward_in_parts"]
