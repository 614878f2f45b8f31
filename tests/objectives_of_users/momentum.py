"""Images and texts that meet the other side as a slow copy of the model sees it."""

import copy

import torch
from torch.nn.functional import cross_entropy

from adaptor_hf.objectives import Objective


class Momentum(Objective):
    """
    Args:
        momentum (`float`): What the copy keeps of itself at a step.
    """

    def __init__(self, momentum: float = 0.9):
        super().__init__()
        self.momentum = momentum

    def setup(self, model, args):
        self.slow = copy.deepcopy(model).requires_grad_(False)

    def encode(self, model, batch):
        encoded = super().encode(model, batch)
        with torch.no_grad():
            slow = super().encode(self.slow.eval(), batch)
        encoded.more = {"slow_image": slow.image, "slow_text": slow.text}
        return encoded

    def forward(self, encoded, rows, gather):
        counts = gather.counts(encoded.image.pooled)
        terms = {}
        for name, fast, slow in (
            ("images", encoded.image, encoded.more["slow_text"]),
            ("texts", encoded.text, encoded.more["slow_image"]),
        ):
            logits = encoded.logit_scale.exp() * fast.pooled @ gather.rows(slow.pooled, counts).T
            own = gather.start(counts) + torch.arange(len(logits), device=logits.device)
            terms[name] = gather.share(counts) * cross_entropy(logits, own, reduction="sum")
        return {"loss": terms["images"] + terms["texts"], **terms}

    def after_step(self, model):
        for slow, fast in zip(self.slow.parameters(), model.parameters(), strict=True):
            slow.lerp_(fast, 1 - self.momentum)
