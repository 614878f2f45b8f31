"""Metrics, each declared once: which way is better, what a model that has learned nothing scores, how it is called."""

from __future__ import annotations

from dataclasses import dataclass

from .intervals import METHODS

WAYS = ("image_to_text", "text_to_image")
"""Directions of retrieval, which stand before a metric's name: `image_to_text_mrr`."""


@dataclass(frozen=True)
class Metric:
    """
    What tables, cards, comparisons and figures know of a metric.

    Args:
        name (`str`): As in result lines, without direction, class and what follows an "@": `recall@` is
            `image_to_text_recall@5`, `auroc` is `auroc/effusion`.
        higher_is_better (`bool`): Which way is better; it has no default.
        trivial_baseline (`str`): What a model that has learned nothing is, by the name that its score has in
            `trivial_baselines` of a result line; there may be more of them.
        interval (`str`): How it gets its interval, a kind of `adaptor_hf.evaluation.intervals.IntervalMethod`; of a
            mean over classes it is `average` all the same.
        title (`str`): Its name in words; by default `name` with blanks.
        one_sided (`bool`): A model that always says the same is perfect in it, and poor in its partner (precision and
            recall): it gets no mark and no bold.

    Raises:
        TypeError, ValueError: direction or baseline is not stated, or the interval is of no known kind.
    """

    name: str
    higher_is_better: bool
    trivial_baseline: str
    interval: str
    title: str = ""
    one_sided: bool = False

    def __post_init__(self) -> None:
        if not isinstance(self.higher_is_better, bool):
            raise TypeError(f"Metric {self.name}: higher_is_better is True or False, got {self.higher_is_better!r}.")
        if not isinstance(self.trivial_baseline, str) or not self.trivial_baseline:
            raise ValueError(f"Metric {self.name}: name its trivial_baseline, what a model without knowledge is.")
        if self.interval not in (*METHODS, "none"):
            raise ValueError(f"Metric {self.name}: interval is one of {', '.join(METHODS)} or none.")
        if not self.title:
            object.__setattr__(self, "title", self.name.removesuffix("@").replace("_", " "))

    @property
    def is_marked(self) -> bool:
        """Whether a value that is not shown to be above its baseline gets the mark: not without an interval."""
        return not self.one_sided and self.interval != "none"


METRICS: dict[str, Metric] = {}
"""By name; see [`declare_metric`]."""


def declare_metric(metric: Metric) -> Metric:
    """
    Make a metric known to all that reads results.

    Raises:
        ValueError: another metric has its name.
    """
    if METRICS.setdefault(metric.name, metric) != metric:
        raise ValueError(f"There is a metric {metric.name!r} already, and it is another one.")
    return metric


for _metric in (
    Metric("auroc", True, "chance", "area", "AUROC"),
    Metric("auprc", True, "chance", "ap", "AUPRC"),
    Metric("accuracy", True, "majority class", "share"),
    Metric("balanced_accuracy", True, "majority class", "average"),
    Metric("f1", True, "majority class", "ratio", "F1"),
    Metric("precision", True, "majority class", "share", one_sided=True),
    Metric("recall", True, "majority class", "share", one_sided=True),
    Metric("specificity", True, "majority class", "share", one_sided=True),
    Metric("sensitivity@", True, "chance", "share"),
    Metric("specificity@", True, "always negative", "share", one_sided=True),
    Metric("ece", False, "class frequencies", "none", "ECE", one_sided=True),
    Metric("brier", False, "class frequencies", "mean"),
    Metric("dice_reference", True, "empty mask", "mean", "Dice reference"),
    Metric("dice_positive", True, "empty mask", "mean", "Dice positive"),
    Metric("dice_pooled", True, "empty mask", "mean", "Dice pooled"),
    Metric("iou_positive", True, "empty mask", "mean", "IoU positive"),
    Metric("iou_pooled", True, "empty mask", "mean", "IoU pooled"),
    Metric("auroc_any_mask", True, "empty mask", "area", "AUROC any mask"),
    Metric("sensitivity_any_mask", True, "empty mask", "share", one_sided=True),
    Metric("false_alarm_rate", False, "empty mask", "share", one_sided=True),
    Metric("recall@", True, "chance", "share"),
    Metric("precision@", True, "chance", "mean"),
    Metric("mean_recall", True, "chance", "average"),
    Metric("mrr", True, "chance", "mean", "MRR"),
    Metric("mean_rank", False, "chance", "mean"),
    Metric("median_rank", False, "chance", "none"),
):
    declare_metric(_metric)


def parts_of(name: str) -> tuple[str, str, str, str]:
    """
    Direction, declared name, what follows its "@", and class of a metric in a result line; "" for what it has not.
    `image_to_text_recall@5` has the direction `image_to_text`, the name `recall@` and 5.
    """
    name, _, label = name.partition("/")
    way = next((way for way in WAYS if name.startswith(f"{way}_")), "")
    head, at, rest = name[len(way) + bool(way) :].partition("@")
    return way, head + at, rest, label


def metric_of(name: str) -> Metric | None:
    """The declaration of a metric in a result line; None of one that somebody else computed."""
    return METRICS.get(parts_of(name)[1])


def declared_metric(name: str) -> Metric:
    """
    As `metric_of`, for what is computed here.

    Raises:
        ValueError: nobody has declared it.
    """
    if (found := metric_of(name)) is None:
        raise ValueError(f"No metric {name!r} is declared: add a Metric to adaptor_hf/evaluation/metrics.py.")
    return found


__all__ = ["METRICS", "Metric", "declare_metric", "declared_metric", "metric_of", "parts_of"]
