"""Objectives that gather a part of their rows, on ranks whose batches have equally many pairs."""

import os
from pathlib import Path

import torch
import torch.distributed as dist
from divided_batches import WithHead, gradients_of
from synthetic import synthetic_model
from torch import nn

from adaptor_hf.objectives import AdaptorObjective, Encoded, Objective, Side, gathered_contrastive_loss
from adaptor_hf.training.trained_together import TrainedTogether

ROWS = 20


class Distinct(WithHead):
    """The distinct texts of all processes are the classes: here ten of the first one and four of the other."""

    name = "distinct"

    def forward(self, encoded, rows, gather):
        ids, place = torch.unique(rows["text_row"], return_inverse=True)
        first = torch.stack([(place == number).nonzero()[0, 0] for number in range(len(ids))])
        keys, key_ids = gather.rows(self.head(encoded.text.pooled[first])), gather.rows(ids)
        logits = self.temperature * self.head(encoded.image.pooled) @ keys.T
        same = key_ids[None] == rows["text_row"][:, None]
        losses = -(logits.log_softmax(1) * same).sum(1) / same.sum(1)
        return {"loss": gather.share(gather.counts(losses)) * losses.sum()}


class Kept(WithHead):
    """Pairs that a column keeps, among themselves: on some processes more than on others, on some none."""

    name = "kept"

    def forward(self, encoded, rows, gather):
        images, texts = self.head(encoded.image.pooled[rows["kept"]]), self.head(encoded.text.pooled[rows["kept"]])
        counts = gather.counts(images)
        logits = self.temperature * images @ gather.rows(texts, counts).T
        start = gather.start(counts)
        own = torch.arange(start, start + len(images))
        loss = gather.share(counts) * nn.functional.cross_entropy(logits, own, reduction="sum")
        return {"loss": loss + 0.01 * encoded.logit_scale}


class KeptByThePapersLoss(WithHead):
    name = "kept_by_the_papers_loss"

    def forward(self, encoded, rows, gather):
        images, texts = self.head(encoded.image.pooled[rows["kept"]]), self.head(encoded.text.pooled[rows["kept"]])
        return {"loss": gathered_contrastive_loss(images, texts, self.temperature, gather=gather)}


class FewerOfThePapers(AdaptorObjective):
    name = "fewer_of_the_papers"

    def __init__(self):
        super().__init__("pair")
        self.image_to_text_weight = 0.75

    def forward(self, encoded, rows, gather):
        sides = Side(encoded.image.pooled[rows["kept"]]), Side(encoded.text.pooled[rows["kept"]])
        return super().forward(Encoded(*sides, logit_scale=encoded.logit_scale), {}, gather)


KEPT = {
    "more": torch.arange(ROWS) % 3 == 0,
    "none on one": torch.arange(ROWS) < 7,
    "none": torch.zeros(ROWS, dtype=torch.bool),
}
"""7 on the first of two ranks and 6 or 0 on the second; 4 and 3 of the first kind."""
CASES = [
    (Distinct, "more"),
    (Kept, "more"),
    (Kept, "none on one"),
    (Kept, "none"),
    (KeptByThePapersLoss, "more"),
    (KeptByThePapersLoss, "none on one"),
    (FewerOfThePapers, "more"),
    (FewerOfThePapers, "none on one"),
]


def outcome(made: type[Objective], kept: str, rows: slice) -> dict[str, torch.Tensor]:
    """Loss and gradients of these rows of a batch, as a trainer with equally many pairs a process asks for them."""
    model = synthetic_model(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0).double().train()
    torch.manual_seed(1)
    objective = made().double()
    generator = torch.Generator().manual_seed(0)
    batch = {
        "image_embeds": torch.randn(ROWS, 20, generator=generator, dtype=torch.float64),
        "text_embeds": torch.randn(ROWS, 28, generator=generator, dtype=torch.float64),
        "text_row": torch.where(torch.arange(ROWS) < ROWS // 2, torch.arange(ROWS), ROWS + torch.arange(ROWS) // 3),
        "kept": KEPT[kept],
    }
    together = TrainedTogether(model, objective, equal_counts=True)
    loss = together({name: value[rows] for name, value in batch.items()})["loss"]
    loss.backward()
    return {"loss": loss.detach().clone()} | gradients_of(model, objective)


def run(rank: int, folder: str) -> None:
    """Each case on one of two gloo ranks; writes the means of both."""
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": "2"}
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    found = {}
    for number, (made, kept) in enumerate(CASES):
        mine = outcome(made, kept, slice(ROWS // 2) if rank == 0 else slice(ROWS // 2, None))
        for value in mine.values():
            dist.all_reduce(value)
        found[number] = {name: value / 2 for name, value in mine.items()}
    torch.save(found, Path(folder) / f"rank-{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()
