"""What the machine can run: tests whose marker it cannot serve are skipped with the reason."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

# A busy machine draws examples slowly, which says nothing about what they test.
settings.register_profile("feedworks", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("feedworks")

# Before torch is imported: on tensors this small a second thread only waits, and on a busy machine it waits
# whole time slices (one test took 2 s with one thread and over 100 s with two).
os.environ.setdefault("OMP_NUM_THREADS", "1")

# What is started in the background ignores SIGINT, and so would every process of a test that sends it one.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

ROOT = Path(__file__).resolve().parents[1]


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--slow", action="store_true", help="also run the tests that take minutes")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    reasons: dict[str, str | None] = {}
    for item in items:
        for marker in item.iter_markers():
            if marker.name not in _REASONS:
                continue
            if marker.name not in reasons:
                reasons[marker.name] = _REASONS[marker.name](config)
            if reason := reasons[marker.name]:
                item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of public data sets; a test that takes it also needs the marker real_data."""
    return _real_data_folder()


def _real_data_folder() -> Path:
    return Path(os.environ.get("FEEDWORKS_DATA", ROOT.parent / "shared" / "data"))


def _no_real_data(_: pytest.Config) -> str | None:
    folder = _real_data_folder()
    return None if folder.is_dir() else f"no folder {folder}; set FEEDWORKS_DATA"


def _no_gpu(_: pytest.Config) -> str | None:
    import torch

    return None if torch.cuda.is_available() else "no CUDA device"


def _no_docker(_: pytest.Config) -> str | None:
    docker = shutil.which("docker")
    if docker is None:
        return "no docker client"
    alive = subprocess.run([docker, "info"], capture_output=True, check=False).returncode == 0
    return None if alive else "no Docker engine answers"


def _no_kind(_: pytest.Config) -> str | None:
    return None if os.environ.get("KUBECONFIG") else "KUBECONFIG is not set"


def _not_slow(config: pytest.Config) -> str | None:
    return None if config.getoption("--slow") else "takes minutes; make test-slow"


_REASONS = {
    "real_data": _no_real_data,
    "gpu": _no_gpu,
    "docker": _no_docker,
    "kind": _no_kind,
    "slow": _not_slow,
}
