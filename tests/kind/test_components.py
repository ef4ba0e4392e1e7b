"""Every component of the compiled pipelines as a Job, with tiny inputs on a claim."""

from __future__ import annotations

import json
import shutil
import subprocess
import time
from pathlib import Path

import pytest

from feedworks import images
from feedworks.papers import PAPERS

from ..pipelines.runs import run
from .conftest import Say
from .jobs import Workplace
from .papers import ALONE, Papers, components

pytestmark = [pytest.mark.kind, pytest.mark.timeout(3600)]

DOCKER = "/usr/bin/docker" if Path("/usr/bin/docker").exists() else shutil.which("docker")


@pytest.mark.parametrize("name", PAPERS)
def test_every_component_runs_as_a_job(paper: Papers, work: Workplace, name: str, tell: Say) -> None:
    if name != ALONE:
        paper.start()
    ran = paper(name)
    assert set(ran.tasks) == components(name)
    evaluation = work.bring(ran.tasks["evaluate"].outputs["evaluation"])
    metrics = json.loads((evaluation / "metrics.json").read_text())
    assert metrics
    assert "</html>" in (evaluation / "report.html").read_text().lower()
    tasks = ", ".join(f"{task.name} {task.seconds:.0f}" for task in ran.tasks.values())
    tell(f"{name} as {len(ran.tasks)} Jobs, {ran.seconds:.0f} s: {tasks}")


def _has_docker() -> bool:
    looked = [DOCKER or "false", "image", "inspect", images.CPU]
    return subprocess.run(looked, capture_output=True, check=False).returncode == 0


def test_recochain_measures_the_same_in_three_ways(
    paper: Papers, work: Workplace, tmp_path: Path, tell: Say, left_out: Say
) -> None:
    ran = paper("recochain")
    expected = (work.bring(ran.tasks["evaluate"].outputs["evaluation"]) / "metrics.json").read_bytes()
    seconds = {"a Job for each task": ran.seconds}
    ways = {"kfp": "a subprocess for each task", "docker": "a container for each task"}
    if not _has_docker():
        del ways["docker"]
        left_out(f"RecoChain in containers of Docker: there is no engine with {images.CPU} here")
    for runner, way in ways.items():
        out = tmp_path / runner
        start_s = time.monotonic()
        done = run("recochain", out, "--data", ran.data, "--runner", runner)
        seconds[way] = time.monotonic() - start_s
        assert done.returncode == 0, done.stderr[-4000:]
        assert (out / "metrics.json").read_bytes() == expected, way
    for way, took_s in seconds.items():
        tell(f"RecoChain tiny, {way}: {took_s:.0f} s, metrics.json equal")
