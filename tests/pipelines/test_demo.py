"""What `make demo` runs after the installation, with the service started for real."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SOURCES = os.pathsep.join([str(ROOT / "components"), str(ROOT / "kernels")])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "row"),
    [("recochain", r"^ +(\d+)  item \d+ +score +-?\d"), ("mari", r"^ +(\d+)  score +-?\d.* item=\d")],
)
def test_the_demo_ends_with_a_served_top_ten(tmp_path: Path, name: str, row: str) -> None:
    result = subprocess.run(
        [sys.executable, "-m", "feedworks", "demo", name, "--out", str(tmp_path)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": SOURCES},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr[-3000:]
    ranks = re.findall(row, result.stdout, flags=re.MULTILINE)
    assert ranks == [str(rank) for rank in range(1, 11)]
    assert result.stdout.splitlines()[-1] == f"report: {(tmp_path / 'report.html').resolve()}"
