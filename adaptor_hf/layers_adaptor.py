"""The Adaptor's layers: post-norm Transformer layers whose queries may come from another modality."""

from collections.abc import Callable

import torch
from torch import nn
from transformers.activations import ACT2FN
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from .configuration_adaptor import AdaptorConfig


class ZeroGradient(torch.autograd.Function):
    """Identity that gives `parameters` a gradient of zeros, which is what softmax over one key gives them."""

    @staticmethod
    def forward(ctx, hidden_states, *parameters):
        ctx.save_for_backward(*parameters)
        return hidden_states.view_as(hidden_states)

    @staticmethod
    def backward(ctx, grad_output):
        needed = ctx.needs_input_grad[1:]
        zeros = (
            torch.zeros_like(parameter) if need else None
            for parameter, need in zip(ctx.saved_tensors, needed, strict=True)
        )
        return grad_output, *zeros


def eager_attention_forward(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float,
    dropout: float = 0.0,
    **kwargs,
) -> tuple[torch.Tensor, torch.Tensor]:
    attn_weights = torch.matmul(query, key.transpose(-1, -2)) * scaling
    if attention_mask is not None:
        attn_weights = attn_weights + attention_mask
    attn_weights = nn.functional.softmax(attn_weights, dim=-1)
    dropped = nn.functional.dropout(attn_weights, p=dropout, training=module.training)
    return torch.matmul(dropped, value).transpose(1, 2).contiguous(), attn_weights


class Dropout(nn.Dropout):
    """
    `nn.Dropout`; on a CPU, one random 64-bit integer decides on four elements, at half the cost of torch's draws.

    The probability is rounded to a multiple of 2**-16 (0.1 becomes 0.100006), the scale of what is kept with it.
    """

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        if not self.training or self.p == 0 or hidden_states.device.type != "cpu" or torch.compiler.is_compiling():
            return super().forward(hidden_states)
        count, threshold = hidden_states.numel(), round(self.p * 65536)
        words = torch.empty(-(-count // 4), dtype=torch.int64).random_(-(2**63), None)
        kept = (words.view(torch.int16)[:count] >= threshold - 32768).view_as(hidden_states)
        return hidden_states * kept.to(hidden_states.dtype).mul_(65536 / (65536 - threshold))


class PackedLinear(nn.Linear):
    """A query, key or value projection, initialised as a third of the reference's packed (3d, d) matrix."""


class ZeroBiasLinear(nn.Linear):
    """A linear layer whose bias starts at zero."""


class AdaptorAttention(nn.Module):
    """Multi-head attention whose queries may come from another sequence than its keys and values."""

    def __init__(self, config: AdaptorConfig):
        super().__init__()
        self.config = config
        self.num_heads = config.num_attention_heads
        self.head_dim = config.hidden_size // config.num_attention_heads
        self.scaling = self.head_dim**-0.5
        self.dropout = config.attention_probs_dropout_prob
        self.is_causal = False
        self.q_proj = PackedLinear(config.hidden_size, config.hidden_size)
        self.k_proj = PackedLinear(config.hidden_size, config.hidden_size)
        self.v_proj = PackedLinear(config.hidden_size, config.hidden_size)
        self.out_proj = ZeroBiasLinear(config.hidden_size, config.hidden_size)

    def forward(
        self,
        hidden_states: torch.Tensor,
        query_states: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        output_attentions: bool = False,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        query_states = hidden_states if query_states is None else query_states
        one_token = hidden_states.shape[1] == 1 and query_states.shape[1] == 1
        if one_token and attention_mask is None and not output_attentions:
            return self.attend_to_one_key(hidden_states), None

        def split_heads(states: torch.Tensor) -> torch.Tensor:
            return states.view(*states.shape[:2], self.num_heads, self.head_dim).transpose(1, 2)

        # Only the eager form returns its weights.
        attention_interface: Callable = eager_attention_forward
        if not output_attentions:
            attention_interface = ALL_ATTENTION_FUNCTIONS.get_interface(
                self.config._attn_implementation, eager_attention_forward
            )
        attn_output, attn_weights = attention_interface(
            self,
            split_heads(self.q_proj(query_states)),
            split_heads(self.k_proj(hidden_states)),
            split_heads(self.v_proj(hidden_states)),
            attention_mask,
            scaling=self.scaling,
            dropout=self.dropout if self.training else 0.0,
            is_causal=False,
        )
        attn_output = attn_output.reshape(*query_states.shape[:2], -1)
        return self.out_proj(attn_output), attn_weights

    def attend_to_one_key(self, hidden_states: torch.Tensor) -> torch.Tensor:
        # Softmax over one key is 1 whatever the query: queries and keys need no product. What remains of attention is
        # its dropout, which keeps or drops a whole head of a sample, drawn exactly as the general path draws it.
        value = self.v_proj(hidden_states)
        if self.training and self.dropout > 0:
            weights = value.new_ones(value.shape[0], self.num_heads, 1, 1)
            kept = nn.functional.dropout(weights, p=self.dropout)
            value = (value.view(-1, self.num_heads, self.head_dim) * kept.squeeze(-1)).view_as(value)
        # Of a quantised layer these are none, or no weights that train.
        unused = [parameter for layer in (self.q_proj, self.k_proj) for parameter in layer.parameters()]
        if torch.is_grad_enabled() and any(parameter.requires_grad for parameter in unused):
            value = ZeroGradient.apply(value, *unused)
        return self.out_proj(value)


class AdaptorMLP(nn.Module):
    def __init__(self, config: AdaptorConfig):
        super().__init__()
        self.activation_fn = ACT2FN[config.hidden_act]
        self.dropout = Dropout(config.hidden_dropout_prob)
        self.fc1 = nn.Linear(config.hidden_size, config.intermediate_size)
        self.fc2 = nn.Linear(config.intermediate_size, config.hidden_size)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return self.fc2(self.dropout(self.activation_fn(self.fc1(hidden_states))))


class AdaptorLayer(GradientCheckpointingLayer):
    """One post-norm layer. Keys, values and residual are `hidden_states`; queries may be another modality's."""

    def __init__(self, config: AdaptorConfig):
        super().__init__()
        self.self_attn = AdaptorAttention(config)
        self.layer_norm1 = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.mlp = AdaptorMLP(config)
        self.layer_norm2 = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.dropout = Dropout(config.hidden_dropout_prob)

    def forward(
        self,
        hidden_states: torch.Tensor,
        query_states: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        output_attentions: bool = False,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        attn_output, attn_weights = self.self_attn(hidden_states, query_states, attention_mask, output_attentions)
        hidden_states = self.layer_norm1(hidden_states + self.dropout(attn_output))
        hidden_states = self.layer_norm2(hidden_states + self.dropout(self.mlp(hidden_states)))
        return hidden_states, attn_weights


class AdaptorEncoder(nn.Module):
    """The layers, one set of weights for both modalities."""

    def __init__(self, config: AdaptorConfig):
        super().__init__()
        self.layers = nn.ModuleList(AdaptorLayer(config) for _ in range(config.num_shared_layers))

    def forward(
        self,
        image: torch.Tensor | None,
        text: torch.Tensor | None,
        image_mask: torch.Tensor | None = None,
        text_mask: torch.Tensor | None = None,
        output_attentions: bool = False,
        fuse_pairs: bool = False,
    ) -> tuple[torch.Tensor | None, torch.Tensor | None, tuple | None]:
        """
        Args:
            image (`torch.Tensor` of shape `(M, N, hidden_size)`, *optional*): Projected tokens.
            text (`torch.Tensor` of shape `(B, L, hidden_size)`, *optional*): The same of the other modality.
            image_mask, text_mask (`torch.Tensor` of shape `(M, 1, 1, N)`, `(B, 1, 1, L)`, *optional*): Added to scores.
            output_attentions (`bool`, defaults to `False`): Whether to return weights.
            fuse_pairs (`bool`, defaults to `False`): Row i of one modality queries row i of the other.

        Returns:
            Image, text, and of each layer a pair of attention weights, or `None`.

        Raises:
            ValueError: rows or lengths that cannot be fused.
        """
        attentions = []
        if fuse_pairs:
            self._check_fusable(image, text)
            for layer in self.layers:
                image, image_weights = layer(image, text, image_mask, output_attentions)
                text, text_weights = layer(text, image, text_mask, output_attentions)
                attentions.append((image_weights, text_weights))
        elif (
            image is not None
            and text is not None
            and image.shape[1] == text.shape[1]
            and image_mask is None
            and text_mask is None
        ):
            # The layers are shared: one pass over both modalities' rows costs half the kernel launches.
            both, num_images = torch.cat([image, text]), len(image)
            for layer in self.layers:
                both, weights = layer(both, None, None, output_attentions)
                attentions.append((None, None) if weights is None else (weights[:num_images], weights[num_images:]))
            image, text = both[:num_images], both[num_images:]
        else:
            for layer in self.layers:
                image_weights = text_weights = None
                if image is not None:
                    image, image_weights = layer(image, None, image_mask, output_attentions)
                if text is not None:
                    text, text_weights = layer(text, None, text_mask, output_attentions)
                attentions.append((image_weights, text_weights))
        return image, text, tuple(attentions) if output_attentions else None

    @staticmethod
    def _check_fusable(image: torch.Tensor | None, text: torch.Tensor | None) -> None:
        if image is None or text is None or len(image) != len(text):
            raise ValueError("fuse_pairs=True needs one text per image.")
        lengths = image.shape[1], text.shape[1]
        if lengths[0] != lengths[1] and 1 not in lengths:
            raise ValueError(f"fuse_pairs=True needs equal lengths or one token a modality, got {lengths} tokens.")


def align_weights(model: nn.Module) -> None:
    """
    Copy weights whose address is off the 64-byte grid of fresh tensors.

    Weights read from a file lie where the file has them, and there CPU kernels may sum in another order: the same
    checkpoint would give other last bits than the model that was saved.
    """
    for parameter in model.parameters():
        if parameter.device.type == "cpu" and parameter.data_ptr() % 64:
            parameter.data = parameter.data.clone()


__all__ = ["AdaptorAttention", "AdaptorEncoder", "AdaptorLayer", "PackedLinear", "ZeroBiasLinear", "align_weights"]
