"""
The reference's pre-training, written plainly from its description: the baseline of the benchmarks and of two proofs.

General multi-head attention a modality with the other one's token as query, plain cross-entropies with the reference's
swapped weights, unfused AdamW over every parameter, a loader that reads one memory-mapped row at a time.
"""

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset
from transformers import get_linear_schedule_with_warmup


class NaiveLayer(nn.Module):
    """Post-norm Transformer layer. Keys, values and the residual are `own`, queries are `query`, both `(B, N, D)`."""

    def __init__(self, width: int, num_heads: int, intermediate: int, dropout: float):
        super().__init__()
        self.attn = nn.MultiheadAttention(width, num_heads, dropout=dropout, batch_first=True)
        self.linear1 = nn.Linear(width, intermediate)
        self.linear2 = nn.Linear(intermediate, width)
        self.norm1 = nn.LayerNorm(width)
        self.norm2 = nn.LayerNorm(width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, own: torch.Tensor, query: torch.Tensor) -> torch.Tensor:
        attended, _ = self.attn(query, own, own)
        hidden = self.norm1(own + self.dropout(attended))
        expanded = self.dropout(self.linear1(hidden).relu())
        return self.norm2(hidden + self.dropout(self.linear2(expanded)))


class NaiveAdaptor(nn.Module):
    """Projections, shared layers and a scale. Takes `(B, D)` or `(B, N, D)`; returns L2-normalised `(B, N, width)`."""

    def __init__(
        self,
        vision_width: int = 768,
        text_width: int = 768,
        width: int = 768,
        num_layers: int = 2,
        num_heads: int = 12,
        intermediate: int = 2048,
        dropout: float = 0.1,
    ):
        super().__init__()
        self.visual_projection = nn.Linear(vision_width, width, bias=False)
        self.text_projection = nn.Linear(text_width, width, bias=False)
        self.layers = nn.ModuleList(NaiveLayer(width, num_heads, intermediate, dropout) for _ in range(num_layers))
        self.logit_scale = nn.Parameter(torch.tensor(2.6592))

    def forward(self, image: torch.Tensor, text: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        image, text = unit(self.visual_projection(image)), unit(self.text_projection(text))
        if image.ndim == 2:
            image, text = image[:, None], text[:, None]
        for layer in self.layers:
            image = layer(image, text)
            text = layer(text, image)
        return unit(image), unit(text)

    def image_alone(self, image: torch.Tensor) -> torch.Tensor:
        """Self-attention over whatever comes: a 2-D input is one sequence, as torch reads it."""
        image = unit(self.visual_projection(image))
        for layer in self.layers:
            image = layer(image, image)
        return unit(image)


def unit(vectors: torch.Tensor) -> torch.Tensor:
    return vectors / vectors.norm(dim=-1, keepdim=True)


def naive_loss(model: NaiveAdaptor, image: torch.Tensor, text: torch.Tensor, image_weight: float = 0.75):
    """The reference's loss of matched rows; its `image_weight` weighs the softmax over images for each text."""
    image, text = model(image, text)
    logits_per_text = model.logit_scale.exp() * text[:, 0] @ image[:, 0].T
    targets = torch.arange(len(logits_per_text))
    text_to_image = nn.functional.cross_entropy(logits_per_text, targets)
    image_to_text = nn.functional.cross_entropy(logits_per_text.T, targets)
    return (1 - image_weight) * image_to_text + image_weight * text_to_image


def naive_optimizer(model: nn.Module, lr: float, total_steps: int, fused: bool = False):
    """AdamW with decay 0.01 on every parameter; linear warm-up over 2 % of the steps, then linear decay to zero."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=0.01, fused=fused)
    return optimizer, get_linear_schedule_with_warmup(optimizer, int(0.02 * total_steps), total_steps)


def train_naively(model: NaiveAdaptor, batches: Iterable[dict], lr: float, total_steps: int) -> list[float]:
    """One step a batch of `image_embeds` and `text_embeds`, `(B, D)`; returns the losses."""
    optimizer, scheduler = naive_optimizer(model, lr, total_steps)
    model.train()
    losses = []
    for batch in batches:
        optimizer.zero_grad()
        loss = naive_loss(model, batch["image_embeds"], batch["text_embeds"])
        loss.backward()
        optimizer.step()
        scheduler.step()
        losses.append(loss.item())
    return losses


class NaiveRows(Dataset):
    """One pair at a time from two memory-mapped float32 `.npy` files of shape `(rows, width)`."""

    def __init__(self, image_file: Path, text_file: Path):
        self.image = np.load(image_file, mmap_mode="r")
        self.text = np.load(text_file, mmap_mode="r")
        # Shuffled once, as in the reference: every epoch has the same batches.
        self.order = np.random.default_rng(42).permutation(len(self.image))

    def __len__(self) -> int:
        return len(self.order)

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        row = self.order[index]
        return {"image_embeds": self.image[row], "text_embeds": self.text[row]}


def naive_loader(image_file: Path, text_file: Path, batch_size: int = 1024) -> DataLoader:
    """Batches by torch's default collation, in this process."""
    return DataLoader(NaiveRows(image_file, text_file), batch_size=batch_size)


def load_golden_parameters(model: NaiveAdaptor, parameters: dict[str, torch.Tensor]) -> None:
    """Load parameters that are named as in the reference."""
    model.load_state_dict({short_name(name): value for name, value in parameters.items()})


def short_name(reference_name: str) -> str:
    return reference_name.removeprefix("projection.").replace("adaptor_module.encoder.", "layers.")


def reference_names(model: NaiveAdaptor) -> dict[str, torch.Tensor]:
    """The state dict under the reference's names, for `convert_reference_state_dict`."""
    names = {}
    for name, value in model.state_dict().items():
        prefix = "projection." if "projection" in name else ""
        names[prefix + name.replace("layers.", "adaptor_module.encoder.")] = value.clone()
    return names
