"""What leads from a tower's embeddings to the shared space, one module a side, and the residual aligner's scale.

This file is flat on purpose: it is copied beside a checkpoint as remote code.
"""

import torch
from torch import nn
from transformers.activations import ACT2FN

from .batch_norm_adaptor import BatchNorm
from .configuration_adaptor import AdaptorConfig
from .layers_adaptor import Dropout, ZeroGradient

# SAIL's: a product of two branches must stay within half precision.
LARGEST = 1e3


class XavierLinear(nn.Linear):
    """A linear layer that starts with Xavier's uniform weights and a bias of zero."""


class GatedProjection(nn.Module):
    """
    Layer norm, two parallel linear layers multiplied after a ReLU6 on one, and a linear layer (SAIL, CVPR 2025).

    Args:
        in_features (`int`), out_features (`int`): Widths of the embeddings and of the shared space.
        intermediate_size (`int`, *optional*): Width of the branches; `None` is eight times `in_features`.
        eps (`float`, defaults to 1e-5): Epsilon of the layer norm.
    """

    def __init__(self, in_features: int, out_features: int, intermediate_size: int | None = None, eps: float = 1e-5):
        super().__init__()
        self.in_features = in_features
        width = 8 * in_features if intermediate_size is None else intermediate_size
        self.norm = nn.LayerNorm(in_features, eps=eps)
        self.gate_proj = XavierLinear(in_features, width)
        self.up_proj = XavierLinear(in_features, width)
        self.down_proj = XavierLinear(width, out_features)

    def forward(self, embeds: torch.Tensor) -> torch.Tensor:
        normed = self.norm(embeds)
        gate, up = (layer(normed).clamp(-LARGEST, LARGEST) for layer in (self.gate_proj, self.up_proj))
        return self.down_proj(nn.functional.relu6(gate) * up)


class MlpLayer(nn.Module):
    """Linear, norm, activation, dropout."""

    def __init__(self, in_features: int, config: AdaptorConfig):
        super().__init__()
        width = config.intermediate_size
        self.linear = nn.Linear(in_features, width)
        self.norm = None
        if config.projection_norm == "batch":
            self.norm = BatchNorm(width)
        elif config.projection_norm == "layer":
            self.norm = nn.LayerNorm(width, eps=config.layer_norm_eps)
        self.activation_fn = ACT2FN[config.hidden_act]
        self.dropout = Dropout(config.hidden_dropout_prob)

    def forward(self, states: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        states = self.linear(states)
        if isinstance(self.norm, BatchNorm):
            states = self.norm(states, mask)
        elif self.norm is not None:
            states = self.norm(states)
        return self.dropout(self.activation_fn(states))


class MlpProjection(nn.Module):
    """
    `num_hidden_layers` times linear, norm, activation and dropout, then a linear layer, and on request a batch norm
    without weights: the heads of MGCA (with that last norm), LoVT, SimCLR and ShareLock.

    Args:
        in_features (`int`): Width of the embeddings.
        config ([`AdaptorConfig`]): The rest: `hidden_size` is the width that comes out.
    """

    def __init__(self, in_features: int, config: AdaptorConfig):
        super().__init__()
        self.in_features = in_features
        widths = [in_features, *[config.intermediate_size] * config.num_hidden_layers]
        self.layers = nn.ModuleList(MlpLayer(width, config) for width in widths[:-1])
        self.output = nn.Linear(widths[-1], config.hidden_size)
        self.output_norm = BatchNorm(config.hidden_size, affine=False) if config.projection_output_norm else None

    def forward(self, embeds: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        """
        Args:
            embeds (`torch.Tensor` of shape `(..., in_features)`): Embeddings or tokens.
            mask (`torch.Tensor` of shape `(...)`, *optional*): 1 for tokens, 0 for padding, which batch statistics then
                leave out. `None` counts every position, as MGCA and LoVT do.
        """
        for layer in self.layers:
            embeds = layer(embeds, mask)
        embeds = self.output(embeds)
        return embeds if self.output_norm is None else self.output_norm(embeds, mask)


class ResidualScale(nn.Module):
    """`states + weight * branch` with one weight a channel, each 0 at the start."""

    def __init__(self, width: int):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(width))

    def forward(self, states: torch.Tensor, branch: torch.Tensor) -> torch.Tensor:
        return states + self.weight * branch


def make_projection(config: AdaptorConfig, in_features: int) -> nn.Module:
    """The module of one side for `config.aligner`; it has `in_features`."""
    if config.aligner == "mlp":
        return MlpProjection(in_features, config)
    if config.aligner == "gated":
        return GatedProjection(in_features, config.hidden_size, config.intermediate_size, config.layer_norm_eps)
    return nn.Linear(in_features, config.hidden_size, bias=False)


def project_sequence(
    projection: nn.Module, token_projection: nn.Module | None, sequence: torch.Tensor, mask: torch.Tensor | None = None
) -> torch.Tensor:
    """
    A sequence `[pooled, token_1, ..., token_N]` through an MLP, its tokens through another one where there is one.

    Args:
        projection ([`MlpProjection`]), token_projection ([`MlpProjection`], *optional*): `None`: the same for tokens.
        sequence (`torch.Tensor` of shape `(B, 1 + N, in_features)`): In the dtype of the MLPs.
        mask (`torch.Tensor` of shape `(B, 1 + N)`, *optional*): See [`MlpProjection`].

    Returns:
        `torch.Tensor` of shape `(B, 1 + N, out_features)`.
    """
    if token_projection is None:
        return projection(sequence, mask)
    pooled = projection(sequence[:, :1])
    if sequence.shape[1] > 1:
        return torch.cat([pooled, token_projection(sequence[:, 1:], None if mask is None else mask[:, 1:])], dim=1)
    parameters = list(token_projection.parameters())
    if torch.is_grad_enabled() and any(parameter.requires_grad for parameter in parameters):
        # Processes that train together wait for every parameter's gradient.
        return ZeroGradient.apply(pooled, *parameters)
    return pooled


__all__ = ["GatedProjection", "MlpProjection", "ResidualScale", "XavierLinear", "make_projection", "project_sequence"]
