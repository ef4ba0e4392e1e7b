"""The command line as a user starts it: a real process."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
Command = Callable[..., "subprocess.CompletedProcess[str]"]


def environment(**extra: str) -> dict[str, str]:
    """The environment of a child that must find this checkout's packages, wherever it runs."""
    sources = os.pathsep.join([str(ROOT / "components"), str(ROOT / "kernels")])
    return {**os.environ, "PYTHONPATH": sources, "OMP_NUM_THREADS": "1", **extra}


def command_line(*words: str | Path) -> list[str]:
    return [sys.executable, "-m", "feedworks", *map(str, words)]


@pytest.fixture
def feedworks(tmp_path: Path) -> Command:
    """Run `feedworks WORDS` in tmp_path and return its result."""

    def run(*words: str | Path, **extra: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            command_line(*words),
            cwd=tmp_path,
            env=environment(**extra),
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )

    return run
