"""The built images, as a cluster runs them. They are made by `make images`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from feedworks import __version__, images

from .engine import docker, require, run

pytestmark = pytest.mark.docker

IMAGES = [images.CPU, images.CPU_SERVE, images.GPU, images.GPU_SERVE]
LARGEST_TRAIN_BYTES = 1.6e9


@pytest.fixture(params=IMAGES)
def image(request: pytest.FixtureRequest) -> str:
    return require(request.param)


def test_the_user_is_nobody_and_writes_only_to_tmp(image: str) -> None:
    said = run(
        image, "-c", "id -u; touch /tmp/a && echo made; touch /srv/feedworks/a || echo refused", options=SH
    )
    assert said.split()[:2] == ["10001", "made"]
    assert "refused" in said


SH = ("--entrypoint", "/bin/sh")


def test_there_is_no_compiler_and_no_pip(image: str) -> None:
    said = run(
        image, "-c", "command -v cc gcc g++ clang ld as make || echo none; command -v pip3", options=SH
    )
    venv = [line for line in said.splitlines() if line.startswith("/srv/feedworks")]
    assert "none" in said.split()
    assert not venv


def test_labels_and_health(image: str) -> None:
    (found,) = json.loads(docker("image", "inspect", image).stdout)
    labels = found["Config"]["Labels"]
    assert labels["org.opencontainers.image.version"] == __version__
    assert labels["org.opencontainers.image.licenses"] == "Apache-2.0"
    assert ("Healthcheck" in found["Config"]) == ("serve" in image)


def test_the_command_line_starts_on_a_read_only_root(image: str) -> None:
    said = run(image, "list", options=("--entrypoint", "feedworks"))
    assert "recochain" in said


def test_the_bill_of_materials_names_python_and_debian_packages(image: str) -> None:
    bill = json.loads(run(image, "/srv/feedworks/bill.cdx.json", options=("--entrypoint", "cat")))
    names = {component["name"] for component in bill["components"]}
    purls = {component.get("purl", "").split("@")[0] for component in bill["components"]}
    assert bill["bomFormat"] == "CycloneDX"
    assert {"torch", "feedworks", "libc6"} <= names
    assert {"pkg:pypi/torch", "pkg:deb/debian/libc6"} <= purls


def test_the_training_image_is_small_enough() -> None:
    (found,) = json.loads(docker("image", "inspect", require(images.CPU)).stdout)
    assert found["Size"] <= LARGEST_TRAIN_BYTES


FOUND = """
import sys
from feedworks_kernels.ahead import calls_of, compile_calls
for module in ("feedworks.recochain.kernel_calls", "feedworks.ksa.kernel_calls"):
    result = compile_calls(calls_of(module, training=sys.argv[1] == "train"), int(sys.argv[2]))
    print(module, len(result.compiled), result.found)
"""


@pytest.mark.parametrize("target", ["train", "serve"])
@pytest.mark.parametrize("architecture", ["80", "90"])
def test_the_kernels_of_the_models_are_compiled_in_the_image(target: str, architecture: str) -> None:
    image = require(images.GPU if target == "train" else images.GPU_SERVE)
    said = run(image, "-c", FOUND, target, architecture, options=("--entrypoint", "python3"))
    found = [line.split()[1:] for line in said.splitlines() if line.startswith("feedworks.")]
    assert len(found) == 2, said
    for compiled, there in found:
        assert compiled == "0", said
        assert int(there) > 10


def test_serving_without_a_model_is_one_clear_line(tmp_path: Path) -> None:
    said = run(require(images.CPU_SERVE), "recochain", "--model", "/models/recochain", check=False)
    assert "feedworks: /models/recochain holds no packaged model" in said
    assert "Traceback" not in said
