"""What Trainer would find out only after the data was read: trackers, optimizer, schedule, the metric of the best."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

import torch

from ..configuration_adaptor import AdaptorConfig
from ..modeling_adaptor import AdaptorModel
from .arguments import AdaptorTrainingArguments, more_is_better


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


def check_best_metric(training: AdaptorTrainingArguments, sources: Iterable[str] = ()) -> None:
    """
    Check that `--metric_for_best_model` is what an evaluation gives, and that the right way counts as better.

    Args:
        training (`AdaptorTrainingArguments`): Of the run.
        sources (`Iterable[str]`): Names of several sources, each of which has retrieval metrics of its own.

    Raises:
        ValueError: naming the metrics that are close, or the option to add.
    """
    given = training.metric_for_best_model
    if given is None:
        return
    known = evaluation_metrics()
    ranked = {name: better for name, better in known.items() if name.startswith(("image_to_", "text_to_", "mean_"))}
    known |= {f"{source}_{name}": better for source in sources for name, better in ranked.items()}
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


def evaluation_metrics() -> dict[str, bool]:
    """What [`~training.pair_evaluation.Retrieval`] gives to choose by, and whether more of it is better."""
    from .pair_evaluation import Retrieval

    embeds = {"image_embeds": torch.eye(2), "text_embeds": torch.eye(2), "text_row": torch.arange(2)}
    names = Retrieval(positives="pair").measure(_small_model(), embeds)
    counts = ("num_pairs", "logit_scale", "loss_batch_size")
    return {name: more_is_better(name) for name in names if name not in counts}


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
