"""Metrics and statistics: plain functions on tensors and arrays."""

from .retrieval import (
    alignment_and_uniformity,
    chance_recall,
    retrieval_intervals,
    retrieval_metrics,
    retrieval_ranks,
)
from .statistics import auroc_interval, bootstrap_interval

__all__ = [
    "alignment_and_uniformity",
    "auroc_interval",
    "bootstrap_interval",
    "chance_recall",
    "retrieval_intervals",
    "retrieval_metrics",
    "retrieval_ranks",
]
