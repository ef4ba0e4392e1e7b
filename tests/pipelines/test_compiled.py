"""The committed YAML: as compiled, with our images, resources, retries and caching on every task."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from feedworks import images
from feedworks.papers import PAPERS

ROOT = Path(__file__).resolve().parents[2]
SOURCES = os.pathsep.join([str(ROOT / "components"), str(ROOT / "kernels")])


def feedworks(*words: str, cwd: Path, **extra: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "feedworks", *words],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": SOURCES, **extra},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture(params=sorted(PAPERS))
def spec(request: pytest.FixtureRequest) -> dict[str, Any]:
    text = (ROOT / "pipelines" / "compiled" / f"{request.param}.yaml").read_text()
    document: dict[str, Any] = next(yaml.safe_load_all(text))
    return document


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A copy of the pipelines, which the command line finds in the working folder."""
    shutil.copytree(ROOT / "pipelines", tmp_path / "pipelines", ignore=shutil.ignore_patterns("__pycache__"))
    return tmp_path


@pytest.mark.parametrize("seed", ["0", "1"])
def test_the_committed_yaml_is_byte_exact(checkout: Path, seed: str) -> None:
    result = feedworks("compile", "--check", cwd=checkout, PYTHONHASHSEED=seed)
    assert (result.returncode, result.stderr) == (0, "")
    shutil.rmtree(checkout / "pipelines" / "compiled")
    assert feedworks("compile", cwd=checkout).returncode == 0
    for name in PAPERS:
        compiled = checkout / "pipelines" / "compiled" / f"{name}.yaml"
        assert compiled.read_bytes() == (ROOT / "pipelines" / "compiled" / f"{name}.yaml").read_bytes()


def test_a_stale_or_missing_yaml_is_seen(checkout: Path) -> None:
    compiled = checkout / "pipelines" / "compiled" / "recochain.yaml"
    compiled.write_bytes(compiled.read_bytes() + b"\n")
    stale = feedworks("compile", "--check", cwd=checkout)
    compiled.unlink()
    missing = feedworks("compile", "--check", "recochain", cwd=checkout)
    for result in (stale, missing):
        assert result.returncode == 1
        assert len(result.stderr.splitlines()) == 1
        assert "run `make compile`" in result.stderr
    assert not compiled.exists()


def test_every_executor_names_our_image_and_installs_nothing(spec: dict[str, Any]) -> None:
    for name, executor in spec["deploymentSpec"]["executors"].items():
        assert executor["container"]["image"] in images.ALLOWED, name
        assert "pip install" not in " ".join(executor["container"]["command"]), name


def test_every_executor_asks_for_cpu_and_memory(spec: dict[str, Any]) -> None:
    for name, executor in spec["deploymentSpec"]["executors"].items():
        resources = executor["container"]["resources"]
        wanted = {"resourceCpuRequest", "resourceCpuLimit", "resourceMemoryRequest", "resourceMemoryLimit"}
        assert wanted <= set(resources), name
        on_gpu = executor["container"]["image"] == images.GPU
        assert ("accelerator" in resources) == on_gpu, name
        if on_gpu:
            assert resources["accelerator"]["resourceType"] == "nvidia.com/gpu"
            assert "num_gpus" in resources["accelerator"]["resourceCount"]


def test_every_task_has_retries_and_a_caching_policy(spec: dict[str, Any]) -> None:
    dags = [spec["root"]["dag"], *(c["dag"] for c in spec["components"].values() if "dag" in c)]
    tasks = {name: task for dag in dags for name, task in dag["tasks"].items()}
    leaves = {name: task for name, task in tasks.items() if not name.startswith(("condition", "for-loop"))}
    assert {"evaluate", "gate", "package"} <= set(leaves)
    for name, task in leaves.items():
        assert task["retryPolicy"]["maxRetryCount"] >= 1, name
        assert "cachingOptions" in task, name
    assert not leaves["package"]["cachingOptions"].get("enableCache", False)
    executors = spec["deploymentSpec"]["executors"]
    on_gpu = [name for name in leaves if executors[f"exec-{name}"]["container"]["image"] == images.GPU]
    assert on_gpu
    assert all(leaves[name]["cachingOptions"]["enableCache"] for name in on_gpu)


def test_only_the_package_waits_for_the_gate(spec: dict[str, Any]) -> None:
    guarded = [
        task for task in spec["root"]["dag"]["tasks"].values() if "condition" in task.get("triggerPolicy", {})
    ]
    (condition,) = guarded
    assert condition["triggerPolicy"]["condition"].endswith("['pipelinechannel--gate-Output'] == true")
    inner = spec["components"][condition["componentRef"]["name"]]["dag"]["tasks"]
    assert list(inner) == ["package"]


def test_the_number_of_gpus_is_a_parameter(spec: dict[str, Any]) -> None:
    assert spec["root"]["inputDefinitions"]["parameters"]["num_gpus"]["defaultValue"] == 0


def test_kfp_can_load_it() -> None:
    from kfp import components

    for name in PAPERS:
        loaded = components.load_component_from_file(str(ROOT / "pipelines" / "compiled" / f"{name}.yaml"))
        assert set(loaded.component_spec.inputs) == {
            "source",
            "data_version",
            "preset",
            "overrides",
            "num_gpus",
        }
