"""From a packaged model to a bento: store and build, each by its own command."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[3]
SOURCES = os.pathsep.join([str(ROOT / "components"), str(ROOT / "kernels")])


def python(*words: str | Path, cwd: str | Path = ROOT, **extra: str) -> subprocess.CompletedProcess[str]:
    """Run Python on our sources, without a model's folder in its environment."""
    environment = {name: value for name, value in os.environ.items() if name != "FEEDWORKS_MODEL_DIR"}
    return subprocess.run(
        [sys.executable, *map(str, words)],
        cwd=cwd,
        env={**environment, "PYTHONPATH": SOURCES, "BENTOML_DO_NOT_TRACK": "True", **extra},
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
    )


def store(package: Path, home: Path) -> str:
    """Put a packaged model into the store in `home`; return what the command prints."""
    done = python("-m", "feedworks.serving.store", package, BENTOML_HOME=str(home))
    assert done.returncode == 0, done.stderr
    return done.stdout


def build(paper: str, home: Path) -> list[str]:
    """Build the bento `<paper>:test` in `home`; return the tags of its models."""
    words = ["-m", "bentoml", "build", "-f", file_of(paper), ROOT, "--version", "test", "-o", "tag"]
    done = python(*words, BENTOML_HOME=str(home))
    assert done.returncode == 0, done.stderr
    built = yaml.safe_load((home / "bentos" / paper / "test" / "bento.yaml").read_text())
    return [model["tag"] for model in built["models"]]


def containerize(paper: str, home: Path, image: str, **build: str) -> subprocess.CompletedProcess[str]:
    """Make a container image of the bento `<paper>:test`.

    BentoML reads the template from a copy of the bento in the folder of temporary files, and only below the
    current folder.
    """
    words = ["-m", "bentoml", "containerize", f"{paper}:test", "--image-tag", image]
    words += [f"--opt=build-arg={name}={value}" for name, value in build.items()]
    path = os.pathsep.join(["/usr/bin", os.environ["PATH"]])
    folder = tempfile.gettempdir()
    return python(*words, cwd=folder, BENTOML_HOME=str(home), DOCKER_BUILDKIT="1", PATH=path)


def base_image(paper: str) -> Any:
    return yaml.safe_load(file_of(paper).read_text())["docker"]["base_image"]


def file_of(paper: str) -> Path:
    return ROOT / "containers" / "bento" / f"{paper}.yaml"
