"""A load generator: closed loop, one keep-alive connection per client, plain sockets.

It shares the machine with the server, so that it must be light: requests are built before the run, and an
answer costs it a call of `recv` and a look at its head. A client sends its next request when the last answer
is there, so the load adapts to the server and the latency of an overloaded server is that of `clients`
requests in the queue. Run it in another process than the server. An answer that is not 200, a broken
connection and an answer that takes too long are errors.
"""

from __future__ import annotations

import selectors
import socket
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import numpy as np
import numpy.typing as npt

from feedworks.metrics.latency import Timing, json_rows

ANSWER_WITHIN_S = 60.0
RETRY_AFTER_S = 0.01  # a server that is gone must not be asked a million times
JSON = "application/json"


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
    url: str,
    bodies: Sequence[bytes],
    *,
    clients: int,
    duration_s: float,
    warmup_s: float = 0.0,
    media_type: str = JSON,
) -> Load:
    """Send `bodies` in turns from `clients` connections.

    Args:
        url: address of a POST endpoint, `http://host:port/path`.
        bodies: of requests; the clients start at different ones.
        clients: connections, each with one request at a time.
        duration_s: seconds that count; a request counts if it was sent in them.
        warmup_s: seconds before them.
        media_type: what the bodies are.

    Raises:
        ValueError: no body, or a number that is not positive.
    """
    if not bodies or clients < 1 or duration_s <= 0 or warmup_s < 0:
        raise ValueError(f"expected bodies, clients >= 1, seconds > 0; got {clients=}, {duration_s=}")
    target = _Target.parse(url)
    requests = [target.request(body, media_type) for body in bodies]
    start_s = time.perf_counter() + warmup_s
    end_s = start_s + duration_s
    with selectors.DefaultSelector() as selector:
        offsets = [client * len(requests) // clients for client in range(clients)]
        crowd = [_Client(target, requests[at:] + requests[:at], selector) for at in offsets]
        _run(crowd, selector, end_s)
    counted = [sent for client in crowd for sent in client.found if sent.start_s >= start_s]
    # The last answers come after the end; the rate is over the time in which the counted ones came.
    last_s = max((sent.start_s + sent.latency_s for sent in counted), default=end_s)
    good = [sent.latency_s for sent in counted if sent.good]
    return Load(clients, np.array(good), len(counted) - len(good), last_s - start_s)


class _Target(NamedTuple):
    host: str
    port: int
    path: str

    @classmethod
    def parse(cls, url: str) -> _Target:
        parts = urlsplit(url)
        return cls(parts.hostname or "127.0.0.1", parts.port or 80, parts.path or "/")

    def request(self, body: bytes, media_type: str) -> bytes:
        head = (
            f"POST {self.path} HTTP/1.1\r\nHost: {self.host}:{self.port}\r\n"
            f"Content-Type: {media_type}\r\nContent-Length: {len(body)}\r\n\r\n"
        )
        return head.encode() + body


class _Sent(NamedTuple):
    start_s: float
    latency_s: float
    good: bool


def _run(crowd: Sequence[_Client], selector: selectors.BaseSelector, end_s: float) -> None:
    """Keep every client busy until the end, then wait for the last answers."""
    while True:
        now_s = time.perf_counter()
        for client in crowd:
            if client.socket is None and client.retry_s <= now_s < end_s:
                client.begin()
            elif client.socket is not None and now_s - client.start_s > ANSWER_WITHIN_S:
                client.fail()
        if now_s >= end_s and not selector.get_map():
            return
        # A round of answers without a look at the clients as a whole, which takes longer the more they are.
        until_s = now_s + RETRY_AFTER_S
        while (wait_s := until_s - time.perf_counter()) > 0 and selector.get_map():
            for key, _ in selector.select(wait_s):
                key.data.go_on(end_s)
        if wait_s > 0 and now_s < end_s:
            time.sleep(wait_s)


class _Client:
    """One connection, and what became of the requests sent on it."""

    def __init__(self, target: _Target, requests: Sequence[bytes], selector: selectors.BaseSelector) -> None:
        self.found: list[_Sent] = []
        self.socket: socket.socket | None = None
        self.retry_s = 0.0
        self.start_s = 0.0
        self._target = target
        self._requests = requests
        self._selector = selector
        self._unsent = memoryview(b"")
        self._answer = b""
        self._expected = 0

    def begin(self) -> None:
        """Connect, and send the first request."""
        self.start_s = time.perf_counter()
        try:
            self.socket = socket.create_connection((self._target.host, self._target.port), ANSWER_WITHIN_S)
            self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self.socket.setblocking(False)
            self._selector.register(self.socket, selectors.EVENT_READ, self)
            self._ask()
        except OSError:
            self.fail()

    def go_on(self, end_s: float) -> None:
        """Do what the socket is ready for; after an answer send the next request, or end."""
        try:
            if self._unsent:
                self._send()
            elif self._received():
                self._ask() if time.perf_counter() < end_s else self._close()
        except (OSError, ValueError, EOFError):
            self.fail()

    def fail(self) -> None:
        """Count an error and close."""
        self.found.append(_Sent(self.start_s, time.perf_counter() - self.start_s, False))
        self.retry_s = time.perf_counter() + RETRY_AFTER_S
        self._close()

    def _ask(self) -> None:
        self._answer, self._expected = b"", 0
        self._unsent = memoryview(self._requests[len(self.found) % len(self._requests)])
        self.start_s = time.perf_counter()
        self._send()

    def _send(self) -> None:
        assert self.socket is not None
        writing = bool(self._selector.get_key(self.socket).events & selectors.EVENT_WRITE)
        with suppress(BlockingIOError):
            self._unsent = self._unsent[self.socket.send(self._unsent) :]
        if bool(self._unsent) != writing:
            events = selectors.EVENT_WRITE if self._unsent else selectors.EVENT_READ
            self._selector.modify(self.socket, events, self)

    def _received(self) -> bool:
        """Take what came; True when the answer is whole."""
        assert self.socket is not None
        part = self.socket.recv(1 << 18)
        if not part:
            raise EOFError("the connection was closed")
        self._answer += part
        if not self._expected:
            head, end, _ = self._answer.partition(b"\r\n\r\n")
            if not end:
                return False
            _, found, rest = head.lower().partition(b"content-length:")
            if not found:
                raise ValueError("expected an answer with a content length")
            self._expected = len(head) + 4 + int(rest.partition(b"\r\n")[0])
        if len(self._answer) < self._expected:
            return False
        good = self._answer[8:13] == b" 200 "
        self.found.append(_Sent(self.start_s, time.perf_counter() - self.start_s, good))
        return True

    def _close(self) -> None:
        if self.socket is not None:
            if self.socket.fileno() in self._selector.get_map():
                self._selector.unregister(self.socket)
            self.socket.close()
        self.socket = None
