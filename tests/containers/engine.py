"""The Docker engine as tests use it: its command line, and the images of this release."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
import urllib.error
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from feedworks.serving.server import post_json

DOCKER = "/usr/bin/docker" if Path("/usr/bin/docker").exists() else shutil.which("docker") or "docker"
LIKE_A_CLUSTER = ("--read-only", "--tmpfs", "/tmp:rw,exec,mode=1777", "--cap-drop=ALL")


def docker(*words: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    done = subprocess.run([DOCKER, *words], capture_output=True, text=True, check=False)
    if check:
        assert done.returncode == 0, f"docker {' '.join(words)}: {done.stderr[-2000:]}{done.stdout[-2000:]}"
    return done


def require(image: str) -> str:
    if docker("image", "inspect", image, check=False).returncode:
        pytest.skip(f"image {image} is not here; make images")
    return image


def run(image: str, *words: str, options: tuple[str, ...] = (), check: bool = True) -> str:
    """Run a command in a container as a cluster would: unknown user, read-only root."""
    done = docker("run", "--rm", *LIKE_A_CLUSTER, *options, image, *words, check=check)
    return done.stdout + done.stderr


def mounted(folder: Path, *, writable: bool = False) -> tuple[str, ...]:
    """Options that show a folder at its own path, owned by the caller."""
    mode = "rw" if writable else "ro"
    return ("-v", f"{folder}:{folder}:{mode}", "-u", f"{os.getuid()}:{os.getgid()}")


@contextmanager
def started(image: str, *words: str, options: tuple[str, ...] = ()) -> Iterator[str]:
    """Start a container, yield its name, remove it."""
    name = f"feedworks-test-{uuid.uuid4().hex[:12]}"
    docker("run", "-d", "--name", name, *LIKE_A_CLUSTER, *options, image, *words)
    try:
        yield name
    finally:
        docker("rm", "-f", name, check=False)


def ask(container: str, address: str, body: dict[str, Any], within_s: float = 120.0) -> dict[str, Any]:
    """Ask a service in a container until it answers; its log is told when it does not."""
    end_s = time.monotonic() + within_s
    while True:
        try:
            return post_json(address, body)
        except (urllib.error.URLError, ConnectionError) as error:
            starting = not isinstance(error, urllib.error.HTTPError) or error.code == 503
            if starting and time.monotonic() < end_s:
                time.sleep(0.2)
                continue
            done = docker("logs", container, check=False)
            raise AssertionError(f"{address}: {error}\n{done.stdout[-2000:]}{done.stderr[-2000:]}") from None
