"""Many clients that read answers as they come: how long until the first bit, how much in all."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from typing import NamedTuple
from urllib.parse import urlsplit

import numpy as np

from feedworks.errors import FeedworksError

ANSWER_WITHIN_S = 300.0
EVENT = b"data: "


class StreamLoad(NamedTuple):
    """What clients side by side measured: seconds to each first event, and of the whole run."""

    first_s: list[float]
    duration_s: float

    def quantile_s(self, q: float) -> float:
        """Seconds to the first event."""
        return float(np.quantile(self.first_s, q))


def run_streams(url: str, bodies: Sequence[bytes], clients: int, requests: int) -> StreamLoad:
    """Let each client send requests one after the other and read the answers to their ends.

    Args:
        url: address of a POST endpoint that answers in server-sent events.
        bodies: of requests; the clients start at different ones.
        clients: at the same time.
        requests: of each client.

    Raises:
        FeedworksError: an answer is none, or takes too long.
    """
    return asyncio.run(_run(url, bodies, clients, requests))


async def _run(url: str, bodies: Sequence[bytes], clients: int, requests: int) -> StreamLoad:
    first_s: list[float] = []

    async def client(number: int) -> None:
        for turn in range(requests):
            async with asyncio.timeout(ANSWER_WITHIN_S):
                first_s.append(await _ask(url, bodies[(number + turn * clients) % len(bodies)]))

    start_s = time.perf_counter()
    await asyncio.gather(*map(client, range(clients)))
    return StreamLoad(first_s, time.perf_counter() - start_s)


async def _ask(url: str, body: bytes) -> float:
    """Send one request, read its answer, return the seconds to the first event."""
    parts = urlsplit(url)
    lines = [f"POST {parts.path} HTTP/1.1", f"Host: {parts.netloc}", "Connection: close"]
    lines += ["Content-Type: application/json", f"Content-Length: {len(body)}", "", ""]
    start_s = time.perf_counter()
    reader, writer = await asyncio.open_connection(parts.hostname, parts.port)
    writer.write("\r\n".join(lines).encode() + body)
    found, first_s = b"", 0.0
    while part := await reader.read(1 << 16):
        found = found + part if not first_s else part
        if not first_s and EVENT in found:
            if not found.startswith(b"HTTP/1.1 200"):
                break
            first_s = time.perf_counter() - start_s
    writer.close()
    if not first_s:
        raise FeedworksError(f"{url} did not stream: {found[:300].decode(errors='replace')}")
    return first_s
