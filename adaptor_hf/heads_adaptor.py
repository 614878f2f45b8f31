"""All heads under one name. A saved folder carries the file of its own head, not this one."""

from .classification_head_adaptor import (
    IGNORED_LABEL,
    AdaptorForImageClassification,
    ClassificationHead,
    classification_loss,
)
from .head_base_adaptor import AdaptorHead
from .pyramids_adaptor import find_skip_channels
from .segmentation_head_adaptor import IGNORED_PIXEL, RESNET_AE_SKIPS, AdaptorForSemanticSegmentation

__all__ = [
    "IGNORED_LABEL",
    "IGNORED_PIXEL",
    "RESNET_AE_SKIPS",
    "AdaptorForImageClassification",
    "AdaptorForSemanticSegmentation",
    "AdaptorHead",
    "ClassificationHead",
    "classification_loss",
    "find_skip_channels",
]
