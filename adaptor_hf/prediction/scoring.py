"""From pictures to what is written of them: scores of classes, masks, boxes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from ..image_geometry_adaptor import GEOMETRY, class_map, original_logits
from .models import CLASSIFICATION, DETECTION, ZERO_SHOT, Loaded

DEFAULT_THRESHOLD = 0.5


@dataclass
class Picture:
    """An image that was read: what its processor gives, each tensor without batch, and its size in pixels."""

    row: int
    inputs: dict[str, torch.Tensor]
    height: int
    width: int


@dataclass
class Scored:
    """
    What is predicted of an image.

    Args:
        values (`dict`): As JSON: `scores` of the classes; or `size`, `shares` of pixels and `boxes`.
        mask (`np.ndarray` of shape `(height, width)` and dtype `uint8`, *optional*): Class numbers.
    """

    values: dict[str, Any]
    mask: np.ndarray | None = None


@torch.inference_mode()
def score(loaded: Loaded, pictures: Sequence[Picture], threshold: float | None) -> list[Scored]:
    """
    Predictions of some images, in their order. Those of one size are computed together, and none is padded for
    another's sake: what is predicted of an image does not depend on the others.

    Args:
        threshold (`float`, *optional*): Of masks and boxes.

    Raises:
        ValueError: the model gave NaN or infinity.
    """
    groups: dict[tuple, list[int]] = {}
    for number, picture in enumerate(pictures):
        shape = tuple((name, tuple(value.shape)) for name, value in picture.inputs.items())
        groups.setdefault(shape, []).append(number)
    found: dict[int, Scored] = {}
    for numbers in groups.values():
        together = [pictures[number] for number in numbers]
        batch = {
            name: torch.stack([picture.inputs[name] for picture in together]).to(loaded.model.device)
            for name in together[0].inputs
        }
        for name, value in batch.items():
            if value.is_floating_point():
                batch[name] = value.to(loaded.model.dtype)
        cut = DEFAULT_THRESHOLD if threshold is None else threshold
        found |= dict(zip(numbers, _score_batch(loaded, batch, together, cut), strict=True))
    return [found[number] for number in range(len(pictures))]


def _score_batch(loaded: Loaded, batch: dict, pictures: Sequence[Picture], threshold: float) -> list[Scored]:
    if loaded.kind == ZERO_SHOT:
        return _class_scores(_zero_shot_logits(loaded, batch["pixel_values"]), loaded.scale)
    outputs = loaded.model(**batch)
    if loaded.kind == CLASSIFICATION:
        return _class_scores(outputs.logits.float(), loaded.scale)
    _check_finite(outputs.logits)
    if loaded.kind == DETECTION:
        return _detected(loaded, outputs, pictures, threshold)
    return [
        _segmented(loaded, logits, (picture.height, picture.width), threshold)
        for logits, picture in zip(outputs.logits, pictures, strict=True)
    ]


def _zero_shot_logits(loaded: Loaded, pixel_values: torch.Tensor) -> torch.Tensor:
    model = loaded.model
    cosines = model.get_image_features(pixel_values=pixel_values).pooler_output.float() @ loaded.class_embeds.float()
    if loaded.scale == "cosine":
        return cosines
    logits = model.get_logit_scale().float().exp() * cosines
    return logits if model.logit_bias is None else logits + model.logit_bias.float()


def _class_scores(logits: torch.Tensor, scale: str) -> list[Scored]:
    _check_finite(logits)
    scores = logits.softmax(-1) if scale == "softmax" else logits.sigmoid() if scale == "sigmoid" else logits
    # Nine digits are all that float32 has.
    return [Scored({"scores": [float(f"{value:.9g}") for value in row]}) for row in scores.cpu().tolist()]


def _check_finite(values: torch.Tensor) -> None:
    if not values.isfinite().all():
        raise ValueError(
            f"The model gives NaN or infinity in {str(values.dtype).removeprefix('torch.')}. Use --dtype bfloat16 or "
            "float32, which have a wider range; if it does so in float32 too, its weights are damaged."
        )


def _detected(loaded: Loaded, outputs: Any, pictures: Sequence[Picture], threshold: float) -> list[Scored]:
    sizes = [(picture.height, picture.width) for picture in pictures]
    found = loaded.processor.post_process_object_detection(outputs, threshold=threshold, target_sizes=sizes)
    scored = []
    for picture, one in zip(pictures, found, strict=True):
        boxes = []
        for value, label, (left, top, right, bottom) in zip(
            *(one[name].float().cpu().tolist() for name in ("scores", "labels", "boxes")), strict=True
        ):
            box = [left, top, right - left, bottom - top]
            boxes.append(_box(int(label), value, box, box[2] * box[3]))
        scored.append(Scored({"size": [picture.height, picture.width], "boxes": boxes}))
    return scored


def _segmented(loaded: Loaded, logits: torch.Tensor, size: tuple[int, int], threshold: float) -> Scored:
    geometry = {name: getattr(loaded.processor, name) for name in GEOMETRY}
    logits, seen = original_logits(logits, size, geometry)
    classes = (class_map(logits, threshold) * seen).to(torch.uint8).cpu().numpy()
    one = len(logits) == 1
    probabilities = (logits.sigmoid() if one else logits.softmax(0)).cpu().numpy()
    boxes, shares = [], []
    for number in loaded.names:
        inside = classes == number
        shares.append(float(f"{inside.mean():.9g}"))
        # Class 0 is the background.
        if number and inside.any():
            boxes += _components(inside, probabilities[0 if one else number], number)
    return Scored({"size": list(size), "shares": shares, "boxes": boxes}, classes)


def _components(inside: np.ndarray, probabilities: np.ndarray, number: int) -> list[dict[str, Any]]:
    """The connected parts of a class, pixels that touch at a corner among them; a score is the mean probability."""
    from scipy import ndimage

    labels, count = ndimage.label(inside, structure=np.ones((3, 3), dtype=int))
    numbers = np.arange(1, count + 1)
    areas = ndimage.sum_labels(inside, labels, numbers)
    scores = ndimage.mean(probabilities, labels, numbers)
    boxes = []
    for (rows, columns), area, value in zip(ndimage.find_objects(labels), areas, scores, strict=True):
        box = [columns.start, rows.start, columns.stop - columns.start, rows.stop - rows.start]
        boxes.append(_box(number, float(value), box, int(area)))
    return boxes


def _box(number: int, value: float, box: list[float], area: float) -> dict[str, Any]:
    return {"category_id": number, "score": float(f"{value:.9g}"), "bbox": box, "area": area}


__all__ = ["DEFAULT_THRESHOLD", "Picture", "Scored", "score"]
