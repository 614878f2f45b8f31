"""Rows of all ranks, and the contrastive loss over them: every rank's rows are negatives of every other's."""

from dataclasses import dataclass

import torch
import torch.distributed as dist

from ..batch_norm_adaptor import SumOverRanks
from ..loss_adaptor import check_matched, contrastive_loss, directional_loss, prepare
from .chunked import chunked_cross_entropy

# Rows of the global batch from which blocks cost no more time than the whole matrix (benchmarks/bench_loss.py).
CHUNKED_FROM = 4096


def gather_counts(count: int, device: torch.device) -> list[int]:
    """Number of rows on every rank, in rank order."""
    counts = [torch.zeros(1, dtype=torch.long, device=device) for _ in range(dist.get_world_size())]
    dist.all_gather(counts, torch.tensor([count], device=device))
    return [int(value) for value in torch.cat(counts).tolist()]


class GatherRows(torch.autograd.Function):
    """Equally long rows of all ranks, concatenated; each rank's rows get the sum of the gradients of all ranks."""

    @staticmethod
    def forward(ctx, rows):
        parts = [torch.empty_like(rows) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, rows)
        return torch.cat(parts)

    @staticmethod
    def backward(ctx, grad_output):
        grad_output = grad_output.contiguous()
        dist.all_reduce(grad_output)
        return grad_output.chunk(dist.get_world_size())[dist.get_rank()]


def gather_rows(rows: torch.Tensor, counts: list[int]) -> torch.Tensor:
    """
    Concatenate the rows of all ranks, in rank order; gradients flow back to the rank that each row came from.

    Args:
        rows (`torch.Tensor` of shape `(counts[rank], ...)`): This rank's rows.
        counts (`list[int]`): Rows on every rank. They may differ: short ranks are padded for the exchange.

    Returns:
        `torch.Tensor` of shape `(sum(counts), ...)`.
    """
    longest = max(counts)
    if len(rows) < longest:
        rows = torch.cat([rows, rows.new_zeros(longest - len(rows), *rows.shape[1:])])
    parts = GatherRows.apply(rows.contiguous()).chunk(len(counts))
    return torch.cat([part[:count] for part, count in zip(parts, counts, strict=True)])


@dataclass(frozen=True)
class Gather:
    """
    The processes whose rows meet in an objective.

    A loss that each process takes over its own rows against `rows(...)` of all, and that is scaled by `share`, is, as
    the mean over processes, the loss of the whole batch, and so are its gradients.

    Args:
        rank (`int`), world_size (`int`): This process and how many there are.
        equal_counts (`bool`): The batches of all processes have equally many pairs. A loss over all pairs of the batch
            may rely on it, and save an exchange; `counts` and `rows` are asked for any rows, and do not.
    """

    rank: int = 0
    world_size: int = 1
    equal_counts: bool = False

    @classmethod
    def of_processes(cls, equal_counts: bool = False) -> "Gather":
        """Over the process group, where there is one. `Gather()` is this process alone."""
        if not dist.is_initialized():
            return cls(equal_counts=equal_counts)
        return cls(dist.get_rank(), dist.get_world_size(), equal_counts)

    def counts(self, rows: torch.Tensor) -> list[int]:
        """Number of rows on every process, in their order."""
        return [len(rows)] if self.world_size == 1 else gather_counts(len(rows), rows.device)

    def counts_of_pairs(self, pairs: torch.Tensor, equal_counts: bool) -> list[int]:
        """As `counts`, of all pairs of the batch; without an exchange where `equal_counts` says that it needs none."""
        return [len(pairs)] * self.world_size if equal_counts else self.counts(pairs)

    def rows(self, rows: torch.Tensor, counts: list[int] | None = None) -> torch.Tensor:
        """`(n, ...)` of this process to `(N, ...)` of all, in their order, with exact gradients; see `gather_rows`."""
        if self.world_size == 1:
            return rows
        return gather_rows(rows, self.counts(rows) if counts is None else counts)

    def sum(self, values: torch.Tensor) -> torch.Tensor:
        """The sum over processes, with exact gradients."""
        return values if self.world_size == 1 else SumOverRanks.apply(values)

    def start(self, counts: list[int]) -> int:
        """Where this process's rows begin among those of all."""
        return sum(counts[: self.rank])

    def share(self, counts: list[int]) -> float:
        """What makes a sum over this process's rows a part of the mean over all rows; 1 of no rows, whose sum is 0."""
        return self.world_size / sum(counts) if any(counts) else 1.0


def check_ids(positives: torch.Tensor | None, count: int) -> None:
    """Refuse other than one integer id a row."""
    if positives is not None and (positives.shape != (count,) or positives.dtype == torch.bool):
        raise ValueError(f"positives must be integer ids of shape ({count},), got {tuple(positives.shape)}.")


def gathered_contrastive_loss(
    image_embeds: torch.Tensor,
    text_embeds: torch.Tensor,
    logit_scale: torch.Tensor | float,
    image_to_text_weight: float = 0.75,
    normalize: bool = True,
    positives: torch.Tensor | None = None,
    equal_counts: bool = False,
    gather: Gather | None = None,
) -> torch.Tensor:
    """
    [`contrastive_loss`] over the rows of all ranks: this rank's rows against every rank's.

    The mean of the ranks' losses is the loss of the whole batch, and the mean of their gradients (what
    DistributedDataParallel computes) is its gradient, also where ranks hold different numbers of rows.

    Args:
        image_embeds, text_embeds (`torch.Tensor` of shape `(B, D)`): This rank's matched rows.
        logit_scale, image_to_text_weight, normalize: As in [`contrastive_loss`].
        positives (`torch.Tensor` of shape `(B,)`, *optional*): Integer ids of this rank's rows, comparable over ranks.
        equal_counts (`bool`, defaults to `False`): The caller vouches that all ranks hold B rows. That saves the
            exchange of counts, which makes a GPU wait for the CPU.
        gather ([`Gather`], *optional*): The processes; by default all.

    Returns:
        `torch.Tensor`: scalar. Without a process group it is `contrastive_loss` of the local rows.
    """
    image_embeds, text_embeds, scale = prepare(image_embeds, text_embeds, logit_scale, normalize)
    check_matched(image_embeds, text_embeds)
    check_ids(positives, len(image_embeds))
    gather = Gather.of_processes() if gather is None else gather
    rank, world_size = gather.rank, gather.world_size
    if world_size == 1 and len(image_embeds) < CHUNKED_FROM:
        return contrastive_loss(image_embeds, text_embeds, logit_scale, image_to_text_weight, False, positives)
    if world_size == 1:
        weights = image_to_text_weight / len(image_embeds), (1 - image_to_text_weight) / len(image_embeds)
        with torch.autocast(image_embeds.device.type, enabled=False):
            return chunked_cross_entropy(
                image_embeds,
                text_embeds,
                scale,
                row_weight=weights[0],
                column_weight=weights[1],
                query_ids=positives,
                key_ids=positives,
            )
    counts = gather.counts_of_pairs(image_embeds, equal_counts)
    all_images, all_texts = gather.rows(image_embeds, counts), gather.rows(text_embeds, counts)
    all_ids = None if positives is None else gather.rows(positives, counts)

    start, share = gather.start(counts), gather.share(counts)
    directions = (
        (image_embeds, all_texts, image_to_text_weight * share),
        (text_embeds, all_images, (1 - image_to_text_weight) * share),
    )
    with torch.autocast(image_embeds.device.type, enabled=False):
        if len(all_images) >= CHUNKED_FROM:
            ids = {"query_ids": positives, "key_ids": all_ids}
            return sum(
                chunked_cross_entropy(queries, keys, scale, start=start, row_weight=weight, **ids)
                for queries, keys, weight in directions
            )
        targets = torch.arange(start, start + counts[rank], device=image_embeds.device)
        same = None if positives is None else positives[:, None] == all_ids[None, :]
        return sum(
            weight * directional_loss(scale * (queries @ keys.T), targets, same).sum()
            for queries, keys, weight in directions
        )


__all__ = ["Gather", "check_ids", "gathered_contrastive_loss"]
