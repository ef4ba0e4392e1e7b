"""A BentoML server of one service in a process of its own, on loopback."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from feedworks.errors import FeedworksError

HOST = "127.0.0.1"
MODEL_DIR = "FEEDWORKS_MODEL_DIR"
READY_WITHIN_S = 300.0


def server_command(target: str, port: int, host: str = HOST) -> list[str]:
    """The command line that serves `module:Class`, on loopback if not said otherwise."""
    words = ["-m", "bentoml", "serve", target, "--host", host, "--port", str(port)]
    return [sys.executable, *words]


@contextmanager
def running_server(target: str, environment: Mapping[str, str], log: Path) -> Iterator[str]:
    """Start a service on a free port; yield its address when it is ready; end it.

    BentoML keeps the counters of all servers of one home in one folder, which every start empties. So each
    server here has a home of its own for as long as it runs, unless `environment` names one.

    Args:
        target: `module:Class`.
        environment: added to this process's environment.
        log: file for what the server prints.

    Raises:
        FeedworksError: it ended or was not ready in time; the message names the log.
    """
    port = free_port()
    address = f"http://{HOST}:{port}"
    log.parent.mkdir(parents=True, exist_ok=True)
    with (
        tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as home,
        log.open("w", encoding="utf-8") as output,
    ):
        process = subprocess.Popen(
            server_command(target, port),
            env={**os.environ, "BENTOML_DO_NOT_TRACK": "True", "BENTOML_HOME": home, **environment},
            stdout=output,
            stderr=subprocess.STDOUT,
        )
        try:
            _wait_until_ready(process, address, log)
            yield address
        finally:
            process.terminate()
            process.wait()


def free_port() -> int:
    """A loopback port that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        port: int = probe.getsockname()[1]
    return port


def post_json(url: str, body: Mapping[str, Any]) -> dict[str, Any]:
    """POST a JSON object to a loopback address and return the JSON object of the answer."""
    request = urllib.request.Request(
        url, data=json.dumps(body).encode(), headers={"Content-Type": "application/json"}
    )
    with _direct().open(request, timeout=READY_WITHIN_S) as response:
        answer: dict[str, Any] = json.load(response)
    return answer


def get_text(url: str) -> str:
    """GET a text from a loopback address."""
    with _direct().open(url, timeout=READY_WITHIN_S) as response:
        content: bytes = response.read()
    return content.decode()


def _direct() -> urllib.request.OpenerDirector:
    # A proxy set for the outside world must not be asked for loopback.
    return urllib.request.build_opener(urllib.request.ProxyHandler({}))


def _wait_until_ready(process: subprocess.Popen[bytes], address: str, log: Path) -> None:
    direct = _direct()
    deadline_s = time.monotonic() + READY_WITHIN_S
    while time.monotonic() < deadline_s:
        if process.poll() is not None:
            told = f"the service ended with code {process.returncode}"
            raise FeedworksError(f"{told}: {_last_line(log)}; see {log}")
        try:
            with direct.open(f"{address}/readyz", timeout=1.0):
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.1)
    told = f"the service was not ready after {READY_WITHIN_S:.0f} s"
    raise FeedworksError(f"{told}: {_last_line(log)}; see {log}")


def _last_line(log: Path) -> str:
    """What the server said last: the log itself may lie in a folder that ends with the caller."""
    lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    return lines[-1][:300] if lines else "it said nothing"
