"""OCARM (arXiv 2604.25839): the Prometheus counters of the service."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, NamedTuple

from feedworks.serving.counters import BATCH_BUCKETS

if TYPE_CHECKING:
    from prometheus_client import Counter, Histogram

LATENCY_BUCKETS_S = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2)
AGE_BUCKETS_S = (1, 10, 60, 600, 3600, 6 * 3600, 86_400, 7 * 86_400, 30 * 86_400, 180 * 86_400)


class Counters(NamedTuple):
    """Requests by outcome (ok, degraded, refused, overloaded), degraded users by reason, reads of the store.

    Reads go by outcome (ok, slow, down, off, wrong), ages by view.
    """

    requests: Counter
    degraded: Counter
    reads: Counter
    latency_s: Histogram
    read_s: Histogram
    age_s: Histogram
    batch_size: Histogram


@lru_cache
def counters() -> Counters:
    """Make the counters once per process, see `feedworks.serving.counters.counters`."""
    from prometheus_client import Counter, Histogram

    return Counters(
        Counter("requests", "requests by outcome", ["outcome"], namespace="ocarm"),
        Counter(
            "degraded_users", "users answered with less than all features", ["reason"], namespace="ocarm"
        ),
        Counter("feature_reads", "calls to the feature store by outcome", ["outcome"], namespace="ocarm"),
        Histogram(
            "latency_seconds",
            "from the parsed request to its answer",
            namespace="ocarm",
            buckets=LATENCY_BUCKETS_S,
        ),
        Histogram(
            "feature_read_seconds",
            "of a call to the feature store that came back",
            namespace="ocarm",
            buckets=LATENCY_BUCKETS_S,
        ),
        Histogram(
            "feature_age_seconds",
            "between a row of the store and the bid",
            ["view"],
            namespace="ocarm",
            buckets=AGE_BUCKETS_S,
        ),
        Histogram(
            "batch_size",
            "requests that the model answered at once",
            namespace="ocarm",
            buckets=BATCH_BUCKETS,
        ),
    )
