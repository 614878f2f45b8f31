"""Small counts of a table hidden so that they cannot be had by subtraction from its totals."""

from __future__ import annotations

import numpy as np

HIDDEN = "*"


def hidden_totals(totals: np.ndarray, min_count: int) -> np.ndarray:
    """
    Which totals must be hidden: small ones, and with a lone small one the next smallest.

    Args:
        totals (`np.ndarray` of shape `(splits,)`): Counts of the splits.

    Returns:
        `np.ndarray` of shape `(splits + 1,)`: bool; the last is that of their sum.
    """
    counts = _with_sum(np.asarray(totals, dtype=np.int64)[None])[0]
    marks = _small(counts, min_count)
    if marks.sum() == 1:
        marks[_next(counts, marks)] = True
    return marks


def suppress(grid: np.ndarray, totals: np.ndarray, min_count: int) -> np.ndarray:
    """
    Which counts must be hidden: those from 1 to `min_count - 1`, and further ones, the smallest first, until no row or
    column gives a hidden count away by subtraction. A column adds up to its total, a row to its sum over the splits.

    This holds against subtracting one line after the other; it is no proof against other tables of the same data.

    Args:
        grid (`np.ndarray` of shape `(levels, splits)`): Counts.
        totals (`np.ndarray` of shape `(splits + 1,)`): Which totals are hidden, from `hidden_totals`.
        min_count (`int`): Smallest count that is shown.

    Returns:
        `np.ndarray` of shape `(levels, splits + 1)`: bool; the last column is that of the sums.
    """
    counts = _with_sum(np.asarray(grid, dtype=np.int64))
    hidden = _small(counts, min_count)
    changed = True
    while changed:
        changed = False
        rows = [(line, marks, False) for line, marks in zip(counts, hidden, strict=True)]
        columns = zip(counts.T, hidden.T, totals, strict=True)
        for line, marks, total_hidden in [*rows, *columns]:
            # A lone gap is what the others lack; a hidden total is the sum of its column, if that has no gap.
            if marks.sum() == (0 if total_hidden else 1) and not marks.all():
                marks[_next(line, marks)] = True
                changed = True
    return hidden


def shown(count: int, hidden: bool, min_count: int) -> int | str:
    """A count, or what stands in its place: `"<5"` for a small one, `"*"` for one that would give another away."""
    if not hidden:
        return int(count)
    return f"<{min_count}" if 0 < count < min_count else HIDDEN


def _with_sum(grid: np.ndarray) -> np.ndarray:
    return np.concatenate([grid, grid.sum(1, keepdims=True)], axis=1)


def _small(counts: np.ndarray, min_count: int) -> np.ndarray:
    return (counts > 0) & (counts < min_count)


def _next(line: np.ndarray, marks: np.ndarray) -> int:
    """The smallest count that is not hidden yet, zeros last: they hide nothing."""
    rest = np.flatnonzero(~marks & (line > 0))
    rest = rest if len(rest) else np.flatnonzero(~marks)
    return int(rest[np.argmin(line[rest])])


__all__ = ["HIDDEN", "hidden_totals", "shown", "suppress"]
