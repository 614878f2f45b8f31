"""Tiny towers of several libraries for tests of towers that train."""

from pathlib import Path

import torch
from torch import nn

SMALL = {"hidden_size": 48, "num_attention_heads": 4, "intermediate_size": 64}
TEXT = {"input_ids": torch.arange(5, 33).reshape(4, 7), "attention_mask": torch.ones(4, 7, dtype=torch.long)}
VIT = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 3, "num_heads": 2}
RESNET = {"layers": (1, 1, 1, 1), "channels": (8, 16, 24, 32), "stem_width": 8}


def timm_folder(folder: Path, architecture: str = "vit_tiny_patch16_224", **arguments) -> str:
    """Name of a folder that is as timm's own on the Hub are."""
    import json

    import timm
    from safetensors.torch import save_file

    torch.manual_seed(0)
    network = timm.create_model(architecture, num_classes=0, **arguments)
    folder.mkdir(parents=True, exist_ok=True)
    size = arguments.get("img_size", 32)
    means = {"mean": [0.5] * 3, "std": [0.25] * 3, "interpolation": "bilinear", "crop_pct": 0.8}
    config = {"architecture": architecture, "num_classes": 0, "model_args": arguments}
    config["pretrained_cfg"] = means | {"input_size": [3, size, size], "crop_mode": "center"}
    (folder / "config.json").write_text(json.dumps(config))
    save_file(network.state_dict(), folder / "model.safetensors", metadata={"format": "pt"})
    return f"timm:{folder}"


def inputs_of(tower) -> dict[str, torch.Tensor]:
    """Four rows for a tower."""
    if tower.spec["kind"] == "text":
        return TEXT
    shape = tower.empty_image().shape
    return {"pixel_values": torch.randn(4, *shape[1:], generator=torch.Generator().manual_seed(1))}


def train_steps(tower, steps: int = 2, inputs: dict | None = None) -> None:
    """Steps of AdamW with weight decay, as a trainer takes them."""
    inputs = inputs_of(tower) if inputs is None else inputs
    tower.train()
    optimizer = torch.optim.AdamW([one for one in tower.parameters() if one.requires_grad], lr=1e-2, weight_decay=0.1)
    for _ in range(steps):
        optimizer.zero_grad()
        tower(**inputs).pooler_output.square().mean().backward()
        optimizer.step()
    tower.eval()


@torch.no_grad()
def vectors(tower: nn.Module) -> torch.Tensor:
    return tower(**inputs_of(tower)).pooler_output


def state_of(module: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone() for name, value in module.state_dict().items()}


def moved(before: dict[str, torch.Tensor], after: dict[str, torch.Tensor]) -> set[str]:
    return {name for name, value in after.items() if name not in before or not torch.equal(value, before[name])}
