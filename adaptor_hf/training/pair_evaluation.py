"""Retrieval and loss of a model on a split of pairs."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset

from ..evaluation.retrieval import alignment_and_uniformity, retrieval_metrics
from ..modeling_adaptor import AdaptorModel
from ..objectives import contrastive_loss
from .pair_batches import PairCollator, positive_ids, split_inputs


class Retrieval:
    """
    Evaluator: retrieval between all images and all distinct texts of a split, alignment, uniformity, and the loss.

    The loss is a mean over batches of one fixed size (`loss_batch_size`, at most 1,024; a ragged rest is left out), for
    it grows with the number of negatives. Of data of several sources also the retrieval in each, among its own images
    and texts alone: `NAME_mean_recall` and so on, and `NAME_num_pairs`. All other names are of all sources together.

    Args:
        batch_size (`int`): Pairs that go through the model together.
        positives (`str`): As of [`AdaptorTrainingArguments`], for the loss.
        collator (`Callable`, *optional*): As of [`embed_pairs`].
    """

    def __init__(self, batch_size: int = 1024, positives: str = "text", collator: Callable | None = None):
        self.batch_size, self.positives, self.collator = batch_size, positives, collator

    def __call__(self, model: AdaptorModel, dataset: Dataset) -> dict[str, float]:
        embeds = embed_pairs(model, dataset, self.batch_size, self.collator)
        return self.measure(model, embeds, getattr(dataset, "source_names", ()))

    def measure(
        self, model: AdaptorModel, embeds: dict[str, torch.Tensor], sources: Sequence[str] = ()
    ) -> dict[str, float]:
        """The metrics of what [`embed_pairs`] gives; `sources` are the names of the codes in its column `source`."""
        metrics, _ = retrieval_metrics(embeds["image_embeds"], embeds["text_embeds"], embeds["text_row"])
        metrics |= alignment_and_uniformity(embeds["image_embeds"], embeds["text_embeds"])
        metrics |= fixed_batch_loss(model, embeds, positive_ids(embeds, self.positives))
        num_pairs = len(embeds["image_embeds"])
        metrics |= {"num_pairs": num_pairs, "logit_scale": model.get_logit_scale().exp().item()}
        of_sources = len(sources) > 1 and "source" in embeds
        return (source_metrics(embeds, sources) if of_sources else {}) | metrics


def source_metrics(embeds: dict[str, torch.Tensor], sources: Sequence[str]) -> dict[str, float]:
    """
    Retrieval in each source, among its own images and texts; nothing of a source without rows.

    Args:
        embeds (`dict`): As of [`embed_pairs`], with `source` `(N,)`.
        sources (`Sequence[str]`): Name of each code.
    """
    found = {}
    for code, name in enumerate(sources):
        rows = embeds["source"] == code
        if not rows.any():
            continue
        mine = (embeds[column][rows] for column in ("image_embeds", "text_embeds", "text_row"))
        metrics, _ = retrieval_metrics(*mine)
        found |= {f"{name}_{metric}": value for metric, value in metrics.items()}
        found[f"{name}_num_pairs"] = int(rows.sum())
    return found


@torch.no_grad()
def embed_pairs(
    model: AdaptorModel, dataset: Dataset | list[Any], batch_size: int = 1024, collator: Callable | None = None
) -> dict[str, torch.Tensor]:
    """
    Embeddings of every pair of a dataset, in evaluation mode, on the model's device.

    Args:
        model (`AdaptorModel`): With towers where the dataset gives `pixel_values` or `input_ids`.
        dataset (`Dataset` or `list`): Read as a `DataLoader` does: by `__getitems__` where it has one, else by row.
        batch_size (`int`): Pairs that go through the model together.
        collator (`Callable`, *optional*): That of training; by default [`PairCollator`].

    Returns:
        `dict[str, torch.Tensor]`: `image_embeds` and `text_embeds` `(N, hidden_size)` float32, `text_row`, and `study`,
        `row`, `source` `(N,)` where the dataset gives them.

    Raises:
        ValueError: the dataset is empty.
    """
    was_training = model.training
    model.eval()
    # With a generator of its own it draws nothing from the one that dropout draws from.
    loader = DataLoader(
        dataset, batch_size=batch_size, collate_fn=collator or PairCollator(), generator=torch.Generator()
    )
    batches = []
    for batch in loader:
        batch = {name: value.to(model.device) for name, value in batch.items() if isinstance(value, torch.Tensor)}
        rows, inputs = split_inputs(batch)
        output = model(**inputs, return_logits=False)
        batches.append({"image_embeds": output.image_embeds.float(), "text_embeds": output.text_embeds.float()} | rows)
    model.train(was_training)
    if not batches:
        raise ValueError("The split to evaluate on is empty.")
    return {name: torch.cat([batch[name] for batch in batches]) for name in batches[0]}


def fixed_batch_loss(
    model: AdaptorModel, embeds: dict[str, torch.Tensor], positives: torch.Tensor | None
) -> dict[str, float]:
    """Mean contrastive loss over batches of one size, in the dataset's order."""
    size = min(1024, len(embeds["image_embeds"]))
    losses = [
        contrastive_loss(
            embeds["image_embeds"][start : start + size],
            embeds["text_embeds"][start : start + size],
            model.get_logit_scale().detach(),
            image_to_text_weight=model.config.image_to_text_weight,
            normalize=False,
            positives=None if positives is None else positives[start : start + size],
        )
        for start in range(0, len(embeds["image_embeds"]) - size + 1, size)
    ]
    return {"loss": torch.stack(losses).mean().item(), "loss_batch_size": size}


__all__ = ["Retrieval", "embed_pairs", "fixed_batch_loss", "source_metrics"]
