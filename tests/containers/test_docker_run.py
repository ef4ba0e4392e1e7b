"""The same pipeline file by subprocesses and in containers: the same bytes; and how an engine goes wrong."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from contextlib import closing
from pathlib import Path

import pytest
from docker import from_env

from feedworks import images
from feedworks.cli.docker_tasks import LABEL, docker_runner
from feedworks.errors import FeedworksError

from ..pipelines.runs import ENVIRONMENT, ROOT, command, contents, run, write_data
from .engine import docker, require

pytestmark = pytest.mark.docker


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_data("recochain", tmp_path_factory.mktemp("events"))


def test_containers_and_subprocesses_give_the_same_bytes(data: Path, tmp_path: Path) -> None:
    require(images.CPU)
    for runner in ("kfp", "docker"):
        result = run("recochain", tmp_path / runner, "--data", data, "--runner", runner)
        assert result.returncode == 0, result.stderr[-4000:]
        assert "[train-joint]" in result.stderr
    kfp, containers = tmp_path / "kfp", tmp_path / "docker"
    assert (kfp / "metrics.json").read_bytes() == (containers / "metrics.json").read_bytes()
    assert contents(kfp / "model") == contents(containers / "model")
    assert {path.stat().st_uid for path in containers.rglob("*")} == {os.getuid()}


def test_a_run_that_is_interrupted_leaves_no_container(data: Path, tmp_path: Path) -> None:
    require(images.CPU)
    process = subprocess.Popen(
        command("recochain", tmp_path, "--data", data, "--runner", "docker"),
        cwd=ROOT,
        env=ENVIRONMENT,
        stderr=subprocess.PIPE,
        text=True,
    )
    deadline_s = time.monotonic() + 120
    while not mine(tmp_path) and time.monotonic() < deadline_s:
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert errors.splitlines()[-1] == "feedworks: interrupted"
    assert not mine(tmp_path)
    assert not (tmp_path / "metrics.json").exists()


def test_a_container_that_was_made_and_not_started_is_removed() -> None:
    require(images.CPU)
    with docker_runner("synthetic") as runner:
        made = docker(
            "create", "--label", f"{LABEL}={runner.container_run_args['labels'][LABEL]}", images.CPU
        )
        assert docker("inspect", made.stdout.strip()).returncode == 0
    assert docker("inspect", made.stdout.strip(), check=False).returncode == 1


def test_an_engine_that_refuses_a_container_is_one_line(data: Path, tmp_path: Path) -> None:
    require(images.CPU)
    colon = run("recochain", tmp_path / "a:b", "--data", data, "--runner", "docker")
    assert "Docker mounts no folder with a colon in its name" in colon.stderr
    with (
        pytest.raises(FeedworksError, match=r"the Docker engine failed \(.*invalid reference format"),
        docker_runner("synthetic"),
        closing(from_env()) as client,
    ):
        client.containers.create("No Image")


def mine(out: Path) -> list[str]:
    """Running containers that a run into `out` started."""
    volume = out / "work" / "kfp"
    names = docker("ps", "-q", "--filter", "label=feedworks.run", "--filter", f"volume={volume}")
    return names.stdout.split()


@pytest.mark.parametrize(
    ("words", "extra", "said"),
    [
        (
            ["--image", "127.0.0.1:1/nobody/nothing:1"],
            {},
            "feedworks: image 127.0.0.1:1/nobody/nothing:1 is not here and could not be pulled (",
        ),
        (["--image", "No Image"], {}, "feedworks: --image 'No Image' is no name of an image ("),
        (["--image", ""], {}, "feedworks: --image '' is no name of an image ("),
        ([], {"DOCKER_HOST": "unix:///nowhere.sock"}, "feedworks: no Docker engine answers ("),
        ([], {"DOCKER_HOST": "tcp://127.0.0.1:1"}, "feedworks: no Docker engine answers ("),
    ],
)
def test_without_image_or_engine_one_line_says_so_and_the_earlier_run_stays(
    data: Path, tmp_path: Path, words: list[str], extra: dict[str, str], said: str
) -> None:
    for name in ("metrics.json", "report.html"):
        (tmp_path / name).write_text("earlier")
    result = run("recochain", tmp_path, "--data", data, "--runner", "docker", *words, **extra)
    assert result.returncode == 1
    assert result.stderr.splitlines()[-1].startswith(said)
    assert "Traceback" not in result.stderr
    for name in ("metrics.json", "report.html"):
        assert (tmp_path / name).read_text() == "earlier"
