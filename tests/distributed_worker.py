"""What each gloo rank computes for tests/test_distributed.py; started by torch.multiprocessing."""

import os
from pathlib import Path

import torch
import torch.distributed as dist

from adaptor_hf.objectives import (
    chunked_sigmoid,
    contrastive_loss,
    gather,
    gathered_contrastive_loss,
    gathered_sigmoid_loss,
)


def make_batch(rows: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    image = torch.randn(rows, 10, generator=generator, dtype=torch.float64)
    text = torch.randn(rows, 10, generator=generator, dtype=torch.float64)
    return image, text, torch.randint(0, rows // 2, (rows,), generator=generator)


def make_encoders() -> dict[str, torch.nn.Linear | torch.nn.Parameter]:
    torch.manual_seed(3)
    return {
        "image": torch.nn.Linear(10, 6).double(),
        "text": torch.nn.Linear(10, 6).double(),
        "scale": torch.nn.Parameter(torch.tensor(1.5, dtype=torch.float64)),
        "bias": torch.nn.Parameter(torch.tensor(-2.0, dtype=torch.float64)),
    }


def gather_without_gradient(rows: torch.Tensor, keep_own: bool) -> torch.Tensor:
    """A wrong gather, kept as a negative control: remote rows (and own ones, unless kept) pass no gradient."""
    parts = [torch.empty_like(rows) for _ in range(dist.get_world_size())]
    dist.all_gather(parts, rows.detach().contiguous())
    if keep_own:
        parts[dist.get_rank()] = rows
    return torch.cat(parts)


def wrong_loss(kind: str, image: torch.Tensor, text: torch.Tensor, scale: torch.Tensor, rows: slice) -> torch.Tensor:
    all_image = gather_without_gradient(image, keep_own=kind == "own rows kept")
    all_text = gather_without_gradient(text, keep_own=kind == "own rows kept")
    if kind == "own rows kept":
        return contrastive_loss(all_image, all_text, scale)
    normalise = torch.nn.functional.normalize
    targets = torch.arange(rows.start, rows.stop)
    logits = scale.exp() * normalise(image, dim=1) @ normalise(all_text, dim=1).T
    other = scale.exp() * normalise(text, dim=1) @ normalise(all_image, dim=1).T
    cross_entropy = torch.nn.functional.cross_entropy
    return 0.75 * cross_entropy(logits, targets) + 0.25 * cross_entropy(other, targets)


def run(rank: int, counts: list[int], folder: str) -> None:
    """Rank `rank` holds `counts[rank]` rows of one batch; writes the averaged gradients of every kind of loss."""
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(len(counts))}
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=len(counts))
    assert dist.get_world_size() == len(counts)
    image, text, ids = make_batch(sum(counts))
    rows = slice(sum(counts[:rank]), sum(counts[: rank + 1]))
    equal = len(set(counts)) == 1
    results = {"world_size": torch.tensor(dist.get_world_size())}
    kinds = ["gathered", "gathered, texts repeat", "gathered in blocks", "gathered in blocks, texts repeat"]
    kinds += ["sigmoid", "sigmoid, texts repeat", "sigmoid in blocks", "sigmoid in blocks, texts repeat"]
    kinds += ["own rows kept", "no gradient", "reference"] if equal else []
    for kind in kinds:
        encoders = make_encoders()
        embeds, scale = (encoders["image"](image[rows]), encoders["text"](text[rows])), encoders["scale"]
        positives = ids[rows] if "repeat" in kind else None
        if kind.startswith("sigmoid"):
            chunked_sigmoid.CHUNK_ROWS = 2 if "blocks" in kind else 1024
            loss = gathered_sigmoid_loss(*embeds, scale, encoders["bias"], positives=positives, equal_counts=equal)
        elif kind.startswith("gathered"):
            gather.CHUNKED_FROM = 2 if "blocks" in kind else 4096
            loss = gathered_contrastive_loss(*embeds, scale, positives=positives, equal_counts=equal)
        elif kind == "reference":
            loss = contrastive_loss(*embeds, scale)
        else:
            loss = wrong_loss(kind, *embeds, scale, rows)
        loss.backward()
        mean = loss.detach().clone()
        dist.all_reduce(mean)
        results[f"{kind}/loss"] = mean / len(counts)
        for name, encoder in encoders.items():
            parameter = getattr(encoder, "weight", encoder)
            gradient = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad.clone()
            dist.all_reduce(gradient)
            results[f"{kind}/{name}"] = gradient / len(counts)
    if rank == 0:
        torch.save(results, Path(folder) / "results.pt")
    dist.barrier()
    dist.destroy_process_group()
