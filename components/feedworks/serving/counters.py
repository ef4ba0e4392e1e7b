"""The Prometheus counters that every recommendation service has, beside those of its framework."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from prometheus_client import Counter, Histogram

BATCH_BUCKETS = (1, 2, 4, 8, 16, 32, 64, 128)
LATENCY_BUCKETS_S = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5)


class Counters(NamedTuple):
    """Requests by outcome (ok, fallback, overloaded), skipped ids, seconds of an answer, batch sizes."""

    requests: Counter
    skipped_ids: Counter
    latency_s: Histogram
    batch_size: Histogram


@lru_cache
def counters(namespace: str) -> Counters:
    """Make the counters once per process.

    They are not made on import: with several workers prometheus_client must find the folder that they share
    in its environment, which the server sets when it starts a worker.

    Args:
        namespace: first part of every name, e.g. `recochain`.
    """
    from prometheus_client import Counter, Histogram

    return Counters(
        Counter("requests", "requests by outcome", ["outcome"], namespace=namespace),
        Counter("skipped_ids", "ids in requests that the model does not know", namespace=namespace),
        Histogram(
            "latency_seconds",
            "from the parsed request to its answer, waiting included",
            namespace=namespace,
            buckets=LATENCY_BUCKETS_S,
        ),
        Histogram(
            "batch_size",
            "requests that the model answered at once",
            namespace=namespace,
            buckets=BATCH_BUCKETS,
        ),
    )
