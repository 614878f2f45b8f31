"""The order in which rows of several sources are shown: in which shares, and mixed or each batch of one source."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from torch.utils.data import Sampler

if TYPE_CHECKING:
    from .arguments import AdaptorTrainingArguments

SOURCE_BATCHES = ("mixed", "by_source")
"""What `--source_batches` takes."""


class SourceSampler(Sampler[int]):
    """
    Rows of an epoch, with the share of each source that was asked for.

    An epoch has as many batches as one pass over all rows. Of them each source gets its share: `weight * rows`, rounded
    down or up by a seeded draw whose expectation is exact. Its rows are drawn without replacement; only where its
    share is more than it has, all its rows come again, in another order, before any comes a third time.

    `mixed`: the rows of all sources in one random order, so that batches have the shares on average. `by_source`: each
    batch is of one source, its negatives are of that source alone; each source has whole batches, in random order, and
    no row twice in one of them. What of a source fills no batch is left out of that epoch, other rows in another one.

    The order follows from seed and epoch alone: it is the same on resuming and on all ranks.

    Args:
        codes (`np.ndarray` of shape `(N,)`, int64): Source of each row.
        names (`Sequence[str]`): Of the sources, by code.
        batch_size (`int`): Pairs a batch, over all processes.
        weights (`Sequence[float]`, *optional*): Share of each source, in any unit; by default that of its rows.
        by_source (`bool`): Each batch of one source.
        drop_last (`bool`): Leave out a last batch that is not full.
        seed (`int`): Of the order.

    Raises:
        ValueError: impossible weights (`check_weights`), a source without rows, or, `by_source`, one with fewer rows
            than a batch.
    """

    def __init__(
        self,
        codes: np.ndarray,
        names: Sequence[str],
        batch_size: int,
        *,
        weights: Sequence[float] | None = None,
        by_source: bool = False,
        drop_last: bool = False,
        seed: int = 0,
    ):
        self.rows = [np.flatnonzero(codes == code) for code in range(len(names))]
        self.batch_size, self.by_source, self.seed, self.epoch = batch_size, by_source, seed, 0
        counts = np.array([len(rows) for rows in self.rows])
        if weights is not None:
            check_weights(weights, len(names))
        for name, count in zip(names, counts, strict=True):
            if not count:
                raise ValueError(
                    f"The source {name!r} has no training pairs. Leave it out, or check its split and its texts."
                )
            if by_source and count < batch_size:
                raise ValueError(
                    f"--source_batches by_source: the source {name!r} has {count:,} training pairs, fewer than a batch "
                    f"of {batch_size:,}. Lower --global_batch_size, or take --source_batches mixed."
                )
        self.shares = counts / counts.sum() if weights is None else np.asarray(weights, float) / math.fsum(weights)
        total = int(counts.sum())
        # Rows of one pass are what they are: their shares need no rounding.
        self.exact = counts if weights is None and not by_source else None
        batches = total // batch_size if drop_last else math.ceil(total / batch_size)
        self.units = batches if by_source else total

    def __len__(self) -> int:
        return self.units * (self.batch_size if self.by_source else 1)

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def counts(self, generator: np.random.Generator) -> np.ndarray:
        """Rows (`by_source`: batches) of each source in an epoch, `(S,)` int64."""
        if self.exact is not None:
            return self.exact
        # Systematic sampling: one draw for all, each count is its expectation rounded down or up, and so is their sum.
        ends = np.cumsum(self.shares) * self.units
        ends[-1] = self.units
        passed = np.floor(ends + generator.random()).astype(np.int64)
        passed[-1] = self.units
        return np.diff(passed, prepend=0)

    def __iter__(self) -> Iterator[int]:
        generator = np.random.default_rng([self.seed, self.epoch])
        counts = self.counts(generator)
        source = np.repeat(np.arange(len(counts)), counts)
        generator.shuffle(source)
        size = self.batch_size if self.by_source else 1
        order = np.empty((len(source), size), dtype=np.int64)
        for code, rows in enumerate(self.rows):
            drawn = passes(rows, int(counts[code]) * size, generator, size)
            order[source == code] = drawn.reshape(-1, size)
        yield from order.reshape(-1).tolist()


def passes(rows: np.ndarray, count: int, generator: np.random.Generator, size: int = 1) -> np.ndarray:
    """
    Passes over rows, each in another order, until there are enough.

    Args:
        rows: `(n,)`.
        count: Of rows to draw.
        generator: Of the orders.
        size: Of the batches that the result is cut into, at most n: none of them has a row twice.

    Returns:
        `(count,)`: each row `count // n` times or once more.
    """
    drawn: list[np.ndarray] = []
    done = 0
    while done < count:
        order = generator.permutation(rows)
        if begun := done % size:
            # The rows of the batch that the pass before has begun come after those that fill it up.
            last = np.isin(order, drawn[-1][-begun:])
            head = order[~last][: size - begun]
            order = np.concatenate([head, order[~np.isin(order, head)]])
        drawn.append(order)
        done += len(order)
    return np.concatenate([*drawn, rows[:0]])[:count]


def check_weights(weights: Sequence[float], sources: int) -> None:
    """
    Raises:
        ValueError: not one positive number for each source.
    """
    if len(weights) != sources:
        raise ValueError(
            f"--dataset_weights has {len(weights)} numbers for {sources} "
            f"source{'s' if sources != 1 else ''}: give one for each, in the order of the sources."
        )
    if bad := [weight for weight in weights if not (math.isfinite(weight) and weight > 0)]:
        raise ValueError(
            f"--dataset_weights are positive numbers (their sum need not be 1), got {bad[0]:g}. To leave a source out, "
            "do not name it."
        )


def source_sampler(dataset: Any, arguments: AdaptorTrainingArguments) -> SourceSampler | None:
    """
    The sampler that the arguments ask for; None where any order of all rows will do.

    Raises:
        ValueError: weights or batches by source of a data set of one source; see [`SourceSampler`].
    """
    asked = arguments.dataset_weights is not None or arguments.source_batches != "mixed"
    if not asked:
        return None
    names = list(getattr(dataset, "source_names", ()))
    if not names:
        option = "--source_batches by_source" if arguments.dataset_weights is None else "--dataset_weights"
        raise ValueError(f"{option} is of several sources, and the training data has one. Leave it out.")
    if arguments.train_sampling_strategy != "random":
        raise ValueError(
            f"--train_sampling_strategy {arguments.train_sampling_strategy} has an order of its own: leave it out, or "
            "--dataset_weights and --source_batches."
        )
    return SourceSampler(
        dataset.source_codes,
        names,
        arguments.train_batch_size * arguments.world_size,
        weights=arguments.dataset_weights,
        by_source=arguments.source_batches == "by_source",
        drop_last=arguments.dataloader_drop_last,
        seed=arguments.seed if arguments.data_seed is None else arguments.data_seed,
    )


__all__ = ["SOURCE_BATCHES", "SourceSampler", "check_weights", "passes", "source_sampler"]
