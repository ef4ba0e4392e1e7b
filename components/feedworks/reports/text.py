"""How numbers and metric names read in reports and model cards."""

from __future__ import annotations

import math

from feedworks.metrics.ranking import Interval

_METRIC_NAMES = {"recall": "Recall", "ndcg": "NDCG", "mrr": "MRR", "hit": "HR", "auc": "AUC"}
_METRIC_NAMES |= {"user_auc": "AUC within users", "log_loss": "Log loss"}


def format_number(value: float) -> str:
    """Write an integer with separators, any other number with about four digits: 0.0648, 7.610, 208.1."""
    if isinstance(value, int):
        return f"{value:,}"
    if not math.isfinite(value):
        return str(value)
    if value != 0 and abs(value) < 0.001:
        return f"{value:.3g}"
    places = max(0, 4 - len(str(int(abs(value))))) + (abs(value) < 1)
    return f"{value:,.{places}f}"


def format_interval(interval: Interval) -> str:
    """Write `low to high`."""
    return f"{format_number(interval.low)} to {format_number(interval.high)}"


def metric_title(key: str) -> str:
    """Write `recall@10` as `Recall@10`, `ndcg@5` as `NDCG@5`; an unknown name stays as it is."""
    name, separator, cutoff = key.partition("@")
    return f"{_METRIC_NAMES.get(name, name)}{separator}{cutoff}"
