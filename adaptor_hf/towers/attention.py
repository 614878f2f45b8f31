"""Attention of the class token in a tower's last block, as its softmax gives it."""

import contextlib
import inspect
from collections.abc import Iterator

import torch
from torch import nn

from ..tower_layers_adaptor import blocks_of, tower_name
from ..towers_adaptor import TextTower, VisionTower


@contextlib.contextmanager
def class_attention(tower: VisionTower | TextTower, option: str) -> Iterator[list[torch.Tensor]]:
    """
    Within the context each pass through a tower leaves one tensor in the list, in place of the one before: `(B, L)`,
    the attention of the first token to all L, itself included, mean over the heads. Number k is that to token k.

    Networks of transformers compute by their eager attention meanwhile, and by what they had afterwards.

    Args:
        tower: With a class token.
        option: What was asked for, for errors.

    Raises:
        ValueError: The tower is no transformer, or its last block gives no attention weights.
    """
    network, name = tower.model, tower_name(tower.spec)
    last = blocks_of(network, name, option)[-1]
    found: list[torch.Tensor] = []
    with contextlib.ExitStack() as undo:
        if hasattr(network, "timm_model"):
            _hook_timm(last, found, undo)
        else:
            _hook_transformers(network, last, found, undo)
        yield found
    if not found:
        raise ValueError(
            f"tower {name!r}: its last block ({type(last).__name__}) gives no attention weights for {option}. Leave "
            f"{option} out, or take another tower."
        )


def _keep(found: list[torch.Tensor], weights: torch.Tensor) -> None:
    """(B, heads, L, L) to (B, L), at once: all heads and tokens of all blocks would fill the memory."""
    found[:] = [weights[:, :, 0].float().mean(dim=1)]


def _hook_timm(block: nn.Module, found: list[torch.Tensor], undo: contextlib.ExitStack) -> None:
    for module in block.modules():
        dropout = getattr(module, "attn_drop", None)
        if not (isinstance(dropout, nn.Module) and hasattr(module, "fused_attn")):
            continue
        undo.callback(setattr, module, "fused_attn", module.fused_attn)
        module.fused_attn = False
        # In evaluation it passes the softmax on as it is.
        hook = dropout.register_forward_hook(lambda module, inputs, output: _keep(found, output))
        undo.callback(hook.remove)


def _hook_transformers(
    network: nn.Module, block: nn.Module, found: list[torch.Tensor], undo: contextlib.ExitStack
) -> None:
    implementation = network.config._attn_implementation
    if implementation not in (None, "eager"):
        network.set_attn_implementation("eager")
        undo.callback(network.set_attn_implementation, implementation)

    def ask(module, inputs, arguments):
        return inputs, arguments | {"output_attentions": True}

    def look(module, inputs, output) -> None:
        weights = output[1] if isinstance(output, tuple) and len(output) > 1 else None
        if isinstance(weights, torch.Tensor) and weights.ndim == 4 and weights.shape[-1] == weights.shape[-2]:
            _keep(found, weights)

    if "output_attentions" in inspect.signature(block.forward).parameters:
        undo.callback(block.register_forward_pre_hook(ask, with_kwargs=True).remove)
    for module in block.modules():
        undo.callback(module.register_forward_hook(look).remove)


__all__ = ["class_attention"]
