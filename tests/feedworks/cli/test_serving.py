"""`feedworks serve` as a user starts it: a real service on loopback, and what stops it from starting."""

from __future__ import annotations

import socket
from pathlib import Path

from .conftest import Command


def test_a_taken_port_is_one_line(feedworks: Command, tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        result = feedworks("serve", "recochain", "--model", "model", "--port", str(port))
    assert result.returncode == 1
    assert result.stderr == f"feedworks: port {port} is taken; choose another with --port\n"
