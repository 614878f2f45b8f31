"""The two swapped loss weights; what a repeated report costs a perfect model; what negatives per GPU leave out."""

import math

import torch
from torch import nn

from adaptor_hf.objectives import contrastive_loss


def swapped_weights() -> dict[str, float]:
    image, text = nn.functional.normalize(torch.randn(2, 6, 10), dim=-1)
    logits_per_text, targets = 10 * text @ image.T, torch.arange(6)
    # dim=1 of a text-major matrix is a softmax over images; the reference calls it image_loss and gives it 0.75.
    over_images = nn.functional.cross_entropy(logits_per_text, targets)
    over_texts = nn.functional.cross_entropy(logits_per_text.T, targets)
    scale = math.log(10)
    return {
        "reference code": (0.25 * over_texts + 0.75 * over_images).item(),
        "ours, image_to_text_weight=0.25": contrastive_loss(image, text, scale, 0.25).item(),
        "paper, equation (4)": (0.75 * over_texts + 0.25 * over_images).item(),
        "ours, default": contrastive_loss(image, text, scale).item(),
    }


def repeated_reports() -> dict[str, float]:
    # A perfect model: every pair has one direction of its own, but rows 0 and 1 carry the same report.
    rows = torch.eye(8)[[0, 0, 2, 3, 4, 5, 6, 7]]
    ids = torch.tensor([0, 0, 2, 3, 4, 5, 6, 7])
    return {
        "perfect model, pair": contrastive_loss(rows, rows, math.log(100)).item(),
        "perfect model, text": contrastive_loss(rows, rows, math.log(100), positives=ids).item(),
    }


def negatives_on_two_gpus() -> dict[str, float]:
    image, text = torch.randn(2, 2048, 64)
    halves = [contrastive_loss(i, t, 0.0) for i, t in zip(image.chunk(2), text.chunk(2), strict=True)]
    return {
        "2 x 1024 without gathering": torch.stack(halves).mean().item(),
        "2048 with all negatives": contrastive_loss(image, text, 0.0).item(),
    }


def main() -> dict[str, float]:
    torch.manual_seed(0)
    results = swapped_weights() | repeated_reports() | negatives_on_two_gpus()
    for name, value in results.items():
        print(f"{name}: {value:.4f}")
    return results


if __name__ == "__main__":
    main()
