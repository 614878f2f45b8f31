"""Frozen vision and text encoders behind one interface: tokens (B, N, D) and one embedding (B, D) an input.

This file is flat on purpose: it is copied beside a checkpoint as remote code.
"""

import inspect
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import nn
from transformers import PreTrainedConfig
from transformers.modeling_outputs import BaseModelOutputWithPooling

from .arguments_adaptor import refuse_unknown
from .image_processing_adaptor import AdaptorImageProcessor, processor_of_tower
from .precision_adaptor import input_dtype
from .tower_layers_adaptor import chosen_blocks, merged_layers, recorded_outputs, stages_of, tower_name
from .tower_sources_adaptor import has_trained_pooler
from .tower_specs_adaptor import load_text_processor
from .tower_training_adaptor import FROZEN, set_mode, set_trainable
from .tower_weights_adaptor import mark_weights


class _Tower(nn.Module):
    """What both kinds share: the spec, the frozen network, and evaluation mode that `train()` does not leave."""

    def __init__(self, model: nn.Module, spec: dict[str, Any]):
        super().__init__()
        self.model = model
        self.spec = spec
        # By which a save without towers knows that nothing is lost; None where the weights come later.
        self.loaded_weights = mark_weights(self.state_dict())
        # What trains: "frozen", "lora", "full" or a number of blocks. See `set_trainable`.
        self.trainable: str | int = FROZEN
        # The hub id of the network under low-rank weights, where there is one.
        self.named_base: str | None = None
        self.requires_grad_(False)
        self.eval()

    @property
    def hidden_size(self) -> int:
        """Width D of the embeddings."""
        return self.spec["hidden_size"]

    @property
    def token_size(self) -> int:
        """Width of a token, which may differ from that of the embeddings."""
        return self.spec.get("token_size") or self.spec["hidden_size"]

    @property
    def config(self) -> PreTrainedConfig | None:
        """The library's configuration, or None where the library has none (torchxrayvision)."""
        return getattr(self.model, "config", None)

    def train(self, mode: bool = True):
        """Training mode for what trains (`set_trainable`). What is frozen stays in evaluation mode, whatever `mode` is:
        its dropout and batch statistics are off; those of a tower that does not train in full too."""
        set_mode(self, mode)
        return self

    def set_trainable(self, trainable: str | int, *, lora_rank: int = 8) -> None:
        """Chooses what trains, in place. A tower that trained is saved as a folder of its own (`save_tower`).

        Args:
            trainable: "frozen"; "lora", low-rank weights in the attention; "full"; or the last N blocks (layers of a
                transformer, stages of a convolutional network) and all that comes after them.
            lora_rank: of low-rank weights that are new.

        Raises:
            ValueError: an unknown word, more blocks than there are, or LoRA on a tower without attention.
        """
        set_trainable(self, trainable, lora_rank)

    def _accepts(self, argument: str) -> bool:
        return argument in inspect.signature(self.model.forward).parameters

    def _gradients(self, *inputs: torch.Tensor | None):
        """Records gradients only if something asks for them: LoRA weights in the tower, or an input (saliency)."""
        wanted = any(x is not None and x.requires_grad for x in inputs)
        wanted = wanted or any(parameter.requires_grad for parameter in self.model.parameters())
        return torch.set_grad_enabled(wanted and torch.is_grad_enabled())


class VisionFeatures(NamedTuple):
    """Tokens (B, N, D), image embedding (B, D), the tokens' grid [rows, columns], feature maps where asked for, and the
    class token (B, D) where there is one."""

    tokens: torch.Tensor
    pooled: torch.Tensor
    grid: list[int]
    maps: list[torch.Tensor | None] | None
    class_token: torch.Tensor | None = None


class VisionTower(_Tower):
    """A frozen image encoder.

    Attributes:
        spec (`dict`): the tower spec; `spec["grid_shape"]` is [rows, columns] of the tokens at the processor's size.
        model (`nn.Module`): the library's network.
    """

    @property
    def processor(self) -> AdaptorImageProcessor:
        """Image processor with the input range, size and normalisation the tower was trained with; of a checkpoint's
        tower also with the reading of the checkpoint's training."""
        return processor_of_tower(self.spec)

    def forward(self, pixel_values: torch.Tensor) -> BaseModelOutputWithPooling:
        """Encodes images.

        Args:
            pixel_values: (B, C, H, W) floats as `self.processor` gives them; cast to the tower's dtype.

        Returns:
            `last_hidden_state` (B, N, D): the spatial tokens, row by row, without class or register tokens.
            `pooler_output` (B, D): the image embedding by `spec["pooling"]`, not normalised.
        """
        features = self.features(pixel_values)
        return BaseModelOutputWithPooling(last_hidden_state=features.tokens, pooler_output=features.pooled)

    def features(
        self, pixel_values: torch.Tensor, run: Callable[..., tuple[Any, list]] | None = None
    ) -> VisionFeatures:
        """As `forward`, with the tokens' grid for this input size, and with the maps that `run` gives.

        Args:
            pixel_values: as for `forward`.
            run: runs the network in place of a call, see `run_with_maps` in `pyramids_adaptor`.

        Raises:
            ValueError: the input is no batch of images.
        """
        if pixel_values.ndim != 4:
            raise ValueError(f"pixel_values must be (batch, channels, height, width), got {tuple(pixel_values.shape)}.")
        with self._gradients(pixel_values):
            tokens, prefix, pooled, grid, maps = self._encode(pixel_values, run)
            class_token = self._class_token(prefix)
            pooled = self._pool(tokens, class_token, pooled, self.spec["pooling"])
            return VisionFeatures(tokens, pooled, grid, maps, class_token)

    def _encode(self, pixel_values: torch.Tensor, run: Callable[..., tuple[Any, list]] | None = None):
        """Spatial tokens (B, N, D), prefix tokens (B, P, D), the network's pooled output or None, grid [h, w], maps."""
        pixel_values = pixel_values.to(input_dtype(self.model))
        height, width = pixel_values.shape[-2:]
        library, arguments, maps = self.spec["library"], self._interpolation(height, width), None
        with recorded_outputs(chosen_blocks(self.model, self.spec)) as layers:
            if run is not None:
                output, maps = run(self.model, library, pixel_values, **arguments)
            elif library == "torchxrayvision":
                output = self.model(pixel_values)
            else:
                output = self.model(pixel_values=pixel_values, **arguments)
        if library == "torchxrayvision":
            hidden, pooled = output, None
        else:
            hidden, pooled = output.last_hidden_state, output.pooler_output if "pooler_output" in output else None
        if pooled is None and hidden.ndim == 4 and self.spec.get("layers"):
            pooled = hidden.mean(dim=(2, 3))
        hidden = merged_layers(self.model, self.spec, layers, hidden)
        if hidden.ndim == 4:
            if getattr(getattr(self.model, "timm_model", None), "output_fmt", "NCHW") == "NHWC":
                hidden = hidden.permute(0, 3, 1, 2)
            grid = list(hidden.shape[-2:])
            tokens = hidden.flatten(2).transpose(1, 2)
            prefix = tokens[:, :0]
        else:
            count, grid = self._prefix_and_grid(hidden.shape[1], height, width)
            prefix, tokens = hidden[:, :count], hidden[:, count:]
        return tokens, prefix, None if pooled is None else pooled.flatten(1), grid, maps

    def _interpolation(self, height: int, width: int) -> dict[str, bool]:
        """Asks transformers to interpolate position embeddings where the class has the option and the size differs."""
        size = getattr(self.config, "image_size", None)
        native = (size, size) if isinstance(size, int) else tuple(size or ())
        if self.spec["library"] != "transformers" or native in ((), (height, width)):
            return {}
        return {"interpolate_pos_encoding": True} if self._accepts("interpolate_pos_encoding") else {}

    def _prefix_and_grid(self, length: int, height: int, width: int) -> tuple[int, list[int]]:
        """Number of class and register tokens in front of the grid, from the sequence's length and the patch size."""
        timm_model = getattr(self.model, "timm_model", None)
        if timm_model is not None:
            count = getattr(timm_model, "num_prefix_tokens", 0)
            patch = getattr(getattr(timm_model, "patch_embed", None), "patch_size", None)
        else:
            count, patch = None, getattr(self.config, "patch_size", None)
        if patch is not None:
            patch_height, patch_width = (patch, patch) if isinstance(patch, int) else tuple(patch)
            grid = [height // patch_height, width // patch_width]
            extra = length - grid[0] * grid[1]
            if extra == count or (count is None and 0 <= extra <= 32):
                return extra, grid
            # Hierarchical transformers (Swin) halve the grid, rounding up, after each stage but the last.
            grid = [-(-height // patch_height), -(-width // patch_width)]
            for _ in range(len(getattr(self.config, "depths", None) or [0]) - 1):
                grid = [-(-side // 2) for side in grid]
            if length == grid[0] * grid[1]:
                return 0, grid
        raise ValueError(
            f"tower {tower_name(self.spec)!r} gives {length} tokens for an image of {height}x{width}; "
            f"with patch size {patch} they do not form a grid. Towers that drop or merge tokens are not supported."
        )

    def _class_token(self, prefix: torch.Tensor) -> torch.Tensor | None:
        """(B, D), or None: a network of timm may have register tokens and no class token."""
        timm_model = getattr(self.model, "timm_model", None)
        has_none = timm_model is not None and getattr(timm_model, "cls_token", None) is None
        return None if prefix.shape[1] == 0 or has_none else prefix[:, 0]

    def _pool(self, tokens, class_token, pooled, pooling: str) -> torch.Tensor:
        name = tower_name(self.spec)
        if pooling == "mean":
            return tokens.mean(dim=1)
        if pooling in ("cls", "cls+mean"):
            if class_token is None:
                raise ValueError(f'tower {name!r} has no class token for pooling="{pooling}"; use pooling="mean".')
            return class_token if pooling == "cls" else torch.cat([class_token, tokens.mean(dim=1)], dim=-1)
        # Of a convolutional network with layers the tokens are those of another stage.
        if pooled is None or (pooled.shape[-1] != tokens.shape[-1] and not self.spec.get("layers")):
            raise ValueError(f'tower {name!r} has no pooled output of its tokens\' width; use pooling="mean".')
        return pooled

    def empty_image(self) -> torch.Tensor:
        """Zeros (1, C, H, W) of the processor's size, of the network's dtype and on its device."""
        processor, device = self.processor, next(self.model.parameters()).device
        size = processor.crop_size if processor.do_center_crop else processor.size
        height, width = size.height or size.shortest_edge, size.width or size.shortest_edge
        channels = 1 if processor.do_grayscale else 3
        return torch.zeros(1, channels, height, width, device=device, dtype=input_dtype(self.model))

    @torch.no_grad()
    def _complete_spec(self) -> None:
        """Fills pooling, hidden_size and grid_shape by one pass over an empty image of the processor's size."""
        spec = self.spec
        tokens, prefix, pooled, grid, _ = self._encode(self.empty_image())
        class_token = self._class_token(prefix)
        if spec["pooling"] is None:
            spec["pooling"] = self._default_pooling(class_token is not None)
        pooled = self._pool(tokens, class_token, pooled, spec["pooling"])
        spec |= sizes_in_spec(pooled.shape[-1], tokens.shape[-1]) | {"grid_shape": grid}

    def _default_pooling(self, has_class_token: bool) -> str:
        if self.spec.get("layers"):
            # Of stages the embedding stays the network's own, made of the last one, as MGCA and GLoRIA have it.
            return "pooler" if stages_of(self.model) else "cls" if has_class_token else "mean"
        if self.spec["library"] == "torchxrayvision":
            return "mean"
        if self.spec.get("truncate_layers"):
            return "cls" if has_class_token else "mean"
        timm_model = getattr(self.model, "timm_model", None)
        if timm_model is None:
            trained = has_trained_pooler(self.model)
        else:
            # A vision transformer trained with average or attention pooling has weights behind that pooling.
            trained = hasattr(timm_model, "num_prefix_tokens") and timm_model.global_pool not in ("token", "")
        return "pooler" if trained else "cls" if has_class_token else "mean"


class TextTower(_Tower):
    """A frozen text encoder.

    Attributes:
        spec (`dict`): the tower spec; `spec["max_length"]` is the longest input in tokens.
        model (`nn.Module`): the library's network.
    """

    def __init__(self, model: nn.Module, spec: dict[str, Any], processor=None):
        super().__init__(model, spec)
        self._processor = processor

    @property
    def processor(self):
        """The tokenizer of the tower's checkpoint."""
        if self._processor is None:
            self._processor = load_text_processor(self.spec)
        return self._processor

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        token_type_ids: torch.Tensor | None = None,
        **kwargs,
    ) -> BaseModelOutputWithPooling:
        """Encodes token ids.

        Args:
            input_ids, attention_mask, token_type_ids: (B, L) integers as `self.processor` gives them. Without a mask
                every position counts as text.

        Returns:
            `last_hidden_state` (B, L, D): one vector a position, padding included.
            `pooler_output` (B, D): the text embedding by `spec["pooling"]`, not normalised.

        Raises:
            TypeError: an unknown argument.
        """
        refuse_unknown(self.forward, kwargs)
        inputs = {"input_ids": input_ids, "attention_mask": attention_mask}
        if token_type_ids is not None and self._accepts("token_type_ids"):
            inputs["token_type_ids"] = token_type_ids
        with self._gradients():
            with recorded_outputs(chosen_blocks(self.model, self.spec)) as layers:
                output = self.model(**inputs)
            hidden = merged_layers(self.model, self.spec, layers, output.last_hidden_state)
            if self.spec["pooling"] == "pooler":
                pooled = output.pooler_output
            elif self.spec["pooling"] == "cls":
                pooled = hidden[:, 0]
            else:
                pooled = _masked_mean(hidden, attention_mask)
                if self.spec["pooling"] == "cls+mean":
                    pooled = torch.cat([hidden[:, 0], pooled], dim=-1)
            return BaseModelOutputWithPooling(last_hidden_state=hidden, pooler_output=pooled)


def _masked_mean(hidden: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    if mask is None:
        return hidden.mean(dim=1)
    # In float16 a sum over a long text may overflow.
    wide = hidden.to(torch.promote_types(hidden.dtype, torch.float32))
    weights = mask.to(wide.dtype).unsqueeze(-1)
    return ((wide * weights).sum(dim=1) / weights.sum(dim=1).clamp(min=1)).to(hidden.dtype)


def sizes_in_spec(hidden_size: int, token_size: int) -> dict[str, int]:
    """Fields of a spec for the width of the embeddings, and for that of the tokens where it is another one."""
    return {"hidden_size": hidden_size} | ({} if token_size == hidden_size else {"token_size": token_size})


__all__ = ["TextTower", "VisionFeatures", "VisionTower", "sizes_in_spec"]
