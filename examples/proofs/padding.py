"""Padding has a say in two of the references' modules: LoVT's attention pooling, and batch norms over tokens."""

import torch
from torch import nn

from adaptor_hf.attention_pooling_adaptor import AttentionPooling
from adaptor_hf.batch_norm_adaptor import BatchNorm


def batch(length: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Three reports of 4, 2 and 1 sentences, padded with zeros to a length, and their mask."""
    torch.manual_seed(0)
    lengths = torch.tensor([[4], [2], [1]])
    mask = torch.arange(length) < lengths
    sentences = nn.functional.pad(torch.randn(3, 4, 16), (0, 0, 0, length - 4))
    return sentences * mask[..., None], mask.long()


@torch.no_grad()
def change_of_the_pooled_vector(reference: bool) -> float:
    pooling = AttentionPooling(16, 4)
    short, long = (pooling(*batch(length), reference=reference)[0] for length in (4, 12))
    return (short - long).abs().max().item()


@torch.no_grad()
def change_of_the_normalised_tokens(reference: bool) -> float:
    found = []
    for length in (4, 12):
        tokens, mask = batch(length)
        found.append(BatchNorm(16)(tokens, None if reference else mask)[:, :4][batch(4)[1].bool()])
    return (found[0] - found[1]).abs().max().item()


def main() -> dict[str, float]:
    torch.manual_seed(0)
    results = {}
    for name, change in (
        ("pooled vector", change_of_the_pooled_vector),
        ("normalised tokens", change_of_the_normalised_tokens),
    ):
        results[f"{name}, reference, 4 or 12 positions"] = change(True)
        results[f"{name}, ours, 4 or 12 positions"] = change(False)
    for name, value in results.items():
        print(f"{name}: {value:.2g}")
    return results


if __name__ == "__main__":
    main()
