"""Metrics and statistics: plain functions on tensors and arrays."""

from .calibration import reliability_curve
from .classification import classification_intervals, classification_metrics
from .compare import compare_predictions
from .mask_baselines import baseline_counts, mean_mask, mean_mask_threshold
from .predictions import (
    Predictions,
    classification_predictions,
    load_predictions,
    retrieval_predictions,
    segmentation_predictions,
)
from .results import finished_runs, read_results, run_key, write_run
from .retrieval import (
    alignment_and_uniformity,
    chance_recall,
    chance_retrieval,
    precision_at_k,
    retrieval_intervals,
    retrieval_metrics,
    retrieval_ranks,
)
from .segmentation import metrics_of_counts, segmentation_counts, segmentation_intervals, segmentation_metrics
from .single_intervals import auroc_interval, share_interval
from .statistics import (
    Difference,
    bootstrap_interval,
    delong,
    holm,
    paired_bootstrap,
    seed_interval,
)
from .thresholds import f1_thresholds, specificity_thresholds

__all__ = [
    "Difference",
    "Predictions",
    "alignment_and_uniformity",
    "auroc_interval",
    "baseline_counts",
    "bootstrap_interval",
    "chance_recall",
    "chance_retrieval",
    "classification_intervals",
    "classification_metrics",
    "classification_predictions",
    "compare_predictions",
    "delong",
    "f1_thresholds",
    "finished_runs",
    "holm",
    "load_predictions",
    "mean_mask",
    "mean_mask_threshold",
    "metrics_of_counts",
    "paired_bootstrap",
    "precision_at_k",
    "read_results",
    "reliability_curve",
    "retrieval_intervals",
    "retrieval_metrics",
    "retrieval_predictions",
    "retrieval_ranks",
    "run_key",
    "seed_interval",
    "segmentation_counts",
    "segmentation_intervals",
    "segmentation_metrics",
    "segmentation_predictions",
    "share_interval",
    "specificity_thresholds",
    "write_run",
]
