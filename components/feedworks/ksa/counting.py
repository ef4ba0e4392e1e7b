"""KSA (arXiv 2604.24432): the Prometheus counters of the service."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, NamedTuple

from feedworks.serving.counters import BATCH_BUCKETS

if TYPE_CHECKING:
    from prometheus_client import Counter, Gauge, Histogram

FIRST_BUCKETS_S = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30, 60)
TOKEN_BUCKETS_S = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2)


class Counters(NamedTuple):
    """What an operator looks at; all workers of a server together.

    Attributes:
        requests: by outcome: ok, refused (the client's fault), overloaded, failed, gone (the client left).
        prompt_tokens: read.
        generated_tokens: chosen.
        tokens_per_s: generated in the last second of work, 0 when idle.
        waiting: sequences without a slot.
        running: sequences with one.
        cache_used_bytes: that the running sequences keep.
        cache_bytes: allocated.
        first_token_s: from the parsed request to its first token, waiting included.
        step_s: between two tokens of a running sequence.
        batch_size: sequences of a step.
    """

    requests: Counter
    prompt_tokens: Counter
    generated_tokens: Counter
    tokens_per_s: Gauge
    waiting: Gauge
    running: Gauge
    cache_used_bytes: Gauge
    cache_bytes: Gauge
    first_token_s: Histogram
    step_s: Histogram
    batch_size: Histogram


@lru_cache
def counters() -> Counters:
    """Make the counters once per process, see `feedworks.serving.counters.counters`."""
    from prometheus_client import Counter, Gauge, Histogram

    def gauge(name: str, text: str) -> Gauge:
        return Gauge(name, text, namespace="ksa", multiprocess_mode="livesum")

    return Counters(
        Counter("requests", "requests by outcome", ["outcome"], namespace="ksa"),
        Counter("prompt_tokens", "tokens of prompts that the model read", namespace="ksa"),
        Counter("generated_tokens", "tokens that the model chose", namespace="ksa"),
        gauge("tokens_per_second", "tokens generated in the last second of work"),
        gauge("waiting", "sequences that wait for a slot of the cache"),
        gauge("running", "sequences that have one"),
        gauge("cache_used_bytes", "bytes that running sequences keep"),
        gauge("cache_bytes", "bytes allocated for keys and values"),
        Histogram(
            "time_to_first_token_seconds",
            "from the parsed request to its first token, waiting included",
            namespace="ksa",
            buckets=FIRST_BUCKETS_S,
        ),
        Histogram(
            "time_per_token_seconds",
            "between two tokens of a running sequence",
            namespace="ksa",
            buckets=TOKEN_BUCKETS_S,
        ),
        Histogram(
            "batch_size", "sequences that the model computed at once", namespace="ksa", buckets=BATCH_BUCKETS
        ),
    )
