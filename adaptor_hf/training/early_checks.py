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
    objective: type[Objective] | None = None,
) -> None:
    """
    Check that `--metric_for_best_model` is what an evaluation gives, and that the right way counts as better.
    `greater_is_better` becomes that of the metric where it was not given.

    Args:
        training (`AdaptorTrainingArguments`): Of the run.
        sources (`Iterable[str]`): Names of several sources, each of which has retrieval metrics of its own.
        evaluators (`Iterable[PairEvaluator]`, *optional*): By default those of a run, [`Retrieval`] alone.
        objective (`type[Objective]`, *optional*): What is trained with. One of a user's may have terms of its own,
            which nobody declares: with it any name is taken whose direction is known or given.

    Raises:
        ValueError: naming the metrics that are close, or the option to add.
    """
    given = training.metric_for_best_model
    if given is None:
        return
    known = evaluation_metrics(sources, evaluators)
    name = given.removeprefix("eval_")
    if name not in known and objective is not None and objective not in known_objectives().values():
        _check_direction(training, known)
        return
    if name not in known:
        close = difflib.get_close_matches(name, known, n=3) or ["mean_recall", "loss"]
        raise ValueError(
            f"--metric_for_best_model {given!r}: evaluation gives no such metric. Did you mean {' or '.join(close)}? "
            f"There are: {', '.join(known)}."
        )
    if training.greater_is_better is None:
        training.greater_is_better = known[name]
    if training.greater_is_better != known[name]:
        better = "more" if known[name] else "less"
        raise ValueError(
            f"--metric_for_best_model {given}: {better} of it is better. Add --greater_is_better {known[name]}."
        )


def _check_direction(training: AdaptorTrainingArguments, known: Iterable[str] = ()) -> None:
    """Raise ValueError where nobody has said which way a metric is better: the worst epoch could be kept."""
    if training.metric_for_best_model is None or training.greater_is_better is not None:
        return
    close = difflib.get_close_matches(training.metric_for_best_model.removeprefix("eval_"), known, n=1)
    meant = f"Did you mean {close[0]}? " if close else ""
    raise ValueError(
        f"--metric_for_best_model {training.metric_for_best_model!r}: no evaluator declares this metric, so nobody "
        f"knows whether more or less of it is better. {meant}If your objective or evaluator gives it, add "
        "--greater_is_better True or --greater_is_better False."
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
            whose metrics have other names, it is only checked that the direction is known.
        evaluators (`Sequence[Evaluator]`): What functions give is known when they are called, and so are an
            objective's own terms: with these any `metric_for_best_model` is taken whose direction is known or given.
        objective (`Objective`): That is trained with.

    Raises:
        ValueError: two evaluators give a metric of one name, none gives the metric of the best model, or what an
            evaluator finds wrong with model and data.
    """
    from ..embeddings.ranks import Ranks
    from .pair_evaluation import PairEvaluator

    if training.eval_strategy == "no":
        return
    if not evaluators or isinstance(dataset, dict | None):
        _check_direction(training)
        return
    of_pairs = [one for one in evaluators if isinstance(one, PairEvaluator)]
    sources = getattr(dataset, "source_names", ())
    evaluation_metrics(sources, of_pairs)
    # As of an objective with terms of its own: what functions give, nobody knows before.
    open_ended = Objective if len(of_pairs) < len(evaluators) else type(objective)
    check_best_metric(training, sources, of_pairs, open_ended)
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
