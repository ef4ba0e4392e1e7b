"""A load generator for JSON services: closed loop, one keep-alive connection per client.

A client sends its next request when the last answer is there, so the load adapts to the server and the
latency of an overloaded server is that of `clients` requests in the queue. Run it in another process than the
server. An answer that is not 200, a broken connection and an answer that takes too long are errors.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import numpy as np
import numpy.typing as npt

from feedworks.metrics.latency import Timing, json_rows

ANSWER_WITHIN_S = 60.0


class Load(NamedTuple):
    """What a run measured: latencies of good answers in seconds, and how long the run took."""

    clients: int
    latency_N: npt.NDArray[np.float64]
    num_errors: int
    duration_s: float

    @property
    def requests_per_s(self) -> float:
        """Good answers per second."""
        return len(self.latency_N) / self.duration_s

    def quantile(self, q: float) -> float:
        """Latency in seconds, nan if there was no good answer."""
        return float(np.quantile(self.latency_N, q)) if len(self.latency_N) else float("nan")


def merge(loads: Sequence[Load]) -> Load:
    """Several runs with equal clients as one."""
    return Load(
        loads[0].clients,
        np.concatenate([load.latency_N for load in loads]),
        sum(load.num_errors for load in loads),
        sum(load.duration_s for load in loads),
    )


def load_rows(op: str, device: str, loads: Mapping[str, Load], ours: str) -> list[dict[str, Any]]:
    """Build the JSON rows of providers under the same load.

    Beside the fields of `feedworks.metrics.latency.json_rows`: `p99_s`, `requests_per_s`, `requests`,
    `errors`, and for ours `throughput` = {peer: our requests per second / the peer's}.

    Args:
        op: name of the operation; `clients` becomes its shape.
        device: where it ran, see `device_label`.
        loads: provider -> what it was measured to do.
        ours: our provider.
    """
    timings = {name: Timing(*map(load.quantile, (0.2, 0.5, 0.8))) for name, load in loads.items()}
    rows = json_rows(op, {"clients": loads[ours].clients}, device, timings, ours)
    for row, load in zip(rows, loads.values(), strict=True):
        row["p99_s"] = round(load.quantile(0.99), 6)
        row["requests_per_s"] = round(load.requests_per_s, 2)
        row["requests"], row["errors"] = len(load.latency_N), load.num_errors
        if row["provider"] == ours:
            rates = {peer: other.requests_per_s for peer, other in loads.items() if peer != ours}
            row["throughput"] = {
                peer: round(load.requests_per_s / rate, 3) for peer, rate in rates.items() if rate
            }
    return rows


def run_load(
    url: str, bodies: Sequence[bytes], *, clients: int, duration_s: float, warmup_s: float = 0.0
) -> Load:
    """Send `bodies` in turns from `clients` connections.

    Args:
        url: address of a POST endpoint, `http://host:port/path`.
        bodies: JSON requests; client i starts with the i-th.
        clients: connections, each with one request at a time.
        duration_s: seconds that count; a request counts if it was sent in them.
        warmup_s: seconds before them.

    Raises:
        ValueError: no body, or a number that is not positive.
    """
    if not bodies or clients < 1 or duration_s <= 0 or warmup_s < 0:
        raise ValueError(f"expected bodies, clients >= 1, seconds > 0; got {clients=}, {duration_s=}")
    return asyncio.run(_run(_Target.parse(url), bodies, clients, duration_s, warmup_s))


class _Target(NamedTuple):
    host: str
    port: int
    path: str

    @classmethod
    def parse(cls, url: str) -> _Target:
        parts = urlsplit(url)
        return cls(parts.hostname or "127.0.0.1", parts.port or 80, parts.path or "/")

    def request(self, body: bytes) -> bytes:
        head = (
            f"POST {self.path} HTTP/1.1\r\nHost: {self.host}:{self.port}\r\n"
            f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        )
        return head.encode() + body


class _Sent(NamedTuple):
    start_s: float
    latency_s: float
    good: bool


async def _run(
    target: _Target, bodies: Sequence[bytes], clients: int, duration_s: float, warmup_s: float
) -> Load:
    requests = [target.request(body) for body in bodies]
    start_s = time.perf_counter() + warmup_s
    end_s = start_s + duration_s
    offsets = [client * len(requests) // clients for client in range(clients)]
    found = await asyncio.gather(
        *(_client(target, requests[offset:] + requests[:offset], end_s) for offset in offsets)
    )
    counted = [sent for client in found for sent in client if sent.start_s >= start_s]
    # The last answers come after the end; the rate is over the time in which the counted ones came.
    last_s = max((sent.start_s + sent.latency_s for sent in counted), default=end_s)
    good = [sent.latency_s for sent in counted if sent.good]
    return Load(len(offsets), np.array(good), len(counted) - len(good), last_s - start_s)


async def _client(target: _Target, requests: Sequence[bytes], end_s: float) -> list[_Sent]:
    found: list[_Sent] = []
    streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None
    while (start_s := time.perf_counter()) < end_s:
        try:
            if streams is None:
                streams = await asyncio.open_connection(target.host, target.port)
            async with asyncio.timeout(ANSWER_WITHIN_S):
                status = await _exchange(*streams, requests[len(found) % len(requests)])
        except (OSError, ValueError, EOFError, TimeoutError):
            status = 0
            if streams is not None:
                streams[1].close()
            streams = None
            await asyncio.sleep(0.01)  # a server that is gone must not be asked a million times
        found.append(_Sent(start_s, time.perf_counter() - start_s, status == 200))
    if streams is not None:
        streams[1].close()
    return found


async def _exchange(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, request: bytes) -> int:
    """Send one request, read its answer to the end, return the status."""
    writer.write(request)
    await writer.drain()
    head = (await reader.readuntil(b"\r\n\r\n")).lower()
    status_line, _, fields = head.partition(b"\r\n")
    _, found, rest = fields.partition(b"content-length:")
    if not found:
        raise ValueError("expected an answer with a content length")
    await reader.readexactly(int(rest.partition(b"\r\n")[0]))
    return int(status_line.split()[1])
