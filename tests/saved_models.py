"""Small saved models of every kind that predicts, untrained, on the tiny towers."""

from pathlib import Path

import torch

from adaptor_hf import AdaptorForImageClassification, AdaptorForSemanticSegmentation, AdaptorModel
from adaptor_hf.image_processing_adaptor import processor_of_tower


def save_head(kind: str, checkpoint: Path, folder: Path, **config) -> Path:
    """A head on the Adaptor of a checkpoint: `classification` or `segmentation`."""
    cls = {"classification": AdaptorForImageClassification, "segmentation": AdaptorForSemanticSegmentation}[kind]
    torch.manual_seed(0)
    model = cls.from_pretrained(checkpoint, **config).eval()
    with torch.no_grad():
        # Of an untrained head all scores are nearly the same.
        if kind == "classification":
            model.classifier[-1].weight.mul_(8)
        else:
            model.decoder.output.weight.mul_(2)
            logits = model(pixel_values=torch.randn(4, 3, 28, 28)).logits
            model.decoder.output.bias -= logits.transpose(0, 1).flatten(1).median(dim=1).values
    model.save_pretrained(folder)
    processor_of_tower(model.config.vision_tower | {"image_mode": "L"}).save_pretrained(folder)
    return folder


def save_zero_shot(checkpoint: Path, folder: Path) -> Path:
    """The checkpoint's model with its image processor and tokenizer, as a run leaves it."""
    from adaptor_hf import AdaptorProcessor

    model = AdaptorModel.from_pretrained(checkpoint)
    model.save_pretrained(folder)
    image_processor = processor_of_tower(model.config.vision_tower | {"image_mode": "L"})
    AdaptorProcessor(image_processor, model.text_model.processor).save_pretrained(folder)
    return folder


def save_yolos(folder: Path) -> Path:
    """A tiny random detector of transformers, whose boxes are many and unsure."""
    from transformers import YolosConfig, YolosForObjectDetection, YolosImageProcessor

    torch.manual_seed(1)
    config = YolosConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64, image_size=[64, 64],
        patch_size=16, num_detection_tokens=5, id2label={0: "nodule", 1: "effusion"}, initializer_range=0.3,
    )  # fmt: skip
    model = YolosForObjectDetection(config)
    with torch.no_grad():
        model.vit.embeddings.detection_tokens.normal_()
    model.save_pretrained(folder)
    YolosImageProcessor(size={"shortest_edge": 64, "longest_edge": 96}).save_pretrained(folder)
    return folder
