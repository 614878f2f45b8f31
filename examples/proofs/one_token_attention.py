"""
With one token a modality, attention ignores its query: no text reaches an image. And torch reads a batch as a sequence.

A layer is torch's own post-norm Transformer layer at the reference's sizes; no checkpoint is needed.
"""

import torch
from torch import nn

from adaptor_hf import AdaptorConfig, AdaptorModel


def query_has_no_say(width: int = 768) -> dict[str, float]:
    attention = nn.MultiheadAttention(width, 12, batch_first=True)
    image, text, other_text = torch.randn(3, 8, 1, width)
    fused = attention(text, image, image)[0]
    change = (fused - attention(other_text, image, image)[0]).abs().max().item()
    fused.pow(2).sum().backward()
    query_key_gradient = attention.in_proj_weight.grad[: 2 * width].abs().max().item()
    return {"change with another text": change, "largest query or key gradient": query_key_gradient}


def parameters_without_gradient() -> int:
    model = AdaptorModel(AdaptorConfig())
    model(image_embeds=torch.randn(4, 768), text_embeds=torch.randn(4, 768), return_loss=True).loss.backward()
    return sum(parameter.numel() for parameter in model.parameters() if not parameter.grad.any())


@torch.no_grad()
def batch_is_read_as_a_sequence() -> dict[str, float]:
    layer = nn.TransformerEncoderLayer(768, 12, 2048, batch_first=True).eval()
    batch = nn.functional.normalize(torch.randn(16, 768), dim=-1)
    in_sixteen, in_eight = layer(batch)[:8], layer(batch[:8])
    model = AdaptorModel(AdaptorConfig()).eval()
    ours = [model(image_embeds=rows).image_embeds[:8] for rows in (batch, batch[:8])]
    return {
        "reference, 16 rows or 8": (in_sixteen - in_eight).abs().max().item(),
        "ours, 16 rows or 8": (ours[0] - ours[1]).abs().max().item(),
    }


def main() -> dict[str, float]:
    torch.manual_seed(0)
    results = query_has_no_say()
    results["parameters without gradient"] = parameters_without_gradient()
    results |= batch_is_read_as_a_sequence()
    for name, value in results.items():
        print(f"{name}: {value:,}" if isinstance(value, int) else f"{name}: {value:.2g}")
    return results


if __name__ == "__main__":
    main()
