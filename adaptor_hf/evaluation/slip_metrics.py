"""The metric that SLIP reports for each of its downstream sets."""

from __future__ import annotations

import numpy as np

from ..data.public.slip_catalog import metric_of


def slip_score(name: str, scores: np.ndarray, labels: np.ndarray) -> float:
    """
    The value that SLIP's `eval_zeroshot.py` reports for a set, in [0, 1] (SLIP prints per cent).

    Args:
        name: Name of the set in `dataset_catalog.json`.
        scores: (n, classes), higher is more likely.
        labels: (n,) class numbers.

    Raises:
        ValueError: Shapes that do not fit, labels out of range, or scores that are not finite.
    """
    scores, labels = np.asarray(scores, dtype=np.float64), np.asarray(labels)
    if scores.ndim != 2 or labels.shape != scores.shape[:1] or len(labels) == 0:
        raise ValueError(f"scores are (n, classes) and labels (n,), n at least 1; got {scores.shape}, {labels.shape}.")
    if not np.isfinite(scores).all():
        raise ValueError("The scores have NaN or infinite values.")
    if labels.min() < 0 or labels.max() >= scores.shape[1]:
        raise ValueError(f"labels are class numbers from 0 to {scores.shape[1] - 1}.")
    metric = metric_of(name)
    predicted = scores.argmax(axis=1)
    if metric == "mean_per_class":
        # A class without images has no accuracy; SLIP's confusion matrix leaves it out as well.
        return float(np.mean([(predicted[labels == number] == number).mean() for number in np.unique(labels)]))
    if metric == "mean_top1_top5":
        best = np.argsort(-scores, axis=1, kind="stable")[:, :5]
        return float(((predicted == labels).mean() + (best == labels[:, None]).any(axis=1).mean()) / 2)
    if metric == "roc_auc":
        from sklearn.metrics import roc_auc_score

        if scores.shape[1] != 2 or len(np.unique(labels)) != 2:
            raise ValueError(f"{name} has two classes, and ROC AUC needs images of both.")
        return float(roc_auc_score(labels, scores[:, 1] - scores[:, 0]))
    return float((predicted == labels).mean())


__all__ = ["slip_score"]
