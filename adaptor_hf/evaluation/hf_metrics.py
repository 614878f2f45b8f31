"""
The metrics as `evaluate.Metric` objects: `add_batch` and `compute` over batches and processes, without network.

```python
metric = ClassificationMetric(problem_type="single_label_classification", num_classes=3)
metric.add_batch(predictions=probabilities, references=labels)
metric.compute()
```

With several processes give `num_process`, `process_id` and one `experiment_id`, as to any metric of `evaluate`.
Intervals need patients: [`~adaptor_hf.evaluation.classification_intervals`].
"""

import tempfile
from collections.abc import Mapping, Sequence
from typing import Any

import datasets
import evaluate
import numpy as np
from evaluate import CombinedEvaluations

from .classification import SINGLE, Metrics, classification_metrics
from .predictions import KINDS, Predictions
from .retrieval import RECALL_AT
from .segmentation import COUNTS, metrics_of_counts, segmentation_counts

PAPER = "https://arxiv.org/abs/2401.01179"


class ClassificationMetric(evaluate.Metric):
    """
    [`~adaptor_hf.evaluation.classification_metrics`]. Predictions are `(C,)` scores a row; references class numbers, or
    `(C,)` of 0, 1 and NaN.

    Args:
        problem_type (`str`): As in a config of transformers.
        num_classes (`int`): C; 1 for a binary problem with one logit.
        class_names, thresholds, probabilities, operating_points: As there.
        kwargs: Of `evaluate.Metric`, such as `num_process` and `experiment_id`.
    """

    def __init__(
        self,
        *,
        problem_type: str,
        num_classes: int,
        class_names: Sequence[str] | None = None,
        thresholds: float | Sequence[float] | None = None,
        probabilities: bool = True,
        operating_points: Mapping[str, Sequence[float]] | None = None,
        **kwargs: Any,
    ):
        self.num_classes = num_classes
        self.exclusive = problem_type == SINGLE and num_classes > 1
        self.options = {
            "problem_type": problem_type,
            "class_names": class_names,
            "thresholds": thresholds,
            "probabilities": probabilities,
            "operating_points": operating_points,
        }
        self.notes: list[str] = []
        super().__init__(**kwargs)

    def _info(self) -> evaluate.MetricInfo:
        row = datasets.Sequence(datasets.Value("float64"), length=self.num_classes)
        references = datasets.Value("int64") if self.exclusive else row
        return evaluate.MetricInfo(
            description="AUROC, AUPRC, accuracy, F1, calibration and others, by class and on average.",
            citation=PAPER,
            features=datasets.Features({"predictions": row, "references": references}),
        )

    def _compute(self, predictions, references) -> dict[str, float]:
        return _noted(self, classification_metrics(np.asarray(predictions), np.asarray(references), **self.options))


class SegmentationMetric(evaluate.Metric):
    """
    [`~adaptor_hf.evaluation.segmentation_metrics`] over batches. `add_batch` takes predictions and masks `(N, H, W)`
    and keeps four numbers an image.

    Args:
        threshold (`float`, defaults to 0.5): A probability above it is inside.
        kwargs: Of `evaluate.Metric`.
    """

    def __init__(self, *, threshold: float = 0.5, **kwargs: Any):
        self.threshold = threshold
        self.notes: list[str] = []
        super().__init__(**kwargs)

    def _info(self) -> evaluate.MetricInfo:
        number = {name: datasets.Value("float64" if name == "score" else "int64") for name in COUNTS}
        return evaluate.MetricInfo(
            description="Dice three ways, IoU and AUROC of any mask, each beside an all-empty prediction.",
            citation=PAPER,
            features=datasets.Features(number),
        )

    def add_batch(self, *, predictions=None, references=None, **kwargs: Any) -> None:
        """Add predictions (bool or probabilities) and masks, `(N, H, W)` each or lists of `(H, W)`; or their counts."""
        if predictions is not None:
            kwargs = segmentation_counts(predictions, references, threshold=self.threshold)
        super().add_batch(**kwargs)

    def add(self, *, prediction=None, reference=None, **kwargs: Any) -> None:
        """Add one image."""
        self.add_batch(predictions=[prediction], references=[reference])

    def compute(self, *, predictions=None, references=None, **kwargs: Any) -> dict[str, float] | None:
        """The metrics of all that was added; None on other processes than the first."""
        if predictions is not None or references is not None:
            self.add_batch(predictions=predictions, references=references)
        return super().compute(**kwargs)

    def _compute(self, **counts) -> dict[str, float]:
        return _noted(self, metrics_of_counts({name: np.asarray(values) for name, values in counts.items()}))


class RecallMetric(evaluate.Metric):
    """Share of queries whose best positive is among the first 1, 5 and 10, each way, and `mean_recall`. Predictions are
    ranks, 1 is best; references `image_to_text` or `text_to_image`."""

    def _info(self) -> evaluate.MetricInfo:
        return _ranks_info("Recall at 1, 5 and 10.")

    def _compute(self, predictions, references, **others) -> dict[str, float]:
        found = {
            f"{way}_recall@{k}": float((ranks <= k).mean())
            for way, ranks in _by_direction(predictions, references).items()
            for k in RECALL_AT
        }
        return found | {"mean_recall": float(np.mean(list(found.values())))}


class RankMetric(evaluate.Metric):
    """Mean reciprocal, mean and median of the best positive's rank, each way; rows as of [`RecallMetric`]."""

    def _info(self) -> evaluate.MetricInfo:
        return _ranks_info("Mean reciprocal, mean and median rank.")

    def _compute(self, predictions, references, **others) -> dict[str, float]:
        found = {}
        for way, ranks in _by_direction(predictions, references).items():
            found[f"{way}_mrr"] = float((1 / ranks).mean())
            found[f"{way}_mean_rank"] = float(ranks.mean())
            found[f"{way}_median_rank"] = float(np.median(ranks))
        return found


class PrecisionMetric(evaluate.Metric):
    """Mean of each query's precision among its first k, each way.

    Args:
        k (`int`): For the names.
        kwargs: Of `evaluate.Metric`.
    """

    def __init__(self, *, k: int, **kwargs: Any):
        self.k = k
        super().__init__(**kwargs)

    def _info(self) -> evaluate.MetricInfo:
        name = f"precision@{self.k}"
        features = {name: datasets.Value("float64"), "references": datasets.Value("string")}
        return evaluate.MetricInfo(description=name, citation=PAPER, features=datasets.Features(features))

    def compute(self, *, predictions=None, **kwargs: Any) -> dict[str, float] | None:
        """The metrics of all that was added; a combination passes predictions that others take."""
        return super().compute(**kwargs)

    def _compute(self, references, **columns) -> dict[str, float]:
        # A combination of several passes the columns of all.
        name = f"precision@{self.k}"
        ways = _by_direction(columns[name], references).items()
        return {f"{way}_{name}": float(of_way.mean()) for way, of_way in ways if not np.isnan(of_way).any()}


def task_metric(predictions: Predictions, **kwargs: Any) -> CombinedEvaluations:
    """
    The metrics of a run's task, by `evaluate.combine`.

    Args:
        predictions ([`Predictions`]): Its kind and settings; rows are added with [`task_rows`].
        kwargs: Of `evaluate.Metric`, such as `num_process`, `process_id`, `experiment_id` and `cache_dir`.
    """
    return evaluate.combine(KINDS[predictions.kind].metrics(predictions, **kwargs))


def task_rows(predictions: Predictions, rows: slice = slice(None)) -> dict[str, Any]:
    """What [`task_metric`] takes in `compute`, of all rows or of some."""
    return KINDS[predictions.kind].rows(predictions, rows)


def compute_on_ranks(metric: CombinedEvaluations, rows: dict[str, Any]) -> dict[str, float] | None:
    """The metrics of the rows of all processes; None on others than the first, where a combination's own fails."""
    if metric.evaluation_modules[0].process_id == 0:
        return metric.compute(**rows)
    for part in metric.evaluation_modules:
        part.compute(**{"predictions": None, "references": None} | rows)
    return None


def score_with_metrics(predictions: Predictions) -> tuple[dict[str, float], str]:
    """Point estimates of all rows, and the sentences that come with them. Nothing stays on disk."""
    with tempfile.TemporaryDirectory() as folder:
        metric = task_metric(predictions, keep_in_memory=True, cache_dir=folder)
        values = metric.compute(**task_rows(predictions))
    return values, " ".join(note for part in metric.evaluation_modules for note in getattr(part, "notes", ()))


def _noted(metric: evaluate.Metric, found: Metrics) -> dict[str, float]:
    metric.notes = found.notes
    return dict(found)


def _ranks_info(description: str) -> evaluate.MetricInfo:
    features = datasets.Features({"predictions": datasets.Value("int64"), "references": datasets.Value("string")})
    return evaluate.MetricInfo(description=description, citation=PAPER, features=features)


def _by_direction(values, ways) -> dict[str, np.ndarray]:
    values, ways = np.asarray(values), np.asarray(ways)
    return {way: values[ways == way] for way in ("image_to_text", "text_to_image") if (ways == way).any()}


__all__ = [
    "ClassificationMetric",
    "PrecisionMetric",
    "RankMetric",
    "RecallMetric",
    "SegmentationMetric",
    "compute_on_ranks",
    "score_with_metrics",
    "task_metric",
    "task_rows",
]
