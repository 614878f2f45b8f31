"""Scores and labels of a classification as arrays that are checked."""

import numpy as np


def as_columns(values: np.ndarray) -> np.ndarray:
    """`(N,)` as `(N, 1)`; `(N, C)` as it is."""
    return values[:, None] if values.ndim == 1 else values


def label_matrix(labels: np.ndarray, shape: tuple[int, int], exclusive: bool) -> np.ndarray:
    """
    `(N, C)` of 0, 1 and NaN (unknown), from class numbers `(N,)` where classes are exclusive, else from such columns.

    Raises:
        ValueError: another shape than the scores', or a value that is no label.
    """
    if exclusive:
        numbers = labels.astype(np.float64)
        if labels.shape != shape[:1]:
            raise ValueError(f"Scores {shape} need labels of shape ({shape[0]},), class numbers; got {labels.shape}.")
        wrong = ~np.isin(numbers, np.arange(shape[1]))
        if wrong.any():
            row = int(wrong.argmax())
            raise ValueError(f"Label of row {row} is {labels[row]}, expected a class number from 0 to {shape[1] - 1}.")
        return (numbers[:, None] == np.arange(shape[1])).astype(np.float64)
    truth = as_columns(labels.astype(np.float64))
    if truth.shape != shape:
        raise ValueError(f"Scores {shape} need labels of the same shape, got {labels.shape}.")
    wrong = ~(np.isin(truth, (0, 1)) | np.isnan(truth))
    if wrong.any():
        row, column = np.argwhere(wrong)[0]
        raise ValueError(
            f"Label of row {row}, column {column} is {truth[row, column]:g}, expected 0, 1 or NaN for unknown. "
            "Map uncertain labels (-1) first."
        )
    return truth


def check_finite(scores: np.ndarray) -> None:
    """Raise ValueError, naming row and column, where a score of `(N, C)` is NaN or infinite."""
    if scores.ndim != 2:
        raise ValueError(f"Scores are (rows, classes), got shape {scores.shape}.")
    wrong = ~np.isfinite(scores)
    if wrong.any():
        row, column = np.argwhere(wrong)[0]
        raise ValueError(f"Score of row {row}, column {column} is {scores[row, column]}. Did the model diverge?")


def check_probabilities(scores: np.ndarray, exclusive: bool = False) -> None:
    """Raise ValueError where scores of `(N, C)` are outside [0, 1] or, of exclusive classes, do not sum to 1."""
    wrong = (scores < -1e-6) | (scores > 1 + 1e-6)
    if wrong.any():
        row, column = np.argwhere(wrong)[0]
        raise ValueError(
            f"Score of row {row}, column {column} is {scores[row, column]:g}, no probability. Pass probabilities "
            "(after sigmoid or softmax), or probabilities=False for other scores."
        )
    if exclusive and np.abs(scores.sum(1) - 1).max() > 1e-3:
        row = int(np.abs(scores.sum(1) - 1).argmax())
        raise ValueError(
            f"Probabilities of row {row} sum to {scores[row].sum():g}, expected 1 over exclusive classes (softmax)."
        )


__all__ = ["as_columns", "check_finite", "check_probabilities", "label_matrix"]
