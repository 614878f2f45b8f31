"""Batches of a data set divided over the processes, and what each of them made of its own, put together again."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch.utils.data import DataLoader, Dataset, IterableDataset

from ..objectives.gather import Gather
from ..privacy.mode import error_text


def length_of(dataset: Dataset | list[Any]) -> int | None:
    """Rows of a data set; None of one that is only walked through, which cannot be divided."""
    if isinstance(dataset, IterableDataset):
        return None
    try:
        return len(dataset)
    except (TypeError, NotImplementedError):
        return None


def read_batches(
    dataset: Dataset | list[Any],
    batch_size: int,
    collator: Callable,
    *,
    divided: bool = False,
    num_workers: int = 0,
) -> Iterator[tuple[int, int | None, Any]]:
    """
    The batches of a data set in its order, or this process's own of them.

    Args:
        dataset (`Dataset` or `list`): Read as a `DataLoader` does: by `__getitems__` where it has one, else by row.
        batch_size (`int`): Rows of a batch; the last one has what is left.
        collator (`Callable`): Of the rows of a batch.
        divided (`bool`): Each process reads batches that follow each other, the same ones as one process would. A data
            set without length is read whole by every process.
        num_workers (`int`): Of the `DataLoader`.

    Yields:
        `tuple`: The number of the batch among all, its rows (None where the data set has no length), and the batch.
    """
    # With a generator of its own it draws nothing from the one that dropout draws from.
    options = {"collate_fn": collator, "generator": torch.Generator(), "num_workers": num_workers}
    length = length_of(dataset)
    if length is None:
        for number, batch in enumerate(DataLoader(dataset, batch_size=batch_size, **options)):
            yield number, None, batch
        return
    gather = Gather.of_processes() if divided else Gather()
    count = -(-length // batch_size)
    numbers = range(count * gather.rank // gather.world_size, count * (gather.rank + 1) // gather.world_size)
    rows = [list(range(start * batch_size, min((start + 1) * batch_size, length))) for start in numbers]
    for number, own, batch in zip(numbers, rows, DataLoader(dataset, batch_sampler=rows, **options), strict=True):
        yield number, len(own), batch


def of_all_processes(work: Callable[[], dict[str, torch.Tensor]], device: torch.device) -> dict[str, torch.Tensor]:
    """
    What every process made of its batches, one after the other in the order of the processes, on every process.

    Args:
        work (`Callable`): Gives `(n, ...)` tensors by name; n may differ between processes and be 0, or the name be
            missing.
        device (`torch.device`): Where a process without batches makes its part.

    Returns:
        `dict[str, torch.Tensor]`: `(N, ...)` each, bit for bit what one process would have made.

    Raises:
        RuntimeError: on the others, where the work of one process failed: they do not wait for it.
        ValueError: a column is of another dtype or shape on another process.
    """
    found: dict[str, torch.Tensor] = {}
    failed: Exception | None = None
    try:
        found = work()
    except Exception as error:
        failed = error
    own: Any = {name: (len(value), value.dtype, tuple(value.shape[1:])) for name, value in found.items()}
    if failed is not None:
        own = f"{type(failed).__name__}: {error_text(failed)}"
    told: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(told, own)
    if failed is not None:
        raise failed
    for rank, one in enumerate(told):
        if isinstance(one, str):
            raise RuntimeError(f"Process {rank} failed in the evaluation: {one}")
    kinds: dict[str, tuple] = {}
    for name, (_, *kind) in (item for one in told for item in one.items()):
        if kinds.setdefault(name, kind) != kind:
            raise ValueError(
                f"The column {name} is of another dtype or shape in other batches of one data set: {kinds[name]} and "
                f"{kind}. Give all rows the same."
            )
    together, gather = {}, Gather.of_processes()
    for name, (dtype, shape) in kinds.items():
        mine = found.pop(name) if name in found else torch.empty((0, *shape), dtype=dtype, device=device)
        together[name] = gather.rows(mine, [one[name][0] if name in one else 0 for one in told])
    return together


__all__ = ["length_of", "of_all_processes", "read_batches"]
