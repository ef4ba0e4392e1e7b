"""The load generator against a real HTTP server that answers, refuses, breaks or is not there."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest

from feedworks.serving.load import Load, load_rows, merge, run_load


class Handler(BaseHTTPRequestHandler):
    """Path /ok sleeps 20 ms and answers, /bad answers 400, /cut closes without an answer."""

    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.seen.append((self.client_address, body))  # type: ignore[attr-defined]
        if self.path == "/cut":
            self.close_connection = True
            return
        time.sleep(0.02)
        self.send_response(200 if self.path == "/ok" else 400)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[ThreadingHTTPServer]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        running.seen = []  # type: ignore[attr-defined]
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield running
        running.shutdown()


def address(server: ThreadingHTTPServer, path: str) -> str:
    return f"http://127.0.0.1:{server.server_port}{path}"


def test_every_client_has_one_connection_and_one_request_at_a_time(server: ThreadingHTTPServer) -> None:
    load = run_load(address(server, "/ok"), [b"{}", b"[1]"], clients=4, duration_s=0.6, warmup_s=0.2)
    seen = server.seen  # type: ignore[attr-defined]
    assert len({client for client, _ in seen}) == 4
    assert {body for _, body in seen} == {b"{}", b"[1]"}
    assert load.num_errors == 0
    assert 4 <= len(load.latency_N) < len(seen)  # the warm-up does not count
    assert load.requests_per_s <= 4 / 0.02
    assert load.latency_N.min() >= 0.02


@pytest.mark.parametrize("path", ["/bad", "/cut"])
def test_bad_answers_are_counted_and_not_timed(server: ThreadingHTTPServer, path: str) -> None:
    load = run_load(address(server, path), [b"{}"], clients=2, duration_s=0.3)
    assert len(load.latency_N) == 0
    assert load.num_errors >= 2
    assert np.isnan(load.quantile(0.5))


def test_a_server_that_is_not_there(server: ThreadingHTTPServer) -> None:
    gone = address(server, "/ok")
    server.server_close()
    load = run_load(gone, [b"{}"], clients=1, duration_s=0.2)
    assert len(load.latency_N) == 0
    assert load.num_errors >= 1


@pytest.mark.parametrize(
    ("bodies", "clients", "duration_s"), [([], 1, 1.0), ([b""], 0, 1.0), ([b""], 1, 0.0)]
)
def test_senseless_arguments(bodies: list[bytes], clients: int, duration_s: float) -> None:
    with pytest.raises(ValueError, match="expected bodies"):
        run_load("http://127.0.0.1:1/", bodies, clients=clients, duration_s=duration_s)


def test_rows_and_merging() -> None:
    slow = Load(2, np.array([0.4, 0.2]), 1, 2.0)
    fast = merge([Load(2, np.array([0.1]), 0, 1.0), Load(2, np.array([0.1, 0.3]), 0, 1.0)])
    ours, peer = load_rows("ask", "a machine", {"ours": fast, "peer": slow}, "ours")
    assert ours == {
        "op": "ask",
        "provider": "ours",
        "shape": {"clients": 2},
        "device": "a machine",
        "p20_s": 0.1,
        "p50_s": 0.1,
        "p80_s": 0.22,
        "speedup": {"peer": 3.0},
        "p99_s": 0.296,
        "requests_per_s": 1.5,
        "requests": 3,
        "errors": 0,
        "throughput": {"peer": 1.5},
    }
    assert (peer["requests"], peer["errors"]) == (2, 1)
