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

from collections.abc import Sequence
from typing import Any

import datasets
import evaluate
import numpy as np

from .classification import SINGLE, classification_metrics
from .segmentation import COUNTS, metrics_of_counts, segmentation_counts

PAPER = "https://arxiv.org/abs/2401.01179"


class ClassificationMetric(evaluate.Metric):
    """
    [`~adaptor_hf.evaluation.classification_metrics`]. Predictions are `(C,)` scores a row; references class numbers, or
    `(C,)` of 0, 1 and NaN.

    Args:
        problem_type (`str`): As in a config of transformers.
        num_classes (`int`): C; 1 for a binary problem with one logit.
        class_names, thresholds, probabilities: As there.
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
        **kwargs: Any,
    ):
        self.num_classes = num_classes
        self.exclusive = problem_type == SINGLE and num_classes > 1
        self.options = {
            "problem_type": problem_type,
            "class_names": class_names,
            "thresholds": thresholds,
            "probabilities": probabilities,
        }
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
        return dict(classification_metrics(np.asarray(predictions), np.asarray(references), **self.options))


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
        super().__init__(**kwargs)

    def _info(self) -> evaluate.MetricInfo:
        number = {name: datasets.Value("float64" if name == "score" else "int64") for name in COUNTS}
        return evaluate.MetricInfo(
            description="Dice three ways, IoU and AUROC of any mask, each beside an all-empty prediction.",
            citation=PAPER,
            features=datasets.Features(number),
        )

    def add_batch(self, *, predictions=None, references=None, **kwargs: Any) -> None:
        """Add predictions (bool or probabilities) and masks, `(N, H, W)` each or lists of `(H, W)`."""
        super().add_batch(**segmentation_counts(predictions, references, threshold=self.threshold))

    def add(self, *, prediction=None, reference=None, **kwargs: Any) -> None:
        """Add one image."""
        self.add_batch(predictions=[prediction], references=[reference])

    def compute(self, *, predictions=None, references=None, **kwargs: Any) -> dict[str, float] | None:
        """The metrics of all that was added; None on other processes than the first."""
        if predictions is not None or references is not None:
            self.add_batch(predictions=predictions, references=references)
        return super().compute(**kwargs)

    def _compute(self, **counts) -> dict[str, float]:
        return dict(metrics_of_counts({name: np.asarray(values) for name, values in counts.items()}))


__all__ = ["ClassificationMetric", "SegmentationMetric"]
