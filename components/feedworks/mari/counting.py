"""MaRI (arXiv 2602.23105): the Prometheus counters of the service."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, NamedTuple

from feedworks.serving.counters import BATCH_BUCKETS

if TYPE_CHECKING:
    from prometheus_client import Counter, Histogram

LATENCY_BUCKETS_S = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2)


class Counters(NamedTuple):
    """Requests by outcome, seconds of an answer, requests and candidates that the model scored at once."""

    ok: Counter
    refused: Counter
    overloaded: Counter
    latency_s: Histogram
    batch_size: Histogram


@lru_cache
def counters() -> Counters:
    """Make the counters once per process, see `feedworks.serving.counters.counters`."""
    from prometheus_client import Counter, Histogram

    requests = Counter("requests", "requests by outcome", ["outcome"], namespace="mari")
    return Counters(
        requests.labels("ok"),
        requests.labels("refused"),
        requests.labels("overloaded"),
        Histogram(
            "latency_seconds",
            "from the head of the request to its answer",
            namespace="mari",
            buckets=LATENCY_BUCKETS_S,
        ),
        Histogram(
            "batch_size",
            "requests that the model answered at once",
            namespace="mari",
            buckets=BATCH_BUCKETS,
        ),
    )
