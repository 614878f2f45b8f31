"""Segmentation decoders of "Freeze the backbones": up-sampling of patch tokens, and a U-Net on a tower's feature maps.

Both take any input size; at the paper's sizes they compute what the reference code computes.
This file is flat on purpose: it is copied beside a checkpoint as remote code.
"""

import math

import torch
from torch import nn

WIDTHS = (512, 256, 128, 64)
"""Channels at strides 16, 8, 4 and 2 of the U-Net, and after the four steps of the token decoder."""


def _resize(maps: torch.Tensor, size: tuple[int, int], mode: str) -> torch.Tensor:
    """Maps at `size` (rows, columns); as they are where they have it already."""
    if tuple(maps.shape[-2:]) == tuple(size):
        return maps
    corners = {} if mode == "nearest" else {"align_corners": False}
    return nn.functional.interpolate(maps, size=tuple(size), mode=mode, **corners)


def _conv_norm(in_channels: int, out_channels: int) -> list[nn.Module]:
    return [nn.Conv2d(in_channels, out_channels, 3, padding=1), nn.BatchNorm2d(out_channels), nn.ReLU(inplace=True)]


class TokenDecoder(nn.Module):
    """
    Patch tokens to a map, by convolutions and doublings ("ViTDecoder" of the reference): 10,401,409 parameters for
    768-d tokens and one logit.

    Args:
        in_channels (`int`): Width of the tokens.
        num_logits (`int`): Maps to give.
    """

    def __init__(self, in_channels: int, num_logits: int):
        super().__init__()
        self.first = nn.Sequential(*_conv_norm(in_channels, in_channels))
        steps = zip((in_channels, *WIDTHS), WIDTHS, strict=False)
        self.steps = nn.ModuleList(nn.Sequential(*_conv_norm(*channels)) for channels in steps)
        self.output = nn.Conv2d(WIDTHS[-1], num_logits, 3, padding=1)

    def forward(self, tokens: torch.Tensor, grid: tuple[int, int], size: tuple[int, int]) -> torch.Tensor:
        """
        Args:
            tokens (`torch.Tensor` of shape `(B, N, in_channels)`): Row by row.
            grid (`tuple[int, int]`): Rows and columns of the tokens.
            size (`tuple[int, int]`): Height and width of the logits.

        Returns:
            `torch.Tensor` of shape `(B, num_logits, *size)`.
        """
        maps = self.first[0](tokens.transpose(1, 2).unflatten(2, tuple(grid)))
        # Four doublings lead from a sixteenth to the full size.
        target = tuple(max(1, (side + 8) // 16) for side in size)
        if target == tuple(side - 2 for side in grid):
            # 16 x 16 tokens for 224 pixels: the reference's first convolution has no padding.
            maps = maps[..., 1:-1, 1:-1]
        maps = _resize(self.first[1:](maps), target, "nearest")
        for step in self.steps:
            maps = nn.functional.interpolate(step(maps), scale_factor=2, mode="nearest")
        return _resize(self.output(maps), size, "bilinear")


class UNetDecoder(nn.Module):
    """
    A U-Net that starts from the image embedding and takes the tower's feature maps as skips ("ResNetAEUNet" of the
    reference): 20,146,817 parameters for ResNet-AE, a 768-d embedding and one logit, 21,195,393 with doublings.

    Args:
        embedding_size (`int`): Width of the image embedding.
        skip_channels (`list[int]`): Channels of the tower's maps at strides 2, 4, 8 and 16; 0 where there is none.
        num_logits (`int`): Maps to give.
        doublings (`int`): How often the neck's 7 x 7 map is doubled; one layer, applied as often. 0 for 224 pixels, 1
            for 448, 2 for 896.
    """

    def __init__(self, embedding_size: int, skip_channels: list[int], num_logits: int, doublings: int = 0):
        super().__init__()
        width = WIDTHS[0]
        self.doublings = doublings
        self.neck = nn.Sequential(
            nn.ConvTranspose2d(embedding_size, width, 3, bias=False),
            nn.ConvTranspose2d(width, width, 3, stride=2, bias=False),
        )
        self.doubling = nn.ConvTranspose2d(width, width, 2, stride=2, bias=False) if doublings else None
        inputs = (width, *WIDTHS[:-1])
        self.up = nn.ModuleList(nn.ConvTranspose2d(i, o, 2, stride=2) for i, o in zip(inputs, WIDTHS, strict=True))
        self.merge = nn.ModuleList(
            nn.Sequential(*_conv_norm(out + skip, out), *_conv_norm(out, out))
            for out, skip in zip(WIDTHS, reversed(skip_channels), strict=True)
        )
        self.last_up = nn.ConvTranspose2d(WIDTHS[-1], WIDTHS[-1] // 2, 2, stride=2)
        self.output = nn.Conv2d(WIDTHS[-1] // 2, num_logits, 1)

    def forward(self, embedding: torch.Tensor, maps: list[torch.Tensor | None], size: tuple[int, int]) -> torch.Tensor:
        """
        Args:
            embedding (`torch.Tensor` of shape `(B, embedding_size)`).
            maps (`list[torch.Tensor | None]`): The tower's maps `(B, C, h, w)` at strides 2, 4, 8 and 16.
            size (`tuple[int, int]`): Height and width of the logits.

        Returns:
            `torch.Tensor` of shape `(B, num_logits, *size)`.
        """
        hidden = self.neck(embedding[:, :, None, None])
        for _ in range(self.doublings):
            hidden = self.doubling(hidden)
        strides = (16, 8, 4, 2)
        sizes = [
            tuple(math.ceil(side / stride) for side in size) if skip is None else tuple(skip.shape[-2:])
            for stride, skip in zip(strides, reversed(maps), strict=True)
        ]
        hidden = _resize(hidden, tuple(math.ceil(side / 2) for side in sizes[0]), "bilinear")
        for up, merge, skip, target in zip(self.up, self.merge, reversed(maps), sizes, strict=True):
            hidden = _resize(up(hidden), target, "bilinear")
            hidden = merge(hidden if skip is None else torch.cat([skip.to(hidden.dtype), hidden], dim=1))
        return self.output(_resize(self.last_up(hidden), size, "bilinear"))


__all__ = ["TokenDecoder", "UNetDecoder"]
