"""A contrastive loss through a projector of its own, with the texts of former batches as further negatives."""

import torch
from torch import nn
from torch.nn.functional import cross_entropy, normalize

from adaptor_hf.objectives import Objective


class Queued(Objective):
    """
    Args:
        size (`int`): Texts that the queue holds.
    """

    def __init__(self, size: int = 24):
        super().__init__()
        self.size = size

    def setup(self, model, args):
        self.projector = nn.Linear(model.config.hidden_size, model.config.hidden_size)
        self.register_buffer("queue", normalize(torch.randn(self.size, model.config.hidden_size), dim=1))

    def forward(self, encoded, rows, gather):
        images = normalize(self.projector(encoded.image.pooled), dim=1)
        counts = gather.counts(images)
        self.texts = gather.rows(encoded.text.pooled, counts)
        logits = encoded.logit_scale.exp() * images @ torch.cat([self.texts, self.queue]).T
        own = gather.start(counts) + torch.arange(len(images), device=logits.device)
        found = gather.share(counts) * (logits.argmax(1) == own).sum()
        return {"loss": gather.share(counts) * cross_entropy(logits, own, reduction="sum"), "accuracy": found}

    def after_step(self, model):
        self.queue.copy_(torch.cat([self.texts.detach(), self.queue])[: self.size])
