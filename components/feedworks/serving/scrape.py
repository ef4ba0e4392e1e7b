"""What a service on loopback says at GET /metrics."""

from __future__ import annotations

import urllib.error

from feedworks.errors import FeedworksError
from feedworks.serving.server import get_text


def scrape(address: str, prefix: str) -> dict[str, float]:
    """Return the counters and gauges of a service, those of all its workers together.

    Args:
        address: `http://host:port`.
        prefix: of the names that are wanted, e.g. `ksa_`.

    Returns:
        value by name; `name/value` for each value of a label. Histograms are there as `_sum` and `_count`.

    Raises:
        FeedworksError: there is no answer.
    """
    from prometheus_client.parser import text_string_to_metric_families

    try:
        text = get_text(f"{address}/metrics")
    except (urllib.error.URLError, OSError) as error:
        raise FeedworksError(f"{address}/metrics does not answer: {error}") from None
    found: dict[str, float] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            if sample.name.startswith(prefix) and not sample.name.endswith("_bucket"):
                name = "/".join([sample.name, *sample.labels.values()])
                found[name] = found.get(name, 0) + sample.value
    return found
