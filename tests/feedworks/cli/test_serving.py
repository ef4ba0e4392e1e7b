"""`feedworks serve` as a user starts it: a real service on loopback, and what stops it from starting."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from feedworks.cli.serving import service_command
from feedworks.papers import PAPERS
from feedworks.serving.server import free_port

from .conftest import Command, environment


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


def test_a_host_that_is_not_ours_is_one_line(feedworks: Command, tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    result = feedworks("serve", "recochain", "--model", "model", "--host", "192.0.2.1")  # of RFC 5737
    assert result.returncode == 1
    expected = (
        "feedworks: --host 192.0.2.1: Cannot assign requested address; give an address of this machine\n"
    )
    assert result.stderr == expected


def test_the_host_reaches_the_server_and_is_loopback_if_not_given(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    for host, given in (("127.0.0.1", ()), ("0.0.0.0", ("0.0.0.0",))):
        command, environment = service_command(PAPERS["recochain"], tmp_path, 3000, *given)
        assert command[-4:] == ["--host", host, "--port", "3000"]
        assert environment["FEEDWORKS_MODEL_DIR"] == str(tmp_path)


def test_a_container_that_is_stopped_at_its_start_ends(tmp_path: Path) -> None:
    """Its first process must pass SIGTERM on: the server has no handler while it imports."""
    alone = ["unshare", "--map-root-user", "--pid", "--fork", "--kill-child"]
    if subprocess.run([*alone, "true"], capture_output=True, check=False).returncode:
        pytest.skip("no process may be the first of a namespace here")
    (tmp_path / "config.json").write_text("{}")
    words = ["serve", "recochain", "--model", str(tmp_path), "--port", str(free_port())]
    process = subprocess.Popen(
        [*alone, sys.executable, "-m", "feedworks", *words],
        env=environment(),
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr
    assert "serving" in process.stderr.readline()
    (first,) = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    os.kill(int(first), signal.SIGTERM)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGTERM, said
