"""The RayJob's head, a worker and its command in containers of its image; the job comes by HTTP.

The two share one loopback, where the ports of Ray's agents differ.
"""

from __future__ import annotations

import json
import os
import secrets
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import yaml

from feedworks import images
from feedworks.contracts.synthetic import write_synthetic
from feedworks.recochain import steps
from feedworks.recochain.config import tiny

from .engine import docker, require, started

pytestmark = pytest.mark.docker

JOB = Path(__file__).resolve().parents[2] / "manifests/components/ray/job.yaml"
TOKEN = secrets.token_hex(32)
BASH = ("--entrypoint", "/bin/bash", "--shm-size=1g", "--security-opt=no-new-privileges")
RAY = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": TOKEN, "RAY_ADDRESS": "127.0.0.1:6379"}
SLOW = {"RAY_raylet_start_wait_time_s": "180"}  # of a busy machine
START_S, JOB_S = 300, 300
# The image has no curl: address, body, token -> status and answer.
ASK = """
import sys, urllib.error, urllib.request
address, body, token = sys.argv[1:]
headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {token}"} if token else {})
try:
    with urllib.request.urlopen(urllib.request.Request(address, body.encode() or None, headers)) as answer:
        print(answer.status, answer.read().decode())
except urllib.error.HTTPError as error:
    print(error.code, error.read().decode())
except OSError as error:
    print(0, error)
"""


@pytest.fixture
def job() -> dict[str, Any]:
    spec: dict[str, Any] = yaml.safe_load(JOB.read_text())["spec"]
    return spec


@pytest.fixture
def workspace(tmp_path: Path) -> Path:
    write_synthetic(tmp_path / "events", num_users=400, num_items=60, mean_events=20, seed=5)
    return tmp_path


@pytest.fixture
def head(job: dict[str, Any], workspace: Path) -> Iterator[str]:
    """The container of the head, once both machines say that they are well."""
    image = require(images.CPU_RAY)
    variables = [word for name, value in (RAY | SLOW).items() for word in ("-e", f"{name}={value}")]
    user = ("-u", f"{os.getuid()}:{os.getgid()}")
    options = (*BASH, *variables, *user, "-v", f"{workspace}:/workspace")
    probe = job["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]["containers"][0]["livenessProbe"]
    path, port = (probe["httpGet"][key] for key in ("path", "port"))
    given = job["rayClusterSpec"]["headGroupSpec"]["rayStartParams"]
    words = [f"--{name}={value}" for name, value in given.items()]
    start = f"ray start --block --object-store-memory=200000000 --dashboard-agent-listen-port={port}"
    with ExitStack() as stack:
        command = f"{start} --head --port=6379 {' '.join(words)}"
        name = stack.enter_context(started(image, "-c", command, options=(*options, "--network=none")))
        _until(lambda: ask(name, f"http://127.0.0.1:{port}{path}")[0] == 200, START_S, name)
        command = f"{start.replace(str(port), str(port + 1))} --address=127.0.0.1:6379 --num-cpus=1"
        other = started(image, "-c", command, options=(*options, f"--network=container:{name}"))
        stack.enter_context(other)
        _until(lambda: ask(name, f"http://127.0.0.1:{port + 1}{path}")[0] == 200, START_S, name)
        yield name


def ask(container: str, address: str, body: str = "", token: str = "") -> tuple[int, str]:
    words = ("exec", "-i", container, "python3", "-c", ASK, address, body, token)
    status, _, answer = docker(*words, check=False).stdout.strip().partition(" ")
    return int(status or 0), answer


def _until(done: Callable[[], bool], limit_s: float, container: str) -> None:
    end_s = time.monotonic() + limit_s
    while not done():
        assert time.monotonic() < end_s, docker("logs", "--tail", "30", container, check=False).stdout
        time.sleep(2)


def test_the_job_prepares_the_same_bytes(job: dict[str, Any], head: str, workspace: Path) -> None:
    jobs = "http://127.0.0.1:8265/api/jobs/"
    entrypoint = job["entrypoint"].replace("--preset=paper", "--preset=tiny")
    body = json.dumps({"entrypoint": entrypoint})
    assert ask(head, jobs, body)[0] == 401, "who has no token may run nothing"
    status, answer = ask(head, jobs, body, TOKEN)
    assert status == 200, answer
    name = json.loads(answer)["submission_id"]

    def state() -> str:
        return str(json.loads(ask(head, jobs + name, token=TOKEN)[1])["status"])

    _until(lambda: state() in ("SUCCEEDED", "FAILED", "STOPPED"), JOB_S, head)
    assert state() == "SUCCEEDED", ask(head, f"{jobs}{name}/logs", token=TOKEN)[1]
    steps.prepare(workspace / "events", workspace / "here", tiny())
    there, here = (
        {path.name: path.read_bytes() for path in (workspace / folder).iterdir()}
        for folder in ("prepared", "here")
    )
    assert there == here
