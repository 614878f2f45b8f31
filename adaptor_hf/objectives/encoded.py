"""What an objective gets of a batch: the images and the texts of one process, embedded."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, fields

import torch


@dataclass
class Side:
    """
    Images, texts or one augmented view of the images; n of them.

    Args:
        pooled (`torch.Tensor` of shape `(n, hidden_size)`): L2-normalised embeddings in the shared space, with graph.
        tokens (`torch.Tensor` of shape `(n, L, hidden_size)`, *optional*): L2-normalised tokens without the pooled one.
        mask (`torch.Tensor` of shape `(n, L)`, *optional*): 1 for tokens, 0 for padding; `None`: all are tokens.
        index (`torch.Tensor` of shape `(n,)`, int64, *optional*): Number that pairs items of both sides: images and
            texts of equal index belong together, one whose index is not on the other side has no partner. `None`:
            item i belongs to item i of the other side.
    """

    pooled: torch.Tensor
    tokens: torch.Tensor | None = None
    mask: torch.Tensor | None = None
    index: torch.Tensor | None = None

    def __len__(self) -> int:
        return len(self.pooled)


PARTS = tuple(item.name for item in fields(Side))


@dataclass
class Encoded:
    """
    A batch after `Objective.encode`. The numbers of images and texts may differ; a side that a batch lacks is `None`.

    Args:
        image, text (`Side`, *optional*): The two modalities.
        more (`dict[str, Side]`): What else a method encodes: augmented views, the outputs of momentum copies.
        logit_scale (`torch.Tensor`, scalar, *optional*): The model's, a logarithm, bounded, with graph.
        logit_bias (`torch.Tensor`, scalar, *optional*): The model's, where it has one.
    """

    image: Side | None = None
    text: Side | None = None
    more: dict[str, Side] = field(default_factory=dict)
    logit_scale: torch.Tensor | None = None
    logit_bias: torch.Tensor | None = None

    def sides(self) -> Iterator[tuple[str, Side]]:
        """The sides that are there, by name: `image`, `text`, then those of `more`."""
        for name, side in (("image", self.image), ("text", self.text)):
            if side is not None:
                yield name, side
        yield from self.more.items()

    def tensors(self) -> dict[tuple[str, str], torch.Tensor]:
        """All tensors of all sides, by names of side and field; rows first."""
        return {
            (name, part): value
            for name, side in self.sides()
            for part in PARTS
            if (value := getattr(side, part)) is not None
        }

    @classmethod
    def of_tensors(
        cls,
        tensors: dict[tuple[str, str], torch.Tensor],
        logit_scale: torch.Tensor | None = None,
        logit_bias: torch.Tensor | None = None,
    ) -> Encoded:
        """The way back from `tensors`."""
        sides: dict[str, dict[str, torch.Tensor]] = {}
        for (name, part), value in tensors.items():
            sides.setdefault(name, {})[part] = value
        made = {name: Side(**parts) for name, parts in sides.items()}
        return cls(made.pop("image", None), made.pop("text", None), made, logit_scale, logit_bias)


__all__ = ["Encoded", "Side"]
