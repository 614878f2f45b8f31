"""Heads on a frozen Adaptor: image classification and semantic segmentation.

Towers and Adaptor are frozen and stay in evaluation mode under `model.train()`: no dropout, no drift of batch
statistics. To train them too, ask for gradients: `model.adaptor.requires_grad_(True)`.

This file is flat on purpose: it is copied beside a checkpoint as remote code.
"""

import copy
import math
import os

import torch
from torch import nn
from transformers import initialization as init
from transformers.modeling_outputs import ImageClassifierOutput, SemanticSegmenterOutput
from transformers.utils import can_return_tuple

from .configuration_adaptor import AdaptorConfig
from .decoders_adaptor import TokenDecoder, UNetDecoder
from .modeling_adaptor import AdaptorModel
from .pretrained_adaptor import TOWER_NAMES, AdaptorPreTrainedModel
from .segmentation_loss_adaptor import mixed_loss
from .towers_adaptor import VisionTower, load_vision_tower

IGNORED_LABEL = -100
IGNORED_PIXEL = 255
RESNET_AE_SKIPS = [64, 256, 512, 1024]


class AdaptorHead(AdaptorPreTrainedModel):
    """What both heads share: a frozen [`AdaptorModel`] named `adaptor`, and where a head comes from."""

    _tower_names = ("vision_model",)

    @classmethod
    def from_adaptor(cls, adaptor: AdaptorModel, **config_kwargs) -> "AdaptorHead":
        """
        A new head on a model in memory. The Adaptor is shared, not copied, and frozen.

        Args:
            adaptor (`AdaptorModel`): Trained or not.
            config_kwargs: Fields of [`AdaptorConfig`] to change, such as `num_labels`.
        """
        config = copy.deepcopy(adaptor.config)
        in_checkpoint, config.towers_in_checkpoint = config.towers_in_checkpoint, False
        labels = {name: config_kwargs.pop(name) for name in ("num_labels", "id2label") if name in config_kwargs}
        # The labels of the model below are not those of the new head.
        fields = {**config.to_dict(), **config_kwargs}
        for name in ("id2label", "label2id", "num_labels"):
            if labels:
                fields.pop(name, None)
        model = cls(AdaptorConfig(**fields, **labels))
        model.adaptor = adaptor
        model.config.towers_in_checkpoint = in_checkpoint
        model.freeze_adaptor()
        return model

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | os.PathLike, *model_args, **kwargs):
        """
        Load a head, or a pre-trained [`AdaptorModel`] with a new head on it. The text tower is not loaded.

        Args and errors are those of [`AdaptorModel.from_pretrained`]. Towers and Adaptor come back frozen.
        """
        loaded = super().from_pretrained(pretrained_model_name_or_path, *model_args, **kwargs)
        (loaded[0] if isinstance(loaded, tuple) else loaded).freeze_adaptor()
        return loaded

    def freeze_adaptor(self) -> None:
        """Towers and Adaptor get no gradients, and are in evaluation mode from now on."""
        self.adaptor.requires_grad_(False)
        self.train(self.training)

    def train(self, mode: bool = True):
        super().train(mode)
        towers = tuple(f"{name}." for name in TOWER_NAMES)
        names = [name for name, parameter in self.adaptor.named_parameters() if parameter.requires_grad]
        # Low-rank weights in a tower train without the Adaptor's dropout.
        if all(name.startswith(towers) for name in names):
            self.adaptor.eval()
        return self

    @property
    def feature_size(self) -> int:
        """Width of what the head reads: that of the Adaptor, or that of the tower (`config.feature_source`)."""
        return self.config.hidden_size if self._reads_adaptor else self.config.vision_hidden_size

    @property
    def _reads_adaptor(self) -> bool:
        return self.config.feature_source == "adaptor"

    def _vision_tower(self) -> VisionTower:
        if self.adaptor.vision_model is None:
            raise ValueError(self.adaptor._no_tower_message("vision", "pixel_values", "image_embeds"))
        return self.adaptor.vision_model

    def _check_inputs(self, pixel_values: torch.Tensor | None, image_embeds: torch.Tensor | None) -> None:
        if (pixel_values is None) == (image_embeds is None):
            raise ValueError("Give either pixel_values or image_embeds.")
        width = self.config.vision_hidden_size
        if image_embeds is not None and (image_embeds.ndim not in (2, 3) or image_embeds.shape[-1] != width):
            raise ValueError(
                f"image_embeds must be of shape (batch, {width}) or (batch, tokens, {width}), got "
                f"{tuple(image_embeds.shape)}."
            )


class ClassificationHead(nn.Sequential):
    """
    Dropout and a linear layer, or the paper's two layers ("SSLEvaluator" of the reference): Dropout, Linear without
    bias, BatchNorm1d, ReLU, Dropout, Linear. From 768 over 512 to 1 that is 394,753 parameters, to 3 395,779.

    Args:
        in_features (`int`): Width of the features `(B, in_features)`.
        num_logits (`int`): Width of the output `(B, num_logits)`.
        hidden_size (`int`, *optional*): Width of the hidden layer; `None` for a linear head.
        dropout (`float`, defaults to 0.1): Probability before each linear layer.
    """

    def __init__(self, in_features: int, num_logits: int, hidden_size: int | None = None, dropout: float = 0.1):
        layers: list[nn.Module] = []
        if hidden_size is not None:
            hidden = nn.Linear(in_features, hidden_size, bias=False)
            layers = [nn.Dropout(dropout), hidden, nn.BatchNorm1d(hidden_size), nn.ReLU()]
        super().__init__(*layers, nn.Dropout(dropout), nn.Linear(hidden_size or in_features, num_logits))


def classification_loss(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """
    Cross-entropy for class numbers, binary cross-entropy for labels of each class.

    Args:
        logits (`torch.Tensor` of shape `(B, C)`): Scores; with C = 1, of the positive class.
        labels (`torch.Tensor`): For C > 1 integers `(B,)`, or floats `(B, C)` of 0, 1 and what lies between. For C = 1
            integers or floats `(B,)` or `(B, 1)`. NaN and -100 are unknown and do not count.

    Returns:
        `torch.Tensor`: Mean over the known labels, a scalar; 0 if none is known.

    Raises:
        ValueError: for labels of another shape, or values that are no labels.
    """
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    batch, num_logits = logits.shape
    if num_logits == 1 and labels.ndim == 1:
        labels = labels[:, None]
    expected = f"({batch}, {num_logits})" if num_logits == 1 or labels.ndim > 1 else f"({batch},)"
    if labels.shape not in ((batch,), (batch, num_logits)):
        raise ValueError(f"Labels must be of shape {expected}, got {tuple(labels.shape)}.")
    known = (labels != IGNORED_LABEL) & ~labels.isnan()
    limit = num_logits - 1 if labels.ndim == 1 else 1
    if ((labels < 0) | (labels > limit))[known].any():
        wrong = labels[known & ((labels < 0) | (labels > limit))][0].item()
        raise ValueError(
            f"A label is {wrong:g}, expected 0 to {limit}, or NaN or {IGNORED_LABEL} for unknown. Uncertain labels "
            "(-1) need a policy first: make them 0, 1 or NaN."
        )
    if labels.ndim == 1:
        if labels.is_floating_point():
            raise ValueError(f"Class numbers must be integers, got {labels.dtype}.")
        losses = nn.functional.cross_entropy(logits, labels.long(), ignore_index=IGNORED_LABEL, reduction="sum")
    else:
        targets = torch.where(known, labels, torch.zeros_like(labels)).to(logits.dtype)
        losses = nn.functional.binary_cross_entropy_with_logits(
            logits, targets, weight=known.to(logits), reduction="sum"
        )
    return losses / known.sum().clamp(min=1)


class AdaptorForImageClassification(AdaptorHead):
    """
    A classifier on the frozen image embedding.

    `config.problem_type` is as everywhere in transformers, without `"regression"`. Two classes that exclude each other
    (`num_labels=2`, the default) have one trained logit z with binary cross-entropy; `logits` are `(B, 2)`, zero and z,
    so that softmax, argmax and pipelines give what sigmoid and 0.5 give. With `num_labels=1`, `logits` are `(B, 1)`.

    Example:

    ```python
    >>> from adaptor_hf import AdaptorForImageClassification

    >>> model = AdaptorForImageClassification.from_pretrained("my-adaptor", num_labels=3, classifier_hidden_size=512)
    ```
    """

    def __init__(self, config: AdaptorConfig):
        super().__init__(config)
        if config.problem_type == "regression":
            raise ValueError(
                'AdaptorForImageClassification has no regression. Give problem_type="single_label_classification" or '
                '"multi_label_classification", or none.'
            )
        self.adaptor = AdaptorModel(config)
        self.is_binary = config.num_labels == 2 and config.problem_type != "multi_label_classification"
        num_logits = 1 if self.is_binary else config.num_labels
        self.classifier = ClassificationHead(
            self.feature_size, num_logits, config.classifier_hidden_size, config.classifier_dropout
        )
        self.post_init()
        self.freeze_adaptor()

    def get_head_features(
        self, pixel_values: torch.Tensor | None = None, image_embeds: torch.Tensor | None = None
    ) -> torch.Tensor:
        """
        What the classifier reads.

        Args:
            pixel_values (`torch.Tensor` of shape `(B, C, H, W)`, *optional*): Input of the vision tower.
            image_embeds (`torch.Tensor` of shape `(B, D)` or `(B, N, D)`, *optional*): Embeddings of that tower.

        Returns:
            `torch.Tensor` of shape `(B, feature_size)`: From the Adaptor, L2-normalised; from the tower, as they are.
        """
        self._check_inputs(pixel_values, image_embeds)
        if self._reads_adaptor:
            return self.adaptor(pixel_values=pixel_values, image_embeds=image_embeds).image_embeds
        if pixel_values is not None:
            return self._vision_tower()(pixel_values).pooler_output
        return image_embeds if image_embeds.ndim == 2 else image_embeds[:, 0]

    @can_return_tuple
    def forward(
        self,
        pixel_values: torch.Tensor | None = None,
        image_embeds: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        **kwargs,
    ) -> tuple | ImageClassifierOutput:
        """
        Args:
            pixel_values (`torch.Tensor` of shape `(B, C, H, W)`, *optional*): Input of the vision tower.
            image_embeds (`torch.Tensor` of shape `(B, D)` or `(B, N, D)`, *optional*): Embeddings of that tower.
            labels (`torch.Tensor`, *optional*): Class numbers `(B,)`, or `(B, num_labels)` floats with
                `problem_type="multi_label_classification"`. NaN and -100 are unknown and do not count.

        Returns:
            `ImageClassifierOutput`: `loss` and `logits` `(B, num_labels)`.

        Raises:
            ValueError: for missing or contradicting inputs, or labels that do not fit.
        """
        features = self.get_head_features(pixel_values, image_embeds)
        logits = self.classifier(features.to(next(self.classifier.parameters()).dtype))
        loss = None
        if labels is not None:
            self._check_label_kind(labels)
            loss = classification_loss(logits, labels)
        if self.is_binary:
            logits = torch.cat([torch.zeros_like(logits), logits], dim=1)
        return ImageClassifierOutput(loss=loss, logits=logits)

    def _check_label_kind(self, labels: torch.Tensor) -> None:
        kind, count = self.config.problem_type, self.config.num_labels
        several = labels.ndim == 2 and labels.shape[1] > 1
        if (self.is_binary or kind == "single_label_classification") and several:
            raise ValueError(
                f"Labels of shape {tuple(labels.shape)} say that an image may have several of the {count} classes. "
                'Build the model with problem_type="multi_label_classification".'
            )
        if kind == "multi_label_classification" and count > 1 and not several:
            raise ValueError(f"Multi-label labels must be of shape (batch, {count}), got {tuple(labels.shape)}.")


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
        config = kwargs.get("config") or AdaptorConfig.from_pretrained(pretrained_model_name_or_path, **hub)
        options = {"segmentation_decoder": config.segmentation_decoder, "skip_channels": config.skip_channels}
        options |= {name: kwargs[name] for name in options if name in kwargs}
        named = config.vision_tower is not None and config.vision_tower["library"] != "external"
        if options == {"segmentation_decoder": "tokens", "skip_channels": None} or options["skip_channels"] is not None:
            named = False
        if named and kwargs.get("load_towers", True):
            tower = kwargs.get("vision_model")
            if tower is None and config.towers_in_checkpoint:
                tower = AdaptorModel.from_pretrained(pretrained_model_name_or_path, **hub).vision_model
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
        """
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
        features = self._vision_tower().features(pixel_values, with_maps=is_unet)
        size = tuple(pixel_values.shape[-2:])
        if not is_unet:
            sequence = torch.cat([features.pooled[:, None], features.tokens], dim=1)
            return self._decode_tokens(sequence, tuple(features.grid), size)
        found = [0 if feature_map is None else feature_map.shape[1] for feature_map in features.maps]
        if found != self.config.skip_channels:
            raise ValueError(
                f"For images of {size[0]} x {size[1]} the tower gives maps of {found} channels, the decoder takes "
                f"{self.config.skip_channels}. Use larger images, or the tower that the decoder was built for."
            )
        embedding = features.pooled
        if self._reads_adaptor:
            embedding = self.adaptor(image_embeds=embedding).image_embeds
        return self.decoder(embedding.to(next(self.decoder.parameters()).dtype), features.maps, size)

    def _decode_tokens(self, sequence: torch.Tensor, grid: tuple[int, int], size: tuple[int, int]) -> torch.Tensor:
        if self._reads_adaptor:
            sequence = self.adaptor(image_embeds=sequence).image_last_hidden_state
        return self.decoder(sequence[:, 1:].to(next(self.decoder.parameters()).dtype), grid, size)

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
                f"a grid of tokens, got {tuple(image_embeds.shape)}. Build the cache with tokens."
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


@torch.no_grad()
def find_skip_channels(tower: VisionTower) -> list[int] | None:
    """
    Channels of a tower's feature maps at strides 2, 4, 8 and 16, 0 where there is none; one pass over an empty image.

    Returns:
        `list[int]` of four, or `None` if the tower has no maps finer than its tokens (a plain vision transformer).
    """
    processor = tower.processor
    size = processor.crop_size if processor.do_center_crop else processor.size
    height, width = size.height or size.shortest_edge, size.width or size.shortest_edge
    parameter = next(tower.model.parameters())
    shape = (1, 1 if processor.do_grayscale else 3, height, width)
    image = torch.zeros(shape, device=parameter.device, dtype=parameter.dtype)
    try:
        maps = tower.features(image, with_maps=True).maps
    except ValueError:
        return None
    return [0 if m is None else m.shape[1] for m in maps] if any(m is not None for m in maps) else None


__all__ = [
    "AdaptorForImageClassification",
    "AdaptorForSemanticSegmentation",
    "AdaptorHead",
    "ClassificationHead",
    "classification_loss",
    "find_skip_channels",
]
