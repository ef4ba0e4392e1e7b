"""What the Containerfiles promise, read from the files: no engine is needed."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread

import pytest

from .engine import DOCKER

ROOT = Path(__file__).resolve().parents[2]
FILES = sorted((ROOT / "containers").glob("*.Containerfile"))
HADOLINT = Path(sysconfig.get_path("scripts")) / "hadolint"
TARGETS = {"train", "serve"}


def stages(text: str) -> dict[str, str]:
    """Name of each stage -> its lines."""
    parts = re.split(r"^FROM +\S+ +AS +(\w[\w-]*)$", text, flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def faults(text: str) -> list[str]:
    """What is wrong with a Containerfile; tests feed it broken ones, too."""
    found = []
    if not re.search(r"^ARG BASE_IMAGE=[\w./-]+:[\w.-]+$", text, re.MULTILINE) or ":latest" in text:
        found.append("no public base image with a tag")
    if "@sha256:" in text or "<<" in text or re.search(r"^# *syntax", text, re.MULTILINE):
        found.append("a digest, a heredoc or a syntax line")
    if re.search(r"https?://(?!127\.0\.0\.1)", text):
        found.append("an address")
    stage = stages(text)
    if not set(stage) >= TARGETS | {"runtime"}:
        return [*found, "targets are missing"]
    if not re.search(r"^USER [1-9]\d+:[1-9]\d+$", stage["runtime"], re.MULTILINE):
        found.append("the user is not a number above 0")
    for name in ("runtime", *TARGETS):
        if re.search(r"apt-get|^USER (?!10001:10001$)|pip install", stage[name], re.MULTILINE):
            found.append(f"{name} installs something or is another user")
    if "HEALTHCHECK" not in stage["serve"]:
        found.append("serve has no health check")
    if "org.opencontainers.image.version" not in stage["runtime"]:
        found.append("no labels")
    if "PIP_CONSTRAINT=/src/constraints.txt" not in text:
        found.append("versions are not pinned")
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_a_containerfile_keeps_the_rules(path: Path) -> None:
    assert faults(path.read_text()) == []


@pytest.mark.parametrize(
    ("old", "new", "fault"),
    [
        ("USER 10001:10001", "USER feedworks", "the user is not a number above 0"),
        ("USER 10001:10001", "USER 0:0", "the user is not a number above 0"),
        ("ENTRYPOINT", "USER 0:0\nENTRYPOINT", "serve installs something or is another user"),
        ("EXPOSE 3000", "RUN apt-get install gcc", "serve installs something or is another user"),
        ("HEALTHCHECK", "ENV A=", "serve has no health check"),
        ("python:3.11-slim-bookworm", "python:latest", "no public base image with a tag"),
        ("PIP_CONSTRAINT=/src/constraints.txt", "", "versions are not pinned"),
        ("WORKDIR /src", "ENV PIP_INDEX_URL=https://wheels.example", "an address"),
    ],
)
def test_a_broken_containerfile_is_found(old: str, new: str, fault: str) -> None:
    text = (ROOT / "containers" / "cpu.Containerfile").read_text()
    assert old in text
    assert fault in faults(text.replace(old, new, 1))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_hadolint_finds_nothing(path: Path) -> None:
    done = subprocess.run([HADOLINT, path], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "")


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
@pytest.mark.parametrize("status", [200, 503])
def test_the_health_check_asks_the_service_and_no_proxy(path: Path, status: int) -> None:
    class Livez(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status if self.path == "/livez" else 404)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    found = re.search(r"^HEALTHCHECK.*\n +CMD (\[.*\])$", path.read_text(), re.MULTILINE)
    assert found
    _, option, code = json.loads(found[1])
    with HTTPServer(("127.0.0.1", 0), Livez) as server:
        Thread(target=server.handle_request, daemon=True).start()
        command = [sys.executable, option, code.replace(":3000/", f":{server.server_port}/")]
        proxy = {**os.environ, "http_proxy": "http://127.0.0.1:9", "no_proxy": ""}
        done = subprocess.run(command, env=proxy, capture_output=True, text=True, check=False)
    assert (done.returncode == 0) == (status == 200), done.stderr


def test_hadolint_looks(tmp_path: Path) -> None:
    broken = tmp_path / "Containerfile"
    broken.write_text("FROM python\nRUN cd /tmp && pip install six\n")
    done = subprocess.run([HADOLINT, broken], capture_output=True, text=True, check=False)
    assert done.returncode
    assert "DL3006" in done.stdout


def test_the_kernels_of_every_paper_are_compiled_ahead() -> None:
    modules = {path.parent.name for path in (ROOT / "components" / "feedworks").glob("*/kernel_calls.py")}
    text = (ROOT / "containers" / "gpu.Containerfile").read_text()
    for name in modules:
        assert text.count(f"--calls feedworks.{name}.kernel_calls") == len(TARGETS), name
    assert modules


SEEN = {
    *("constraints.txt", "pyproject.toml", "README.md", "LICENSE", "containers/slim.sh", "components/a/b.py"),
    *("feature_repo/store.py", "pipelines/compiled/a.yaml", "containers/wheels/cpu/torch.whl"),
}
UNSEEN = {
    *(".git/config", ".env", "tests/a.py", "out/model/weights", ".venv/bin/python", "containers/README.md"),
    *(
        "components/a/__pycache__/b.pyc",
        "feature_repo/data/online.db",
        "kernels/bench/run.py",
        "secrets.json",
    ),
}


@pytest.mark.docker
def test_the_builder_sees_only_what_images_hold(tmp_path: Path) -> None:
    for name in SEEN | UNSEEN:
        path = tmp_path / "context" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("a")
    shutil.copy(ROOT / ".dockerignore", tmp_path / "context")
    (tmp_path / "Containerfile").write_text("FROM scratch\nCOPY . /\n")
    words = ["-f", tmp_path / "Containerfile", "-o", f"type=local,dest={tmp_path / 'seen'}"]
    subprocess.run(
        [DOCKER, "build", "-q", *words, tmp_path / "context"],
        env={**os.environ, "DOCKER_BUILDKIT": "1"},
        capture_output=True,
        check=True,
    )
    seen = tmp_path / "seen"
    assert {str(path.relative_to(seen)) for path in seen.rglob("*") if path.is_file()} == SEEN


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (["cpu-tarin"], "no image cpu-tarin"),
        (["cpu-train", "serve"], "no image serve"),
        ([""], "no image "),
        ([], "no image is named"),
    ],
)
def test_an_unknown_image_is_told_before_anything_is_built(names: list[str], said: str) -> None:
    script = ROOT / "containers" / "build.sh"
    environment = {"PATH": "/usr/bin:/bin", "DOCKER": "/bin/false", "BASE_IMAGE": "here:1"}
    done = subprocess.run(
        ["/bin/bash", script, *names], capture_output=True, text=True, check=False, env=environment
    )
    assert done.returncode == 1
    assert done.stderr.splitlines() == [
        f"images: {said}; there are cpu-train, cpu-serve, gpu-train and gpu-serve"
    ]


@pytest.mark.parametrize(
    ("there", "fetched", "warned"),
    [
        ("{torch}+cpu-cp311-cp311-manylinux_2_28_x86_64.whl", False, False),
        ("{torch}-cp311-cp311-manylinux_2_28_x86_64.whl", False, True),
        ("torch-2.0.0+cpu-cp311-cp311-manylinux_2_28_x86_64.whl", True, True),
        ("{torch}+cpu-cp312-cp312-manylinux_2_28_x86_64.whl", True, True),
    ],
)
def test_a_wheel_that_no_image_can_take_is_not_taken_for_one(
    tmp_path: Path, there: str, fetched: bool, warned: bool
) -> None:
    source = tmp_path / "a source"
    shutil.copytree(ROOT / "containers", source / "containers", ignore=shutil.ignore_patterns("*.whl"))
    for name in ("pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, source)
    torch = re.search(r"^torch==(.*)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    assert torch
    (source / "containers/wheels/cpu" / there.format(torch=f"torch-{torch[1]}")).touch()
    pip = tmp_path / "pip"
    pip.write_text(f'#!/bin/sh\necho "$@" > {tmp_path}/asked\n')
    pip.chmod(0o755)
    environment = {"PATH": "/usr/bin:/bin", "DOCKER": "/bin/true", "BASE_IMAGE": "here:1", "PIP": str(pip)}
    words = ["/bin/bash", source / "containers" / "build.sh", "cpu-train"]
    done = subprocess.run(words, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "asked").exists() == fetched
    if fetched:
        assert "--python-version 3.11" in (tmp_path / "asked").read_text()
    assert ("pip found no wheel" in done.stderr) == warned


def test_without_an_engine_and_a_registry_the_build_says_so(tmp_path: Path) -> None:
    script = ROOT / "containers" / "build.sh"
    engine = tmp_path / "docker"
    engine.write_text('#!/bin/sh\nprintf "permission denied\\nby the socket" >&2\nexit 1\n')
    engine.chmod(0o755)
    environment = {"PATH": "/usr/bin:/bin", "DOCKER": str(engine), "LOCAL_ENGINE": str(tmp_path)}
    words = ["/bin/bash", script, "cpu-train"]
    done = subprocess.run(words, capture_output=True, text=True, check=False, env=environment)
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert "no Docker engine answers (permission denied by the socket)" in done.stderr
    engine.write_text('#!/bin/sh\n[ "$1" = info ] && exit 0\necho "dial tcp: no such host" >&2\nexit 1\n')
    done = subprocess.run(words, capture_output=True, text=True, check=False, env=environment)
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert "cannot be pulled (dial tcp: no such host); give another with BASE_IMAGE=" in done.stderr
