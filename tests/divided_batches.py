"""Objectives of several kinds and a batch for each, to be embedded as a whole and in parts."""

import os
from pathlib import Path

import torch
import torch.distributed as dist
from synthetic import synthetic_model
from torch import nn

from adaptor_hf.objectives import AdaptorObjective, Gather, Objective, gathered_contrastive_loss
from adaptor_hf.training.grad_cache import backward_in_parts
from adaptor_hf.training.pair_batches import split_inputs

ROWS = 23


class WithHead(Objective):
    """A projection and a temperature of its own."""

    name = "with_head"

    def __init__(self):
        super().__init__()
        self.head = nn.Linear(48, 16)
        self.temperature = nn.Parameter(torch.tensor(1.5))

    def forward(self, encoded, rows, gather):
        image, text = self.head(encoded.image.pooled), self.head(encoded.text.pooled)
        near = gathered_contrastive_loss(image, text, self.temperature, gather=gather)
        counts = gather.counts(rows["weight"])
        far = gather.share(counts) * (rows["weight"] * (image - text).pow(2).sum(1)).sum()
        return {"loss": near + 0.1 * far + 0.01 * encoded.logit_scale, "near": near, "far": far}


class Tokens(WithHead):
    """Each text asks the tokens of its image; the tokens of texts are averaged where they are there."""

    name = "tokens"

    def forward(self, encoded, rows, gather):
        image, text = self.head(encoded.image.tokens), self.head(encoded.text.pooled)
        attention = (image @ text[:, :, None]).softmax(1)
        mask = encoded.text.mask[..., None].to(image.dtype)
        words = self.head((encoded.text.tokens * mask).sum(1) / mask.sum(1))
        loss = gathered_contrastive_loss((attention * image).sum(1), text + words, self.temperature, gather=gather)
        return {"loss": loss}


class Unpaired(WithHead):
    """More images than texts: pairs by their numbers, over all processes, and all images towards one vector."""

    name = "unpaired"

    def forward(self, encoded, rows, gather):
        image, text = gather.rows(self.head(encoded.image.pooled)), gather.rows(self.head(encoded.text.pooled))
        same = gather.rows(encoded.image.index)[:, None] == gather.rows(encoded.text.index)[None]
        logits = encoded.logit_scale.exp() * image @ text.T
        # Every process has all rows: the mean over processes is the same number.
        paired = -(logits.log_softmax(1) * same).sum() / same.sum()
        return {"loss": paired + image.mean(1).pow(2).mean(), "paired": paired}


KINDS = {"adaptor": AdaptorObjective, "own parameters": WithHead, "tokens": Tokens, "unpaired": Unpaired}


def model_of(kind: str, dropout: float = 0.0) -> tuple[nn.Module, Objective]:
    model = synthetic_model(hidden_dropout_prob=dropout, attention_probs_dropout_prob=dropout).double().train()
    torch.manual_seed(1)
    objective = KINDS[kind]().double()
    if kind == "adaptor":
        objective.positives, objective.image_to_text_weight = "text", 0.75
    return model, objective


def batch_of(kind: str) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    tokens, texts = kind == "tokens", 8 if kind == "unpaired" else ROWS
    batch = {
        "image_embeds": normal(ROWS, *([5] if tokens else []), 20),
        "text_embeds": normal(texts, *([4] if tokens else []), 28),
        "text_row": torch.randint(0, ROWS // 2, (texts,), generator=generator),
        "study": torch.arange(ROWS),
        "weight": torch.rand(ROWS, generator=generator, dtype=torch.float64),
    }
    if tokens:
        lengths = torch.randint(2, 5, (ROWS, 1), generator=generator)
        batch["text_attention_mask"] = (torch.arange(4) < lengths).long()
    if kind == "unpaired":
        batch["image_index"] = torch.arange(ROWS) % 10
        batch["text_index"] = torch.arange(texts)
    return batch


def rows_of_rank(batch: dict[str, torch.Tensor], rank: int) -> dict[str, torch.Tensor]:
    """What one of two processes holds: 13 and 10 rows, and of texts that are fewer 3 and 5."""
    cuts = {ROWS: 13, 8: 3}
    return {
        name: value[: cuts[len(value)]] if rank == 0 else value[cuts[len(value)] :] for name, value in batch.items()
    }


def step(model, objective, batch, part_size, gather=None, wrapped=None, **kwargs) -> dict[str, torch.Tensor]:
    """Gradients of a batch as a whole (`part_size` None) or in parts."""
    gather = Gather() if gather is None else gather
    rows, _ = split_inputs(batch)
    if part_size is None:
        terms = objective(objective.encode(model, batch), rows, gather)
        terms["loss"].backward()
        return terms

    def loss_function(encoded):
        encoded.logit_scale = model.get_logit_scale()
        return objective(encoded, rows, gather)

    def encode(part):
        return objective.encode(model, part) if wrapped is None or not torch.is_grad_enabled() else wrapped(part)

    return backward_in_parts(
        batch, part_size, encode, loss_function, [*objective.parameters(), model.logit_scale], **kwargs
    )


def gradients_of(model, objective) -> dict[str, torch.Tensor]:
    """Of all parameters; zeros where there is none."""
    parameters = {f"model.{name}": value for name, value in model.named_parameters()}
    parameters |= {f"objective.{name}": value for name, value in objective.named_parameters()}
    return {name: torch.zeros_like(one) if one.grad is None else one.grad for name, one in parameters.items()}


class Joint(nn.Module):
    """What DistributedDataParallel wraps: model and objective."""

    def __init__(self, model: nn.Module, objective: Objective):
        super().__init__()
        self.model, self.objective = model, objective

    def forward(self, batch: dict[str, torch.Tensor]):
        return self.objective.encode(self.model, batch)


def run(rank: int, folder: str) -> None:
    """Two steps of each kind in parts on one of two gloo ranks; writes the second one's averaged gradients."""
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": "2"}
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    results = {}
    for kind in KINDS:
        model, objective = model_of(kind)
        wrapped = nn.parallel.DistributedDataParallel(Joint(model, objective))
        batch = rows_of_rank(batch_of(kind), rank)
        # The second step waits for all gradients of the first one.
        for _ in range(2):
            wrapped.zero_grad()
            terms = step(model, objective, batch, 4, Gather.of_processes(), wrapped, no_sync=wrapped.no_sync)
        loss = terms["loss"].clone()
        dist.all_reduce(loss)
        results |= {f"{kind}/{name}": value for name, value in gradients_of(model, objective).items()}
        results[f"{kind}/loss"] = loss / 2
    torch.save(results, Path(folder) / f"rank-{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()
