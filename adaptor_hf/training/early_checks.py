"""What Trainer would find out only after the data was read: trackers, optimizer, schedule, the metric of the best."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import torch

from ..configuration_adaptor import AdaptorConfig
from ..modeling_adaptor import AdaptorModel
from ..objectives import Objective, known_objectives
from .arguments import AdaptorTrainingArguments

if TYPE_CHECKING:
    from torch.utils.data import Dataset

    from .base_trainer import Evaluator
    from .pair_evaluation import PairEvaluator


def check_trackers(names: Iterable[str]) -> None:
    """
    Check that `--report_to` names trackers that transformers knows and that are installed.

    Raises:
        ValueError: naming those that would do.
    """
    from transformers.integrations import get_available_reporting_integrations
    from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK

    installed = get_available_reporting_integrations()
    for name in names:
        if name not in INTEGRATION_TO_CALLBACK:
            close = difflib.get_close_matches(name, INTEGRATION_TO_CALLBACK, n=1)
            meant = f" Did you mean {close[0]}?" if close else ""
            raise ValueError(
                f"--report_to {name!r}: there is no such tracker.{meant} There are: "
                f"{', '.join(sorted(INTEGRATION_TO_CALLBACK))}, and none."
            )
        if name not in installed:
            raise ValueError(
                f"--report_to {name!r}: {name!r} is not installed. Installed: {', '.join(installed) or 'none'}. "
                "Install it, or leave the option out."
            )


def check_best_metric(
    training: AdaptorTrainingArguments,
    sources: Iterable[str] = (),
    evaluators: Iterable[PairEvaluator] | None = None,
) -> None:
    """
    Check that `--metric_for_best_model` is what an evaluation gives, and that the right way counts as better.

    Args:
        training (`AdaptorTrainingArguments`): Of the run.
        sources (`Iterable[str]`): Names of several sources, each of which has retrieval metrics of its own.
        evaluators (`Iterable[PairEvaluator]`, *optional*): By default those of a run, [`Retrieval`] alone.

    Raises:
        ValueError: naming the metrics that are close, or the option to add.
    """
    given = training.metric_for_best_model
    if given is None:
        return
    known = evaluation_metrics(sources, evaluators)
    name = given.removeprefix("eval_")
    if name not in known:
        close = difflib.get_close_matches(name, known, n=3) or ["mean_recall", "loss"]
        raise ValueError(
            f"--metric_for_best_model {given!r}: evaluation gives no such metric. Did you mean {' or '.join(close)}? "
            f"There are: {', '.join(known)}."
        )
    if training.greater_is_better is not None and training.greater_is_better != known[name]:
        better = "more" if known[name] else "less"
        raise ValueError(
            f"--metric_for_best_model {given}: {better} of it is better. Add --greater_is_better {known[name]}."
        )


def evaluation_metrics(
    sources: Iterable[str] = (), evaluators: Iterable[PairEvaluator] | None = None
) -> dict[str, bool]:
    """
    What the evaluators give to choose by, and whether more of it is better; arguments as of [`check_best_metric`].

    Raises:
        ValueError: two evaluators give a metric of one name.
    """
    from .pair_evaluation import Retrieval, refuse_same_names

    asked = (Retrieval(),) if evaluators is None else evaluators
    names = [evaluator.metric_names(tuple(sources)) for evaluator in asked]
    refuse_same_names(*names)
    return {name: better for some in names for name, better in some.items()}


def check_evaluation(
    training: AdaptorTrainingArguments,
    model: AdaptorModel,
    dataset: Dataset | dict[str, Dataset] | None,
    evaluators: Sequence[Evaluator],
    objective: Objective,
) -> None:
    """
    Check before the first step what an evaluation would say after an epoch. All processes must make this call.

    Args:
        training (`AdaptorTrainingArguments`), model, dataset: Of the run; the split to evaluate on. Of several splits,
            whose metrics have other names, nothing is checked.
        evaluators (`Sequence[Evaluator]`): What functions give is known when they are called, and so are an
            objective's own terms: with these any `metric_for_best_model` is taken.
        objective (`Objective`): That is trained with.

    Raises:
        ValueError: two evaluators give a metric of one name, none gives the metric of the best model, or what an
            evaluator finds wrong with model and data.
    """
    from ..embeddings.ranks import Ranks
    from .pair_evaluation import PairEvaluator

    if training.eval_strategy == "no" or not evaluators or isinstance(dataset, dict | None):
        return
    of_pairs = [one for one in evaluators if isinstance(one, PairEvaluator)]
    sources = getattr(dataset, "source_names", ())
    evaluation_metrics(sources, of_pairs)
    if len(of_pairs) == len(evaluators) and type(objective) in known_objectives().values():
        check_best_metric(training, sources, of_pairs)
    Ranks().on_main(lambda: [one.check(model, dataset) for one in of_pairs] and None)


def _small_model() -> AdaptorModel:
    shape = {"vision_hidden_size": 2, "text_hidden_size": 2, "hidden_size": 2, "num_attention_heads": 1}
    # Whatever is drawn here changes nothing of the run.
    with torch.random.fork_rng(devices=[]):
        return AdaptorModel(AdaptorConfig(**shape, aligner="linear"))


def check_optimizer(training: AdaptorTrainingArguments) -> None:
    """
    Make the optimizer and the schedule of the options for one parameter: what they lack is said now.

    Raises:
        ValueError: naming the option.
    """
    from transformers import Trainer
    from transformers.optimization import get_scheduler

    try:
        Trainer.get_optimizer_cls_and_kwargs(training, _small_model())
    except (ImportError, ValueError, RuntimeError) as error:
        raise ValueError(f"--optim {getattr(training.optim, 'value', training.optim)}: {error}") from error
    parameter = torch.nn.Parameter(torch.zeros(1))
    kwargs = training.lr_scheduler_kwargs
    try:
        get_scheduler(
            training.lr_scheduler_type,
            torch.optim.SGD([parameter], lr=training.learning_rate),
            num_warmup_steps=1,
            num_training_steps=10,
            scheduler_specific_kwargs=dict(kwargs) if isinstance(kwargs, dict) else None,
        )
    except (TypeError, ValueError) as error:
        name = getattr(training.lr_scheduler_type, "value", training.lr_scheduler_type)
        raise ValueError(f"--lr_scheduler_type {name}, --lr_scheduler_kwargs: {error}") from error


__all__ = ["check_best_metric", "check_optimizer", "check_trackers", "evaluation_metrics"]
