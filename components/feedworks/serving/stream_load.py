"""Many clients that read answers as they come, and when that was; clients that leave in the middle."""

from __future__ import annotations

import asyncio
import socket
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple
from urllib.parse import SplitResult, urlsplit

import numpy as np

from feedworks.errors import FeedworksError

ANSWER_WITHIN_S = 300.0
EVENT, DONE = b"data: ", b"data: [DONE]"


class Answered(NamedTuple):
    """One answer: seconds since the start of the run at which things happened, and what came.

    Attributes:
        sent_s: the request.
        first_s: the first event.
        last_s: the last event.
        num_events: server-sent events, without OpenAI's end mark.
    """

    sent_s: float
    first_s: float
    last_s: float
    num_events: int


class StreamLoad(NamedTuple):
    """What clients side by side measured: their answers, and seconds of the whole run."""

    answers: Sequence[Answered]
    duration_s: float

    @property
    def num_events(self) -> int:
        """Events of all answers."""
        return sum(answer.num_events for answer in self.answers)

    @property
    def first_s(self) -> list[float]:
        """Seconds from each request to its first event."""
        return [answer.first_s - answer.sent_s for answer in self.answers]

    @property
    def waited_s(self) -> float:
        """Seconds in which at least one client waited for its first event."""
        return covered_s((answer.sent_s, answer.first_s) for answer in self.answers)

    @property
    def streamed_s(self) -> float:
        """Seconds in which at least one client was between its first event and its last."""
        return covered_s((answer.first_s, answer.last_s) for answer in self.answers)

    @property
    def at_once(self) -> float:
        """How many clients were between their first event and their last, in the mean of these seconds."""
        streamed_s = self.streamed_s
        return sum(each.last_s - each.first_s for each in self.answers) / streamed_s if streamed_s else 0.0

    def quantile_s(self, q: float) -> float:
        """Seconds to the first event."""
        return float(np.quantile(self.first_s, q))


def covered_s(spans: Iterable[tuple[float, float]]) -> float:
    """Return the seconds that any of some spans covers."""
    total_s, end_s = 0.0, -float("inf")
    for first_s, last_s in sorted(spans):
        total_s += max(0.0, last_s - max(first_s, end_s))
        end_s = max(end_s, last_s)
    return total_s


def joined(loads: Iterable[StreamLoad]) -> StreamLoad:
    """Return runs that followed each other as one."""
    answers: list[Answered] = []
    start_s = 0.0
    for load in loads:
        answers += [
            Answered(start_s + sent_s, start_s + first_s, start_s + last_s, num_events)
            for sent_s, first_s, last_s, num_events in load.answers
        ]
        start_s += load.duration_s
    return StreamLoad(answers, start_s)


def run_streams(
    url: str,
    bodies: Sequence[bytes],
    clients: int,
    requests: int,
    *,
    within_s: float = ANSWER_WITHIN_S,
    came: Callable[[int], object] | None = None,
) -> StreamLoad:
    """Let each client send requests one after the other and read the answers to their ends.

    Args:
        url: address of a POST endpoint that answers in server-sent events.
        bodies: of requests; the clients start at different ones.
        clients: at the same time.
        requests: of each client.
        within_s: seconds for one answer.
        came: told how many events came, as they come.

    Raises:
        FeedworksError: an answer is none, or takes too long.
    """
    asking = _Asking(url, time.perf_counter(), came)
    return asyncio.run(_run(asking, bodies, clients, requests, within_s))


class _Asking(NamedTuple):
    url: str
    start_s: float
    came: Callable[[int], object] | None

    def now_s(self) -> float:
        return time.perf_counter() - self.start_s


async def _run(
    asking: _Asking, bodies: Sequence[bytes], clients: int, requests: int, within_s: float
) -> StreamLoad:
    answers: list[Answered] = []

    async def client(number: int) -> None:
        for turn in range(requests):
            body = bodies[(number + turn * clients) % len(bodies)]
            try:
                async with asyncio.timeout(within_s):
                    answers.append(await _ask(asking, body))
            except TimeoutError:
                raise FeedworksError(f"{asking.url} took more than {within_s:g} s for an answer") from None

    await asyncio.gather(*map(client, range(clients)))
    return StreamLoad(answers, asking.now_s())


async def _ask(asking: _Asking, body: bytes) -> Answered:
    """Send one request, read its answer and note when its events came."""
    parts = urlsplit(asking.url)
    sent_s = asking.now_s()
    reader, writer = await asyncio.open_connection(parts.hostname, parts.port)
    writer.write(_head(parts, body, "Connection: close") + body)
    begin, rest = b"", b""
    first_s, last_s, num_events = 0.0, 0.0, 0
    try:
        while part := await reader.read(1 << 16):
            begin = (begin + part)[:300] if not num_events else begin
            rest += part
            # What may be the beginning of an event, or of the end mark, waits for the next part.
            *whole, rest = rest.split(b"\n\n")
            found = sum(EVENT in each and DONE not in each for each in whole)
            if found:
                last_s = asking.now_s()
                first_s = first_s or last_s
                num_events += found
                if asking.came is not None:
                    asking.came(found)
    finally:
        writer.close()
    if not num_events or not begin.startswith(b"HTTP/1.1 200"):
        raise FeedworksError(f"{asking.url} did not stream: {begin.decode(errors='replace')}")
    return Answered(sent_s, first_s, last_s, num_events)


def leave(url: str, body: bytes, *, after_bytes: int = 0, after_events: int = 0, reset: bool = False) -> int:
    """Send a request and close the connection in the middle of the answer.

    Args:
        url: address of a POST endpoint.
        body: of the request, JSON.
        after_bytes: of the answer, its head with it, that are read before; 0 waits for none.
        after_events: server-sent events that are read before.
        reset: tear the connection instead of closing it.

    Returns:
        events that were read; fewer than `after_events` where the answer ended before.
    """
    parts = urlsplit(url)
    answer = b""
    with socket.create_connection((parts.hostname, parts.port), 30) as connection:
        connection.settimeout(ANSWER_WITHIN_S)
        if reset:  # do not linger: what is unsent is thrown away
            linger = (1).to_bytes(4, sys.byteorder) + (0).to_bytes(4, sys.byteorder)
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        connection.sendall(_head(parts, body) + body)
        while len(answer) < after_bytes or answer.count(EVENT) - answer.count(DONE) < after_events:
            if not (part := connection.recv(4096)):
                break
            answer += part
    return answer.count(EVENT) - answer.count(DONE)


def _head(parts: SplitResult, body: bytes, *more: str) -> bytes:
    lines = [f"POST {parts.path} HTTP/1.1", f"Host: {parts.netloc}", *more]
    lines += ["Content-Type: application/json", f"Content-Length: {len(body)}", "", ""]
    return "\r\n".join(lines).encode()
