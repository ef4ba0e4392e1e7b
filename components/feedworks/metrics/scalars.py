"""Metrics as an orchestrator can store them."""

from __future__ import annotations

import math
from collections.abc import Mapping


def loggable(metrics: Mapping[str, float], *, intervals: bool = False) -> dict[str, float]:
    """Return metrics as plain finite floats: kfp refuses NumPy scalars, NaN and infinity.

    Args:
        metrics: flat keys, as in metrics.json; values may be NumPy scalars.
        intervals: keep the keys `.../ci_low` and `.../ci_high`, which crowd a table of comparison.
    """
    plain = {key: float(value) for key, value in metrics.items()}
    return {
        key: value
        for key, value in plain.items()
        if math.isfinite(value) and (intervals or "/ci_" not in key)
    }
