"""From which value to which a picture is scaled: minimum and maximum, or percentiles, which few pixels do not set."""

from __future__ import annotations

import numpy as np


def check_percentile(percentile: float) -> None:
    """
    Raises:
        ValueError: It is not in [0, 50).
    """
    if not 0 <= percentile < 50:
        raise ValueError(
            f"range_percentile must be at least 0 (minimum and maximum) and under 50, got {percentile}. Usual are 0.1 "
            "to 1."
        )


def value_range(values: np.ndarray, percentile: float = 0) -> tuple[float, float]:
    """
    The lowest and the highest value to show.

    Args:
        values: Finite numbers of any shape; of none it is 0 and 0.
        percentile: In [0, 50): this percentile and 100 minus it, interpolated as `numpy.percentile` does; 0 takes the
            minimum and the maximum.
    """
    if not values.size:
        return 0.0, 0.0
    if not percentile:
        return float(values.min()), float(values.max())
    low, high = np.percentile(values, (percentile, 100 - percentile))
    return float(low), float(high)


__all__ = ["check_percentile", "value_range"]
