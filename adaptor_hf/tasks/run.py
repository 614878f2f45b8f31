"""One command: the task that was asked for, for each model, and their comparison."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from ..evaluation.tasks import TASKS
from ..tower_bundles_adaptor import use_towers_dir
from .arguments import DownstreamArguments
from .compare import metric_of_task, remember_costs, write_comparison
from .loading import check_models, cost_of, with_default_reading


def run_task(arguments: DownstreamArguments, device: str) -> str:
    """The task of the arguments for their one model; gives the text to print."""
    return TASKS[arguments.task].function()(with_default_reading(arguments), device)


def run_job(arguments: DownstreamArguments, device: str, say: Callable[[str], Any] = print) -> None:
    """
    One command: the task for each model, and their comparison if it was asked for.

    Args:
        arguments ([`DownstreamArguments`]): Of the script.
        device (`str`): Where models run.
        say (`Callable[[str], Any]`): Gets the table of each model as it is done, and the comparison.

    Raises:
        ValueError: runs of the task are not compared, or a model's files are not those of its run, before anything is
            computed; or as of the task.
    """
    if arguments.compare:
        metric_of_task(arguments.task)
    if arguments.towers_dir:
        use_towers_dir(arguments.towers_dir)
    check_models(arguments)
    for model in [arguments.model, *arguments.more_models]:
        started, job = time.monotonic(), with_default_reading(replace(arguments, model=model))
        say(run_task(job, device))
        remember_costs(arguments.output_dir, cost_of(job, time.monotonic() - started))
    if arguments.compare:
        fraction = max(arguments.fraction) if TASKS[arguments.task].has_fractions else None
        say(write_comparison(arguments.output_dir, task=arguments.task, dataset=arguments.name, fraction=fraction))


__all__ = ["run_job", "run_task"]
