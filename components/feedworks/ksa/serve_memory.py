"""KSA (arXiv 2604.24432): bytes of the cache in `python -m feedworks.ksa.bench serve`.

What one stream holds, as the servers themselves say while it runs, next to the paper's formula; and what
clients leave behind that close their connection in mid-stream.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple

from feedworks.errors import FeedworksError
from feedworks.ksa.serve_models import FULL, OURS, TRANSFORMERS, WAIT_S, Server, Shape, formula, leaving_body
from feedworks.progress import Progress, say
from feedworks.serving.scrape import scrape
from feedworks.serving.server import post_json
from feedworks.serving.stream_load import leave, run_streams

USED, ALLOCATED = "ksa_cache_used_bytes", "ksa_cache_bytes"
RUNNING, WAITING, REQUESTS = "ksa_running", "ksa_waiting", "ksa_requests_total/"
LOOK_EVERY_S = 0.02
PEAK_EVERY_S = 0.1
BACK_WITHIN_S = 60.0
MOST_EVENTS = 8
# A short answer may come and go between two looks.
TRIES = 50


def memory_rows(
    servers: Mapping[str, Server], shape: Shape, streams: int, device: str
) -> Iterator[dict[str, Any]]:
    """Send one stream to each server and yield the bytes of its cache.

    Ours say what they hold five times a second, so that the most that is seen lacks the last few tokens. They
    have allocated a slot for each of the most streams; transformers allocates as a sequence grows, and holds
    the old and the new keys of a layer while it adds a token.

    Args:
        servers: by name; nothing else runs on them.
        shape: of the request.
        streams: slots of our caches.
        device: where they run.

    Yields:
        `held_bytes` measured, `formula_bytes` by T(n) at the end of the answer, `allocated_bytes` of a slot;
        for ours `ratio` = {measure: full attention's bytes / ours}.

    Raises:
        FeedworksError: a server does not answer, or says nothing of its cache.
    """
    needed = formula(shape)
    found: dict[str, dict[str, int]] = {}
    for name, server in servers.items():
        say(f"prompt {shape.prompt}, 1 stream: {name}, bytes of the cache")
        if name == TRANSFORMERS:
            held = allocated = _of_transformers(server)
        else:
            held = _most_held(server)
            allocated = int(_look(server)[ALLOCATED]) // streams
        found[name] = {"held_bytes": held, "formula_bytes": needed[name], "allocated_bytes": allocated}
    for name, sizes in found.items():
        row: dict[str, Any] = {"op": "serve_memory", "provider": name}
        row |= {"shape": {"prompt": shape.prompt, "answer": shape.answer}, "device": device} | sizes
        if name == OURS:
            row["ratio"] = {
                measure.removesuffix("_bytes"): round(found[FULL][measure] / size, 3)
                for measure, size in sizes.items()
            }
        yield row


def _most_held(server: Server) -> int:
    """Return the most bytes that the engine says it holds while one stream runs."""
    most = 0.0
    for _ in range(TRIES):
        with ThreadPoolExecutor(1) as pool:
            load = pool.submit(run_streams, server.url, server.bodies, 1, 1, within_s=WAIT_S)
            while not load.done():
                most = max(most, _look(server)[USED])
                time.sleep(LOOK_EVERY_S)
            load.result()
        if most:
            return int(most)
    raise FeedworksError(f"{server.address} held no bytes in {TRIES} answers")


def _look(server: Server) -> dict[str, float]:
    found = scrape(server.address, "ksa_")
    if missing := [name for name in (USED, ALLOCATED, RUNNING, WAITING) if name not in found]:
        raise FeedworksError(f"{server.address}/metrics lacks {', '.join(missing)}")
    return found


def _of_transformers(server: Server) -> int:
    run_streams(server.url, server.bodies, 1, 1, within_s=WAIT_S)
    found = 0

    def known() -> bool:
        nonlocal found
        found = int(post_json(f"{server.address}/cache", {})["bytes_per_stream"])
        return found > 0

    if _wait_for(known) is None:
        raise FeedworksError(f"{server.address} says nothing of its cache")
    return found


class _Left(NamedTuple):
    peak_bytes: int
    num_events: int


def leaving_rows(
    servers: Mapping[str, Server], shape: Shape, clients: int, at_once: int, device: str
) -> Iterator[dict[str, Any]]:
    """Let clients of our engines leave in mid-stream, behind their first to eighth event.

    Every other connection is torn, the others are closed.

    Args:
        servers: by name; nothing else runs on them.
        shape: of the other requests; these here have a short prompt and would get a much longer answer.
        clients: how many.
        at_once: so many side by side.
        device: where the servers run.

    Yields:
        bytes of the cache in use: `start_bytes`, `peak_bytes` as seen ten times a second, `end_bytes`;
        `gone`, the clients that the server saw leave before their answer was whole; and `back_s` from the
        last one's leaving until all was as before, None where it was not so in a minute.

    Raises:
        FeedworksError: a server does not answer.
    """
    body = leaving_body(shape)
    for name in (OURS, FULL):
        before = _look(servers[name])
        left = _let_leave(name, servers[name], body, clients, at_once)
        after, back_s = _when_back(servers[name], before, clients)
        gone = f"{REQUESTS}gone"
        yield {
            "op": "serve_leaving",
            "provider": name,
            "shape": {"clients": clients, "at_once": at_once},
            "device": device,
            "events_read": left.num_events,
            "gone": int(after.get(gone, 0) - before.get(gone, 0)),
            "start_bytes": int(before[USED]),
            "peak_bytes": left.peak_bytes,
            "end_bytes": int(after[USED]),
            "back_s": None if back_s is None else round(back_s, 3),
        }


def _when_back(
    server: Server, before: Mapping[str, float], clients: int
) -> tuple[Mapping[str, float], float | None]:
    """Return what the server says when all clients are gone, and after how many seconds."""
    after = before

    def is_back() -> bool:
        nonlocal after
        after = _look(server)
        idle = not (after[RUNNING] or after[WAITING])
        return idle and after[USED] == before[USED] and _ended(before, after) >= clients

    back_s = _wait_for(is_back)
    return after, back_s


def _let_leave(name: str, server: Server, body: bytes, clients: int, at_once: int) -> _Left:
    peak = 0.0
    with ThreadPoolExecutor(at_once) as pool, Progress(f"{name}: clients that left", total=clients) as shown:
        leaving: list[Future[int]] = [
            pool.submit(leave, server.url, body, after_events=1 + number % MOST_EVENTS, reset=number % 2 == 0)
            for number in range(clients)
        ]
        while shown.count < clients:
            peak = max(peak, _look(server)[USED])
            time.sleep(PEAK_EVERY_S)
            shown.advance(sum(future.done() for future in leaving) - shown.count)
        return _Left(int(peak), sum(future.result() for future in leaving))


def _ended(before: Mapping[str, float], after: Mapping[str, float]) -> float:
    """Requests of all outcomes that ended in between."""
    return sum(after[name] - before.get(name, 0) for name in after if name.startswith(REQUESTS))


def _wait_for(true: Callable[[], bool]) -> float | None:
    """Return the seconds until something is true, None if it does not come so far in a minute."""
    start_s = time.perf_counter()
    while not true():
        if time.perf_counter() - start_s > BACK_WITHIN_S:
            return None
        time.sleep(LOOK_EVERY_S)
    return time.perf_counter() - start_s
