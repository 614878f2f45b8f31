"""A parameter that the loss reads at every other step only, and another that it never reads."""

import torch
from torch import nn

from adaptor_hf.objectives import AdaptorObjective


class Sometimes(AdaptorObjective):
    def setup(self, model, args):
        super().setup(model, args)
        self.weight, self.never = nn.Parameter(torch.ones(())), nn.Parameter(torch.ones(()))
        self.register_buffer("steps", torch.zeros((), dtype=torch.long))

    def forward(self, encoded, rows, gather):
        terms = super().forward(encoded, rows, gather)
        return {"loss": terms["loss"] * self.weight if self.steps % 2 else terms["loss"]}

    def after_step(self, model):
        self.steps += 1
