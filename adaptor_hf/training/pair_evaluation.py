"""Evaluators of a split of pairs that is embedded once for all of them: retrieval, and the loss of an objective."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING

import torch
from torch import nn
from torch.utils.data import Dataset

from ..embeddings.ranks import Ranks
from ..embeddings.reader import EmbeddingCache
from ..evaluation.retrieval import alignment_and_uniformity, retrieval_metrics
from ..modeling_adaptor import AdaptorModel
from ..objectives import AdaptorObjective, Encoded, Gather, Objective, Side, SigLIPObjective
from ..objectives.known import is_of_package
from .arguments import more_is_better
from .base_trainer import Evaluator
from .needs import with_needs
from .pair_batches import Columns, split_inputs
from .pair_embeddings import PairEmbeddings, as_they_were, embed_pairs
from .trained_together import encoded_by

if TYPE_CHECKING:
    from .trainer import AdaptorTrainer

# Rows whose loss is taken together where the embeddings are enough for it.
LOSS_ROWS = 1024


class PairEvaluator:
    """
    Metrics of a model on a split of pairs that is embedded once for all evaluators of a trainer.

    A subclass writes `metric_names` and `measure`; the rest has defaults. It is called as a function of model and data
    set, too, as every evaluator is.

    Attributes:
        columns (`tuple[str, ...]`): Columns of batches with several values a row that `measure` reads, such as
            `targets`. Those of one value a row, (B,), are always there.
    """

    columns: tuple[str, ...] = ()

    def metric_names(self, sources: Sequence[str] = ()) -> dict[str, bool]:
        """
        What `measure` gives that a best model may be chosen by, and whether more of it is better.

        Args:
            sources (`Sequence[str]`): Names of the sources of the data, where there are several.
        """
        raise NotImplementedError(f"{type(self).__name__} has no metric_names")

    def measure(self, model: AdaptorModel, embeds: PairEmbeddings, dataset: Dataset) -> dict[str, float]:
        """
        The metrics. Of several processes the first one alone is asked, and tells the others.

        Args:
            model (`AdaptorModel`): In evaluation mode; no gradients are recorded.
            embeds ([`PairEmbeddings`]): Of all rows.
            dataset (`Dataset`): The split that they are of.
        """
        raise NotImplementedError(f"{type(self).__name__} has no measure")

    def for_objective(self, objective: Objective) -> PairEvaluator:
        """This evaluator for a trainer that minimises an objective; the same one where that is nothing to it."""
        return self

    def check(self, model: AdaptorModel, dataset: Dataset) -> None:
        """Called before the first step, on the first process: raise what would otherwise be raised after an epoch."""

    def of_batch(
        self, model: AdaptorModel, batch: dict[str, torch.Tensor], encoded: Encoded
    ) -> dict[str, torch.Tensor]:
        """Scalars of a whole batch, taken while its tokens and columns are there; see `PairEmbeddings.of_batches`."""
        return {}

    def modules(self) -> tuple[nn.Module, ...]:
        """What beside the model computes: in evaluation mode meanwhile, and afterwards as it was."""
        return ()

    def __call__(self, model: AdaptorModel, dataset: Dataset) -> dict[str, float]:
        return evaluate_pairs(model, dataset, (self,))[1]


class Retrieval(PairEvaluator):
    """
    Retrieval between all images and all distinct texts of a split, alignment, uniformity, and the loss of an objective.

    The loss is a mean over batches of one fixed size (`loss_batch_size`; a ragged rest is left out), for it grows with
    the number of negatives, and so are the objective's other terms, under their own names. Where embeddings are enough
    for it, these are batches of 1,024 pairs, or all of fewer. An objective that reads more (tokens, views, columns) is
    asked for each batch as it is embedded: `per_device_eval_batch_size` rows. Either way each batch counts alone, on
    any number of processes, and nothing of the objective's state is changed.

    Of data of several sources also the retrieval in each, among its own images and texts alone: `NAME_mean_recall` and
    so on, and `NAME_num_pairs`. All other names are of all sources together.

    Args:
        objective (`Objective`, *optional*): After its `setup`. By default that of the trainer, and without one that of
            the model's own loss: the paper's, or with a `logit_bias` SigLIP's.
        positives (`str`): Of the objective without a trainer, as of [`AdaptorTrainingArguments`].

    Raises:
        TypeError: `objective` is no `Objective`.
    """

    def __init__(self, objective: Objective | None = None, *, positives: str = "text"):
        if objective is not None and not isinstance(objective, Objective):
            raise TypeError(f"objective must be an Objective, got {type(objective).__name__}.")
        self.objective, self.positives = objective, positives

    def metric_names(self, sources: Sequence[str] = ()) -> dict[str, bool]:
        eye = torch.eye(2)
        ranked = retrieval_metrics(eye, eye, torch.arange(2))[0]
        names = [*ranked, *alignment_and_uniformity(eye, eye), "loss"]
        names += [f"{source}_{name}" for source in sources for name in ranked]
        return {name: more_is_better(name) for name in names}

    def for_objective(self, objective: Objective) -> Retrieval:
        return self if self.objective is not None else Retrieval(objective, positives=self.positives)

    def modules(self) -> tuple[nn.Module, ...]:
        return () if self.objective is None else (self.objective,)

    def of_batch(
        self, model: AdaptorModel, batch: dict[str, torch.Tensor], encoded: Encoded
    ) -> dict[str, torch.Tensor]:
        objective, (rows, _) = self.objective, split_inputs(batch)
        if objective is None or _embeddings_are_enough(objective, rows, encoded):
            return {}
        own = encoded if _is_default(objective.encode) else encoded_by(objective, model, batch)
        return objective(own, rows, Gather())

    def measure(self, model: AdaptorModel, embeds: PairEmbeddings, dataset: Dataset) -> dict[str, float]:
        metrics, _ = retrieval_metrics(embeds["image_embeds"], embeds["text_embeds"], embeds["text_row"])
        metrics |= alignment_and_uniformity(embeds["image_embeds"], embeds["text_embeds"])
        if "loss" in embeds.of_batches:
            terms = {name: values.mean().item() for name, values in embeds.of_batches.items()}
            terms["loss_batch_size"] = embeds.batch_rows
        else:
            objective = objective_of(model, self.positives) if self.objective is None else self.objective
            terms = fixed_batch_terms(objective, model, embeds)
        num_pairs = len(embeds["image_embeds"])
        terms |= {"num_pairs": num_pairs, "logit_scale": model.get_logit_scale().exp().item()}
        sources = getattr(dataset, "source_names", ())
        of_sources = source_metrics(embeds, sources) if len(sources) > 1 and "source" in embeds else {}
        if taken := sorted((metrics | of_sources).keys() & terms.keys()):
            raise ValueError(
                f"The objective's term {taken[0]!r} has the name of a metric of Retrieval: call it something else."
            )
        return of_sources | metrics | terms


def _is_default(encode: Callable) -> bool:
    return getattr(encode, "__func__", None) is Objective.encode


def _embeddings_are_enough(objective: Objective, rows: dict[str, torch.Tensor], encoded: Encoded) -> bool:
    """Whether pooled embeddings and columns of one value a row are all that an objective reads of a batch."""
    if not (objective.needs <= {"pairs"} and _is_default(objective.encode)):
        return False
    if any(side.index is not None for _, side in encoded.sides()):
        return False
    if is_of_package(objective):
        return True
    # What a user's objective reads of tokens and of other columns nobody knows.
    return all(side.tokens is None for _, side in encoded.sides()) and all(
        value.ndim == 1 and not name.endswith("_index") for name, value in rows.items()
    )


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


def objective_of(model: AdaptorModel, positives: str) -> Objective:
    """What a model's `forward` takes for its loss: the paper's, or SigLIP's of one with a `logit_bias`."""
    objective = (AdaptorObjective if getattr(model, "logit_bias", None) is None else SigLIPObjective)(positives)
    objective.setup(model, None)
    return objective


def fixed_batch_terms(objective: Objective, model: AdaptorModel, embeds: dict[str, torch.Tensor]) -> dict[str, float]:
    """Mean of each term of an objective over batches of one size, in the dataset's order, and that size."""
    size = min(LOSS_ROWS, len(embeds["image_embeds"]))
    logit_bias = getattr(model, "logit_bias", None)
    found: dict[str, list[torch.Tensor]] = {}
    for start in range(0, len(embeds["image_embeds"]) - size + 1, size):
        part = Columns({name: values[start : start + size] for name, values in embeds.items()})
        sides = Side(part.pop("image_embeds")), Side(part.pop("text_embeds"))
        encoded = Encoded(*sides, logit_scale=model.get_logit_scale(), logit_bias=logit_bias)
        for name, value in objective(encoded, part, Gather()).items():
            found.setdefault(name, []).append(value)
    return {name: torch.stack(values).mean().item() for name, values in found.items()} | {"loss_batch_size": size}


@torch.no_grad()
def evaluate_pairs(
    model: AdaptorModel,
    dataset: Dataset,
    evaluators: Sequence[Evaluator],
    objective: Objective | None = None,
    batch_size: int = 1024,
    collator: Callable | None = None,
    divided: bool = False,
    *,
    num_workers: int = 0,
    embeds: bool = False,
) -> tuple[PairEmbeddings | None, dict[str, float]]:
    """
    The metrics of all evaluators; the split is embedded once for those that measure embeddings.

    Args:
        evaluators (`Sequence[Evaluator]`): [`PairEvaluator`]s, and functions of model and data set.
        objective (`Objective`, *optional*): What the model is trained with, for those that ask for its loss.
        model, dataset, batch_size, collator, divided, num_workers: As of [`embed_pairs`].
        embeds (`bool`): Embed the split even if no evaluator asks for it.

    Returns:
        `tuple`: The embeddings, if the split was embedded, and the metrics.

    Raises:
        ValueError: two evaluators give a metric of one name.
    """
    if objective is not None:
        evaluators = [one.for_objective(objective) if isinstance(one, PairEvaluator) else one for one in evaluators]
    of_pairs = [evaluator for evaluator in evaluators if isinstance(evaluator, PairEvaluator)]
    found = None
    if of_pairs or embeds:
        found = embed_pairs(
            model, dataset, batch_size, collator, divided,
            evaluators=of_pairs, num_workers=num_workers,
        )  # fmt: skip
    metrics: dict[str, float] = {}
    modules = [module for evaluator in of_pairs for module in evaluator.modules()]
    for evaluator in evaluators:
        if isinstance(evaluator, PairEvaluator):

            def measure(evaluator: PairEvaluator = evaluator) -> dict[str, float]:
                with as_they_were(model, *modules):
                    return evaluator.measure(model, found, dataset)

            # One that decides: processes that disagree in a last digit would keep different checkpoints.
            values = Ranks().on_main(measure) if divided else measure()
        else:
            values = evaluator(model, dataset)
        refuse_same_names(metrics, values)
        metrics |= values
    return found, metrics


def evaluate_in_training(
    trainer: AdaptorTrainer, dataset: Dataset, embeds: bool = False
) -> tuple[PairEmbeddings | None, dict[str, float]]:
    """[`evaluate_pairs`] as a trainer has been told to, by all its processes together."""
    args, dataset = trainer.args, with_needs(trainer.objective, dataset, trainer.model.config)
    return evaluate_pairs(
        trainer.model,
        dataset,
        trainer.evaluators,
        trainer.objective,
        batch_size=args.per_device_eval_batch_size,
        collator=trainer.eval_collator or trainer.data_collator,
        divided=args.world_size > 1,
        # A cache is read where it lies.
        num_workers=0 if isinstance(dataset, EmbeddingCache) else args.dataloader_num_workers,
        embeds=embeds,
    )


def refuse_same_names(*names: Iterable[str]) -> None:
    """Raise ValueError where several evaluators give a metric of one name."""
    counts = Counter(name for some in names for name in dict.fromkeys(some))
    if twice := [name for name, count in counts.items() if count > 1]:
        raise ValueError(
            f"Several evaluators give the metric {twice[0]!r}: only one of the values would be seen. Leave one of them "
            "out, or give it another name."
        )


__all__ = [
    "PairEmbeddings",
    "PairEvaluator",
    "Retrieval",
    "embed_pairs",
    "evaluate_in_training",
    "evaluate_pairs",
    "fixed_batch_terms",
    "refuse_same_names",
    "source_metrics",
]
