"""Metrics and statistics: plain functions on tensors and arrays."""

from .classification import (
    classification_intervals,
    classification_metrics,
    f1_thresholds,
    reliability_curve,
    sensitivity_at_specificity,
    specificity_thresholds,
)
from .retrieval import (
    alignment_and_uniformity,
    chance_recall,
    retrieval_intervals,
    retrieval_metrics,
    retrieval_ranks,
)
from .statistics import (
    Difference,
    auroc_interval,
    bootstrap_interval,
    delong,
    holm,
    paired_bootstrap,
    seed_interval,
)

__all__ = [
    "Difference",
    "alignment_and_uniformity",
    "auroc_interval",
    "bootstrap_interval",
    "chance_recall",
    "classification_intervals",
    "classification_metrics",
    "delong",
    "f1_thresholds",
    "holm",
    "paired_bootstrap",
    "reliability_curve",
    "retrieval_intervals",
    "retrieval_metrics",
    "retrieval_ranks",
    "seed_interval",
    "sensitivity_at_specificity",
    "specificity_thresholds",
]
