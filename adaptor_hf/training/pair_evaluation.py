"""Retrieval and loss of a model on a split of pairs."""

import torch
from torch.utils.data import Dataset

from ..evaluation.retrieval import alignment_and_uniformity, retrieval_metrics
from ..modeling_adaptor import AdaptorModel
from ..objectives import contrastive_loss
from .pair_batches import POSITIVE_COLUMN, ROW_COLUMNS


class Retrieval:
    """
    Evaluator: retrieval between all images and all distinct texts of a split, alignment, uniformity, and the loss.

    The loss is a mean over batches of one fixed size (`loss_batch_size`, at most 1,024; a ragged rest is left out), for
    it grows with the number of negatives.

    Args:
        batch_size (`int`): Pairs that go through the model together.
        positives (`str`): As of [`AdaptorTrainingArguments`], for the loss.
    """

    def __init__(self, batch_size: int = 1024, positives: str = "text"):
        self.batch_size, self.column = batch_size, POSITIVE_COLUMN[positives]

    def __call__(self, model: AdaptorModel, dataset: Dataset) -> dict[str, float]:
        embeds = embed_pairs(model, dataset, self.batch_size)
        metrics, _ = retrieval_metrics(embeds["image_embeds"], embeds["text_embeds"], embeds["text_row"])
        metrics |= alignment_and_uniformity(embeds["image_embeds"], embeds["text_embeds"])
        metrics |= fixed_batch_loss(model, embeds, self.column)
        return metrics | {"num_pairs": len(dataset), "logit_scale": model.get_logit_scale().exp().item()}


@torch.no_grad()
def embed_pairs(model: AdaptorModel, dataset: Dataset, batch_size: int = 1024) -> dict[str, torch.Tensor]:
    """
    Embeddings of every pair of a dataset, in evaluation mode, on the model's device.

    Returns:
        `dict[str, torch.Tensor]`: `image_embeds` and `text_embeds` `(N, hidden_size)` float32, and `text_row`, `study`,
        `row` `(N,)` where the dataset gives them.
    """
    if len(dataset) == 0:
        raise ValueError("The split to evaluate on is empty.")
    was_training = model.training
    model.eval()
    batches = []
    for start in range(0, len(dataset), batch_size):
        batch = dataset.__getitems__(list(range(start, min(start + batch_size, len(dataset)))))
        batch = {name: value.to(model.device) for name, value in batch.items()}
        rows = {name: batch.pop(name) for name in ROW_COLUMNS if name in batch}
        output = model(**batch, return_logits=False)
        batches.append({"image_embeds": output.image_embeds.float(), "text_embeds": output.text_embeds.float()} | rows)
    model.train(was_training)
    return {name: torch.cat([batch[name] for batch in batches]) for name in batches[0]}


def fixed_batch_loss(model: AdaptorModel, embeds: dict[str, torch.Tensor], column: str | None) -> dict[str, float]:
    """Mean contrastive loss over batches of one size, in the dataset's order."""
    size = min(1024, len(embeds["image_embeds"]))
    losses = [
        contrastive_loss(
            embeds["image_embeds"][start : start + size],
            embeds["text_embeds"][start : start + size],
            model.get_logit_scale().detach(),
            image_to_text_weight=model.config.image_to_text_weight,
            normalize=False,
            positives=embeds[column][start : start + size] if column in embeds else None,
        )
        for start in range(0, len(embeds["image_embeds"]) - size + 1, size)
    ]
    return {"loss": torch.stack(losses).mean().item(), "loss_batch_size": size}


__all__ = ["Retrieval", "embed_pairs", "fixed_batch_loss"]
