"""transformers' image pipelines for files that Pillow does not read as the model's training did: 16-bit and DICOM.

`pipeline("image-classification", model=folder, pipeline_class=AdaptorImageClassificationPipeline)` and its like.
"""

import os

from transformers import (
    ImageClassificationPipeline,
    ImageFeatureExtractionPipeline,
    ImageSegmentationPipeline,
    ZeroShotImageClassificationPipeline,
)

from .image_processing_adaptor import READING
from .image_values_adaptor import open_images


class _ReadAsTrained:
    """Paths, members of archives and URLs are read by the model's image processor; the base class would have Pillow
    convert them to RGB, which clips 16-bit files and does not know DICOM."""

    def preprocess(self, image, *args, **kwargs):
        if isinstance(image, str | os.PathLike):
            image = open_images(image, **{name: getattr(self.image_processor, name) for name in READING})
        return super().preprocess(image, *args, **kwargs)


class AdaptorImageClassificationPipeline(_ReadAsTrained, ImageClassificationPipeline):
    """`image-classification`, files read as in training."""


class AdaptorZeroShotImageClassificationPipeline(_ReadAsTrained, ZeroShotImageClassificationPipeline):
    """
    `zero-shot-image-classification`, files read as in training. The scores of a model with `logit_bias` are
    probabilities of each label alone (sigmoid); transformers' own pipeline shares 1 out between the labels (softmax).
    """

    def postprocess(self, model_outputs):
        if self.model.config.logit_bias_init_value is None:
            return super().postprocess(model_outputs)
        scores = model_outputs["logits"][0].sigmoid().tolist()
        found = zip(scores, model_outputs["candidate_labels"], strict=True)
        return [{"score": score, "label": label} for score, label in sorted(found, key=lambda item: -item[0])]


class AdaptorImageSegmentationPipeline(_ReadAsTrained, ImageSegmentationPipeline):
    """`image-segmentation`, files read as in training."""


class AdaptorImageFeatureExtractionPipeline(_ReadAsTrained, ImageFeatureExtractionPipeline):
    """`image-feature-extraction`, files read as in training."""


__all__ = [
    "AdaptorImageClassificationPipeline",
    "AdaptorImageFeatureExtractionPipeline",
    "AdaptorImageSegmentationPipeline",
    "AdaptorZeroShotImageClassificationPipeline",
]
