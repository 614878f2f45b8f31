"""Batch normalisation whose statistics are those of all rows that are there: of every rank, without padding.

This file is flat on purpose: it is copied beside a checkpoint as remote code.
"""

import torch
from torch import distributed, nn


class SumOverRanks(torch.autograd.Function):
    """The sum of a tensor over all ranks. Each rank's own loss depends on it, so its gradient is the sum of theirs."""

    @staticmethod
    def forward(ctx, values):
        total = values.contiguous().clone()
        distributed.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx, grad_output):
        total = grad_output.contiguous().clone()
        distributed.all_reduce(total)
        return total


class BatchNorm(nn.BatchNorm1d):
    """
    `nn.BatchNorm1d` over vectors `(..., C)`, whose statistics count real rows only, and on request those of every rank.

    `nn.SyncBatchNorm` takes no CPU tensors and no mask. With as many or as few rows a rank as there are, outputs,
    gradients and running statistics are those of one process with all the rows. In evaluation mode it is
    `nn.BatchNorm1d`.

    Attributes:
        over_ranks (`bool`): In training, statistics over all ranks of the default process group. Each of them must then
            call the module as often as the others, so it is off until [`batch_norm_over_ranks`] switches it on.
    """

    over_ranks = False

    def forward(self, vectors: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        """
        Args:
            vectors (`torch.Tensor` of shape `(..., C)`): Rows to normalise.
            mask (`torch.Tensor` of shape `(...)`, *optional*): 1 for rows that count, 0 for padding, which is
                normalised too but does not count. `None`: all count.

        Returns:
            `torch.Tensor` of the shape and dtype of `vectors`. Statistics are float32 or wider.

        Raises:
            ValueError: a single row, on this one rank, in training.
        """
        if mask is not None and mask.shape != vectors.shape[:-1]:
            raise ValueError(f"mask must be of shape {tuple(vectors.shape[:-1])}, got {tuple(mask.shape)}.")
        rows = vectors.reshape(-1, vectors.shape[-1])
        several = self.over_ranks and distributed.is_available() and distributed.is_initialized()
        several = several and distributed.get_world_size() > 1
        if not self.training or (mask is None and not several):
            return super().forward(rows).view_as(vectors)
        with torch.autocast(rows.device.type, enabled=False):
            wide = rows.to(torch.promote_types(rows.dtype, torch.float32))
            counted = wide.new_ones(len(wide)) if mask is None else mask.reshape(-1).to(wide.dtype)
            return self._normalise(wide, counted, several).to(vectors.dtype).view_as(vectors)

    def _normalise(self, rows: torch.Tensor, counted: torch.Tensor, several: bool) -> torch.Tensor:
        # Two passes: the variance as a difference of two sums would lose its digits.
        sums = torch.cat([counted @ rows, counted.sum()[None]])
        sums = SumOverRanks.apply(sums) if several else sums
        count = sums[-1].detach().clamp(min=1)
        mean = sums[:-1] / count
        squares = counted @ (rows - mean).square()
        variance = (SumOverRanks.apply(squares) if several else squares) / count
        self._follow(mean.detach(), variance.detach(), count)
        normalised = (rows - mean) * (variance + self.eps).rsqrt()
        if self.weight is None:
            return normalised
        return normalised * self.weight.to(rows.dtype) + self.bias.to(rows.dtype)

    @torch.no_grad()
    def _follow(self, mean: torch.Tensor, variance: torch.Tensor, count: torch.Tensor) -> None:
        self.num_batches_tracked.add_(1)
        unbiased = variance * (count / (count - 1).clamp(min=1))
        for running, now in ((self.running_mean, mean), (self.running_var, unbiased)):
            running.lerp_(now.to(running.dtype), self.momentum)


def batch_norm_over_ranks(module: nn.Module, on: bool) -> None:
    """Switch the statistics of every [`BatchNorm`] in a module between those of all ranks and those of this one."""
    for part in module.modules():
        if isinstance(part, BatchNorm):
            part.over_ranks = on


__all__ = ["BatchNorm", "SumOverRanks", "batch_norm_over_ranks"]
