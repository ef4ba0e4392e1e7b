"""A Redis server for tests, benches and the demo: on loopback, on a spare port, nothing kept on disk."""

from __future__ import annotations

import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager

from feedworks.errors import ConfigError, StoreError
from feedworks.serving.server import HOST, free_port

READY_WITHIN_S = 10.0


class LocalRedis:
    """A server that can be killed and started again on the same port; it starts empty each time.

    Args:
        port: a free one where None.
    """

    def __init__(self, port: int | None = None) -> None:
        self.port = port or free_port()
        self._process: subprocess.Popen[bytes] | None = None
        self._folder: tempfile.TemporaryDirectory[str] | None = None

    @property
    def url(self) -> str:
        """Its address."""
        return f"redis://{HOST}:{self.port}/0"

    def start(self) -> None:
        """Start it and wait until it answers.

        Raises:
            ConfigError: redis-server is not installed.
            StoreError: it ended, or did not answer in time.
        """
        program = shutil.which("redis-server")
        if program is None:
            raise ConfigError("redis-server is not on the PATH; apt-get install redis-server")
        self._folder = tempfile.TemporaryDirectory(prefix="redis-")
        words = ["--bind", HOST, "--port", str(self.port), "--save", "", "--appendonly", "no"]
        self._process = subprocess.Popen(
            [program, *words, "--dir", self._folder.name], stdout=subprocess.DEVNULL
        )
        deadline_s = time.monotonic() + READY_WITHIN_S
        while not self._answers():
            if self._process.poll() is not None or time.monotonic() > deadline_s:
                self.stop()
                raise StoreError(f"redis-server did not start on port {self.port}; is the port taken?")
            time.sleep(0.02)

    def stop(self) -> None:
        """Kill it, if it runs."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
        if self._folder is not None:
            self._folder.cleanup()
        self._process = self._folder = None

    def _answers(self) -> bool:
        try:
            with socket.create_connection((HOST, self.port), timeout=1.0) as connection:
                connection.sendall(b"PING\r\n")
                return connection.recv(16).startswith(b"+PONG")
        except OSError:
            return False


@contextmanager
def running_redis(port: int | None = None) -> Iterator[LocalRedis]:
    """Start a server; kill it at the end."""
    server = LocalRedis(port)
    server.start()
    try:
        yield server
    finally:
        server.stop()
