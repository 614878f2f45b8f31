"""Semantic segmentation on a frozen tower and Adaptor.

This file is flat on purpose: it is copied beside a checkpoint as remote code.
"""

import copy
import math
import os

import torch
from torch import nn
from transformers import initialization as init
from transformers.modeling_outputs import SemanticSegmenterOutput
from transformers.utils import can_return_tuple

from .arguments_adaptor import refuse_unknown
from .configuration_adaptor import AdaptorConfig
from .decoders_adaptor import TokenDecoder, UNetDecoder
from .head_base_adaptor import AdaptorHead
from .modeling_adaptor import AdaptorModel
from .precision_adaptor import input_dtype
from .pyramids_adaptor import features_with_maps, find_skip_channels
from .segmentation_loss_adaptor import mixed_loss
from .token_sequences_adaptor import token_sequence
from .towers_adaptor import load_vision_tower

IGNORED_PIXEL = 255
RESNET_AE_SKIPS = [64, 256, 512, 1024]


class AdaptorForSemanticSegmentation(AdaptorHead):
    """
    A segmentation decoder on the frozen tower and Adaptor: up-sampling of the Adaptor's patch tokens (`"tokens"`), or a
    U-Net from the Adaptor's image embedding with the tower's feature maps as skips (`"unet"`).

    One class against the background (`num_labels` of 1 or 2) has one logit and [`mixed_loss`]; more classes have
    cross-entropy that leaves out pixels of value 255.

    Example:

    ```python
    >>> from adaptor_hf import AdaptorForSemanticSegmentation

    >>> model = AdaptorForSemanticSegmentation.from_pretrained("my-adaptor", id2label={0: "background", 1: "lung"})
    ```
    """

    def __init__(self, config: AdaptorConfig):
        super().__init__(config)
        self._resolve(config)
        self.adaptor = AdaptorModel(config)
        num_logits = 1 if config.num_labels == 2 else config.num_labels
        if config.segmentation_decoder == "unet":
            doublings = max(0, math.floor(math.log2(config.image_size / 224)))
            self.decoder = UNetDecoder(self.feature_size, config.skip_channels, num_logits, doublings)
        else:
            self.decoder = TokenDecoder(self.feature_size, num_logits)
        self.post_init()
        self.freeze_adaptor()

    @staticmethod
    def _resolve(config: AdaptorConfig) -> None:
        """Writes what was left open into the config, so that a checkpoint holds it."""
        tower = config.vision_tower or {}
        if config.skip_channels is None and tower.get("library") == "torchxrayvision":
            config.skip_channels = list(RESNET_AE_SKIPS)
        if config.segmentation_decoder is None:
            config.segmentation_decoder = "unet" if config.skip_channels and any(config.skip_channels) else "tokens"
        if config.segmentation_decoder == "unet" and not (config.skip_channels and any(config.skip_channels)):
            raise ValueError(
                'segmentation_decoder="unet" needs feature maps of the tower: a convolutional or hierarchical one. '
                'Load it with the model, give skip_channels, or take segmentation_decoder="tokens".'
            )
        if config.segmentation_decoder == "tokens" and tower.get("token_size"):
            raise ValueError(
                f"tower {tower['name_or_path']!r} gives tokens of width {tower['token_size']} and, by its pooling "
                f"{tower['pooling']!r}, embeddings of width {config.vision_hidden_size}: the token decoder reads both "
                'through one projection. Load the tower with pooling="cls" or "mean", and train an Adaptor on that.'
            )
        if config.image_size is None:
            processing = tower.get("image_processor") or {}
            size = processing.get("crop_size") if processing.get("do_center_crop", True) else processing.get("size")
            config.image_size = (size or {}).get("height") or (size or {}).get("shortest_edge") or 224
        if config.num_labels == 1:
            # The map has two values, and pipelines name both.
            config.id2label = {0: "background", 1: config.id2label[0]}
            config.label2id = {name: number for number, name in config.id2label.items()}

    @classmethod
    def from_adaptor(cls, adaptor: AdaptorModel, **config_kwargs) -> "AdaptorForSemanticSegmentation":
        decoder = config_kwargs.get("segmentation_decoder", adaptor.config.segmentation_decoder)
        skips = config_kwargs.get("skip_channels", adaptor.config.skip_channels)
        if decoder != "tokens" and skips is None and adaptor.vision_model is not None:
            config_kwargs["skip_channels"] = find_skip_channels(adaptor.vision_model)
        return super().from_adaptor(adaptor, **config_kwargs)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | os.PathLike, *model_args, **kwargs):
        """As for every head. Which decoder fits, and its skips, are found from the tower unless `load_towers=False`."""
        names = ("local_files_only", "cache_dir", "token", "revision", "trust_remote_code")
        hub = {name: kwargs[name] for name in names if kwargs.get(name) is not None}
        base = cls._base_of_adapter(pretrained_model_name_or_path)
        config = kwargs.get("config") or AdaptorConfig.from_pretrained(base, **hub)
        options = {"segmentation_decoder": config.segmentation_decoder, "skip_channels": config.skip_channels}
        options |= {name: kwargs[name] for name in options if name in kwargs}
        named = config.vision_tower is not None and config.vision_tower["library"] != "external"
        if options == {"segmentation_decoder": "tokens", "skip_channels": None} or options["skip_channels"] is not None:
            named = False
        if named and kwargs.get("load_towers", True):
            tower = kwargs.get("vision_model")
            if tower is None and config.towers_in_checkpoint:
                tower = AdaptorModel.from_pretrained(base, **hub).vision_model
            elif tower is None:
                hub.pop("revision", None)
                tower = load_vision_tower(config.vision_tower, **hub)
            kwargs["vision_model"] = tower
            if "config" in kwargs:
                kwargs["config"] = copy.deepcopy(config)
                kwargs["config"].skip_channels = find_skip_channels(tower)
            else:
                kwargs["skip_channels"] = find_skip_channels(tower)
        return super().from_pretrained(pretrained_model_name_or_path, *model_args, **kwargs)

    @torch.no_grad()
    def _init_weights(self, module: nn.Module):
        """The reference's: He's by fan-out for convolutions, torch's defaults elsewhere."""
        if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d)):
            if isinstance(module, nn.Conv2d):
                init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            else:
                init.kaiming_uniform_(module.weight, a=math.sqrt(5))
            if module.bias is not None:
                bound = 1 / math.sqrt(module.weight[0].numel())
                init.uniform_(module.bias, -bound, bound)
        else:
            super()._init_weights(module)

    @can_return_tuple
    def forward(
        self,
        pixel_values: torch.Tensor | None = None,
        image_embeds: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        **kwargs,
    ) -> tuple | SemanticSegmenterOutput:
        """
        Args:
            pixel_values (`torch.Tensor` of shape `(B, C, H, W)`, *optional*): Input of the vision tower.
            image_embeds (`torch.Tensor` of shape `(B, 1 + N, D)`, *optional*): Embeddings of that tower, the pooled one
                and then the tokens row by row. Not for the U-Net, whose skips need pixels.
            labels (`torch.Tensor` of shape `(B, H, W)` or `(B, 1, H, W)`, *optional*): Class numbers, or 0 and 1 for
                one class; of the size of `pixel_values`. [`AdaptorImageProcessor`] makes them from masks.

        Returns:
            `SemanticSegmenterOutput`: `loss`, and `logits` `(B, num_labels, H, W)`, or `(B, 1, H, W)` for one class, of
            the size of `pixel_values`; with `image_embeds`, of the labels, or of `config.image_size`.

        Raises:
            ValueError: for missing or contradicting inputs, or labels that do not fit.
            TypeError: for an unknown argument.
        """
        refuse_unknown(self.forward, kwargs)
        self._check_inputs(pixel_values, image_embeds)
        if pixel_values is not None:
            logits = self._decode_pixels(pixel_values)
        else:
            size = (self.config.image_size,) * 2 if labels is None else tuple(labels.shape[-2:])
            logits = self._decode_tokens(image_embeds, self._grid(image_embeds), size)
        loss = None if labels is None else self._loss(logits, labels)
        return SemanticSegmenterOutput(loss=loss, logits=logits)

    def _decode_pixels(self, pixel_values: torch.Tensor) -> torch.Tensor:
        is_unet = self.config.segmentation_decoder == "unet"
        tower = self._vision_tower()
        features = features_with_maps(tower, pixel_values) if is_unet else tower.features(pixel_values)
        size = tuple(pixel_values.shape[-2:])
        if not is_unet:
            sequence = token_sequence(features.pooled, features.tokens)
            return self._decode_tokens(sequence, tuple(features.grid), size)
        found = [0 if feature_map is None else feature_map.shape[1] for feature_map in features.maps]
        if found != self.config.skip_channels:
            raise ValueError(
                f"For images of {size[0]} x {size[1]} the tower gives maps of {found} channels, the decoder takes "
                f"{self.config.skip_channels}. Use larger images, or the tower that the decoder was built for."
            )
        embedding = features.pooled
        if self._reads_adaptor:
            if self.config.attention_pooling_heads is not None:
                embedding = token_sequence(embedding, features.tokens)
            embedding = self.adaptor(image_embeds=embedding).image_embeds
        return self.decoder(embedding.to(input_dtype(self.decoder, self.dtype)), features.maps, size)

    def _decode_tokens(self, sequence: torch.Tensor, grid: tuple[int, int], size: tuple[int, int]) -> torch.Tensor:
        if self._reads_adaptor:
            sequence = self.adaptor(image_embeds=sequence).image_last_hidden_state
        return self.decoder(sequence[:, 1:].to(input_dtype(self.decoder, self.dtype)), grid, size)

    def _grid(self, image_embeds: torch.Tensor) -> tuple[int, int]:
        """Rows and columns of cached tokens: the tower's grid, or a square at another size."""
        if self.config.segmentation_decoder == "unet":
            raise ValueError("The U-Net takes feature maps of the tower as skips: give pixel_values, not image_embeds.")
        count = image_embeds.shape[1] - 1 if image_embeds.ndim == 3 else 0
        known = (self.config.vision_tower or {}).get("grid_shape")
        if known is not None and known[0] * known[1] == count:
            return tuple(known)
        side = math.isqrt(count)
        if count < 1 or side * side != count:
            raise ValueError(
                f"image_embeds must be (batch, 1 + rows * columns, {image_embeds.shape[-1]}), the pooled embedding and "
                f"a grid of tokens, got {tuple(image_embeds.shape)}. Build the cache with "
                "`python -m adaptor_hf.embeddings build --image_tokens all`."
            )
        return side, side

    def _loss(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        if labels.ndim == 4 and labels.shape[1] == 1:
            labels = labels[:, 0]
        if labels.shape != logits[:, 0].shape:
            raise ValueError(
                f"Labels must be of shape {tuple(logits[:, 0].shape)}, the size of the images, got "
                f"{tuple(labels.shape)}. Process image and mask together: "
                "AdaptorImageProcessor(...)(images, segmentation_maps=masks)."
            )
        if logits.shape[1] == 1:
            return mixed_loss(logits[:, 0], labels)
        counted = labels != IGNORED_PIXEL
        if labels.is_floating_point() or ((labels < 0) | (labels >= logits.shape[1]))[counted].any():
            raise ValueError(
                f"Labels must be integers from 0 to {logits.shape[1] - 1}, or {IGNORED_PIXEL} for pixels that do not "
                f"count, got {labels.dtype} from {labels.min().item():g} to {labels.max().item():g}."
            )
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        losses = nn.functional.cross_entropy(logits, labels.long(), ignore_index=IGNORED_PIXEL, reduction="sum")
        return losses / counted.sum().clamp(min=1)


__all__ = ["AdaptorForSemanticSegmentation"]
