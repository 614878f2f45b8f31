"""Tasks, each declared once: what it needs, what tables, cards and comparisons show of it, and what runs it."""

from __future__ import annotations

import pkgutil
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from .metrics import declared_metric

NEEDS = ("labels", "masks", "reports", "prompts")


@dataclass(frozen=True)
class Task:
    """
    One value of `--task`. `--task`, tables, LaTeX, cards, comparisons, subgroups, figures, checklists, manifests, docs
    and tests read it.

    Args:
        name (`str`): Of the option, and the field `task` of result lines.
        needs (`tuple[str, ...]`): Of `NEEDS`, what it cannot do without, the first before all. Options that name it are
            asked for before anything is loaded.
        headline (`tuple[str, ...]`): Metrics in the terminal's table and in LaTeX; all of them are in result files.
        decides_by (`str`, *optional*): The metric that runs are compared by; None: they are not compared.
        hub_type (`str`, *optional*): The Hub's name for it, in a card's metadata; None: it has no result lines.
        run (`str` or `Callable`): `module:function`, or the function itself: gets the `DownstreamArguments` and a
            device, and gives the text to print.
        kind (`str`, *optional*): Of its `Predictions`; None: it writes none.
        readouts (`tuple[str, ...]`): What its result lines have as `protocol`: what reads the features.
        trains (`bool`): Whether it trains on the training part, which then must not hold copies of test images.
        has_fractions (`bool`): Whether there is a run for each of `--fraction`.
        own_options (`tuple[str, ...]`): Options that are refused for tasks that do not name them.
        by_image (`bool`): Whether curves, subgroups and studies are made of its predictions.
        recipe_tells (`bool`): Whether notes name a line's `recipe`: its runs differ by it.
        files (`tuple[str, ...]`): What it writes into the output folder beside runs.

    Raises:
        ValueError: something else is needed than `NEEDS` has, a metric is not declared, or it decides by none of its
            own.
    """

    name: str
    needs: tuple[str, ...]
    headline: tuple[str, ...]
    decides_by: str | None
    hub_type: str | None
    run: str | Callable[[Any, str], str]
    kind: str | None
    readouts: tuple[str, ...]
    trains: bool
    has_fractions: bool = False
    own_options: tuple[str, ...] = ()
    by_image: bool = False
    recipe_tells: bool = False
    files: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not self.needs or set(self.needs) - set(NEEDS):
            raise ValueError(f"Task {self.name}: needs is of {', '.join(NEEDS)}, got {', '.join(self.needs)}.")
        if self.decides_by is not None and self.decides_by not in self.headline:
            raise ValueError(f"Task {self.name}: decides_by is one of its headline metrics, got {self.decides_by!r}.")
        for metric in self.headline:
            declared_metric(metric)

    def function(self) -> Callable[[Any, str], str]:
        """What runs it, imported."""
        return pkgutil.resolve_name(self.run) if isinstance(self.run, str) else self.run


TASKS: dict[str, Task] = {}
"""By name, in the order that `--help` and the docs have them; see [`declare_task`]."""


def declare_task(task: Task) -> Task:
    """
    Make a task known to the script and to all that reads results.

    Raises:
        ValueError: another task has its name.
    """
    if TASKS.setdefault(task.name, task) != task:
        raise ValueError(f"There is a task {task.name!r} already, and it is another one.")
    return task


for _task in (
    Task(
        "classification",
        needs=("labels",),
        headline=("auroc", "auprc", "accuracy", "f1"),
        decides_by="auroc",
        hub_type="image-classification",
        run="adaptor_hf.tasks.classification:run",
        kind="classification",
        readouts=("linear", "mlp2", "finetune", "lora", "blocks", "supervised"),
        trains=True,
        has_fractions=True,
        own_options=("do_predict", "train_tower", "save_model", "external", "supervised_control", "supervised_label"),
        by_image=True,
        files=("model/model.safetensors", "model/config.json", "predictions.csv"),
    ),
    Task(
        "segmentation",
        needs=("masks",),
        headline=("dice_reference", "dice_positive", "dice_pooled", "auroc_any_mask"),
        decides_by="dice_pooled",
        hub_type="image-segmentation",
        run="adaptor_hf.tasks.segmentation:run",
        kind="segmentation",
        readouts=("frozen",),
        trains=True,
        has_fractions=True,
        own_options=("save_model", "external", "cached_tokens"),
        files=("model/model.safetensors", "model/config.json"),
    ),
    Task(
        "zero_shot",
        needs=("labels", "prompts"),
        headline=("auroc", "accuracy", "f1"),
        decides_by="auroc",
        hub_type="zero-shot-image-classification",
        run="adaptor_hf.tasks.zero_shot:run",
        kind="classification",
        readouts=("zeroshot", "supervised"),
        trains=False,
        own_options=("supervised_control", "supervised_label"),
        by_image=True,
    ),
    Task(
        "retrieval",
        needs=("reports",),
        headline=("image_to_text_recall@1", "image_to_text_recall@10", "text_to_image_recall@10", "mean_recall"),
        decides_by="mean_recall",
        hub_type="image-text-retrieval",
        run="adaptor_hf.tasks.retrieval:run",
        kind="retrieval",
        readouts=("retrieval",),
        trains=False,
    ),
    Task(
        "few_shot",
        needs=("labels",),
        headline=("auroc", "accuracy"),
        decides_by="auroc",
        hub_type="image-classification",
        run="adaptor_hf.tasks.few_shot:run",
        kind="classification",
        readouts=("fewshot",),
        trains=True,
        recipe_tells=True,
    ),
    Task(
        "text_understanding",
        needs=("reports",),
        headline=(),
        decides_by=None,
        hub_type=None,
        run="adaptor_hf.tasks.text_understanding:run",
        kind=None,
        readouts=(),
        trains=False,
        files=("text_understanding.json",),
    ),
):
    declare_task(_task)


def headline_of(task: str) -> tuple[str, ...]:
    """Headline metrics of a task in a result line; none of a task that somebody else has named."""
    return TASKS[task].headline if task in TASKS else ()


def tasks_with(**fields: Any) -> tuple[str, ...]:
    """Names of the tasks whose declarations have these values, such as `tasks_with(kind="classification")`."""
    return tuple(
        name for name, task in TASKS.items() if all(getattr(task, field) == value for field, value in fields.items())
    )


__all__ = ["TASKS", "Task", "declare_task", "headline_of", "tasks_with"]
