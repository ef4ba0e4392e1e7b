"""The committed YAML: as compiled; what it asks of a cluster is in test_cluster.py."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

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


def test_only_the_package_waits_for_the_gate(spec: dict[str, Any]) -> None:
    guarded = [
        task for task in spec["root"]["dag"]["tasks"].values() if "condition" in task.get("triggerPolicy", {})
    ]
    (condition,) = guarded
    assert condition["triggerPolicy"]["condition"].endswith("['pipelinechannel--gate-Output'] == true")
    inner = spec["components"][condition["componentRef"]["name"]]["dag"]["tasks"]
    assert list(inner) == ["package"]


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
            "num_nodes",
            "gpus_per_node",
            "gpu_type",
            "model_cpu",
            "model_memory",
            "workspace_pvc",
            "secret_name",
            "node_selector",
            "gpu_node_selector",
            "tolerations",
        }
