"""What each gloo rank computes for tests/test_batch_norm.py; started by torch.multiprocessing."""

import os
from itertools import product

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

# Nothing else of the package: each rank imports it anew.
from adaptor_hf.batch_norm_adaptor import BatchNorm, batch_norm_over_ranks

WIDTH, LENGTH = 5, 4


class Head(torch.nn.Module):
    """As MGCA's: a norm within, and one without weights at the end."""

    def __init__(self):
        super().__init__()
        self.linear, self.norm = torch.nn.Linear(WIDTH, 7), BatchNorm(7)
        self.output, self.output_norm = torch.nn.Linear(7, WIDTH), BatchNorm(WIDTH, affine=False)

    def forward(self, rows: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        return self.output_norm(self.output(self.norm(self.linear(rows), mask).relu()), mask)


def make_rows(count: int, masked: bool) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor]:
    """Rows, their mask and what their outputs are compared with; with sequences where there is a mask."""
    generator = torch.Generator().manual_seed(1)
    shape = (count, LENGTH, WIDTH) if masked else (count, WIDTH)
    rows = torch.randn(shape, generator=generator, dtype=torch.float64) * 3 + 100
    target = torch.randn(shape, generator=generator, dtype=torch.float64)
    lengths = torch.randint(1, LENGTH + 1, (count, 1), generator=generator)
    return rows, (torch.arange(LENGTH) < lengths).long() if masked else None, target


def make_module(kind: str) -> torch.nn.Module:
    torch.manual_seed(5)
    if kind == "norm":
        module = BatchNorm(WIDTH).double()
        torch.nn.init.normal_(module.weight)
        torch.nn.init.normal_(module.bias)
        return module
    return Head().double()


def loss_of(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Mean over rows of something that is not linear."""
    return ((output - target) ** 2).sum() / len(target) + (output.sin() * target).sum() / len(target)


def step(module, rows, mask, target, weight: float) -> dict[str, torch.Tensor]:
    rows = rows.clone().requires_grad_()
    output = module(rows, mask)
    (weight * loss_of(output, target)).backward()
    return {"output": output.detach(), "input": rows.grad}


def state_of(module) -> dict[str, torch.Tensor]:
    state = dict(module.state_dict())
    return state | {f"gradient of {name}": value.grad for name, value in module.named_parameters()}


def run(rank: int, cases: list[list[int]], folder: str) -> None:
    """For each list of counts, rank `rank` holds `counts[rank]` rows of one batch; see `measure`."""
    torch.set_num_threads(1)
    for counts in cases:
        if rank >= len(counts):
            continue
        os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(len(counts))}
        meeting = f"file://{folder}/rendezvous{len(counts)}"
        dist.init_process_group("gloo", init_method=meeting, rank=rank, world_size=len(counts))
        torch.save(measure(rank, counts), f"{folder}/{len(counts)}ranks-{rank}.pt")
        dist.barrier()
        dist.destroy_process_group()


def measure(rank: int, counts: list[int]) -> dict[str, torch.Tensor]:
    """Outputs, gradients and running statistics of this rank."""
    total, results = sum(counts), {}
    place = slice(sum(counts[:rank]), sum(counts[: rank + 1]))
    for kind, masked, over_ranks in product(("norm", "head"), (False, True), (True, False)):
        module = make_module(kind)
        batch_norm_over_ranks(module, over_ranks)
        # Buffers are this module's own affair.
        wrapped = DistributedDataParallel(module, broadcast_buffers=False)
        rows, mask, target = make_rows(total, masked)
        mask = None if mask is None else mask[place]
        # DDP takes the mean over ranks: a rank counts by its share of the rows.
        weight = len(counts) * counts[rank] / total
        found = step(wrapped, rows[place], mask, target[place], weight)
        found["input"] /= len(counts)
        case = f"{kind}, {'masked' if masked else 'whole'}, {'over ranks' if over_ranks else 'alone'}"
        results |= {f"{case}/{name}": value for name, value in (found | state_of(module)).items()}
    return results
