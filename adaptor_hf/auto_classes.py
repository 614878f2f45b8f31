"""The public classes, made known to transformers' Auto classes."""

from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModel,
    AutoModelForImageClassification,
    AutoModelForSemanticSegmentation,
    AutoModelForZeroShotImageClassification,
    AutoProcessor,
)

from .configuration_adaptor import AdaptorConfig
from .heads_adaptor import AdaptorForImageClassification, AdaptorForSemanticSegmentation
from .image_processing_adaptor import AdaptorImageProcessor
from .modeling_adaptor import AdaptorModel, AdaptorOutput, AdaptorPreTrainedModel
from .processing_adaptor import AdaptorProcessor
from .towers import presets as _presets  # noqa: F401  (fills the table of tower names)

AutoConfig.register("adaptor", AdaptorConfig, exist_ok=True)
AutoModel.register(AdaptorConfig, AdaptorModel, exist_ok=True)
AutoModelForImageClassification.register(AdaptorConfig, AdaptorForImageClassification, exist_ok=True)
AutoModelForSemanticSegmentation.register(AdaptorConfig, AdaptorForSemanticSegmentation, exist_ok=True)
AutoModelForZeroShotImageClassification.register(AdaptorConfig, AdaptorModel, exist_ok=True)
AutoImageProcessor.register(
    AdaptorConfig,
    image_processor_classes={"pil": AdaptorImageProcessor, "torchvision": AdaptorImageProcessor},
    exist_ok=True,
)
AutoProcessor.register(AdaptorConfig, AdaptorProcessor, exist_ok=True)

# Saved folders carry the code, so that they load where this package is not installed.
AdaptorConfig.register_for_auto_class()
AdaptorModel.register_for_auto_class("AutoModel")
AdaptorForImageClassification.register_for_auto_class("AutoModelForImageClassification")
AdaptorForSemanticSegmentation.register_for_auto_class("AutoModelForSemanticSegmentation")
AdaptorImageProcessor.register_for_auto_class()
AdaptorProcessor.register_for_auto_class()

__all__ = [
    "AdaptorConfig",
    "AdaptorForImageClassification",
    "AdaptorForSemanticSegmentation",
    "AdaptorImageProcessor",
    "AdaptorModel",
    "AdaptorOutput",
    "AdaptorPreTrainedModel",
    "AdaptorProcessor",
]
