"""Image classification on a frozen Adaptor.

This file is flat on purpose: it is copied beside a checkpoint as remote code.
"""

import torch
from torch import nn
from transformers.modeling_outputs import ImageClassifierOutput
from transformers.utils import can_return_tuple

from .arguments_adaptor import refuse_unknown
from .configuration_adaptor import AdaptorConfig
from .head_base_adaptor import AdaptorHead
from .modeling_adaptor import AdaptorModel
from .precision_adaptor import input_dtype

IGNORED_LABEL = -100


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
            TypeError: for an unknown argument.
        """
        refuse_unknown(self.forward, kwargs)
        features = self.get_head_features(pixel_values, image_embeds)
        logits = self.classifier(features.to(input_dtype(self.classifier, self.dtype)))
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


__all__ = ["AdaptorForImageClassification", "ClassificationHead", "classification_loss"]
