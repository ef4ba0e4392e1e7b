"""A file of cases in a process of its own: Triton reads where its kernels run when it is imported."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path


def run_cases(name: str, *, interpreted: bool, timeout_s: float | None = None) -> int:
    """Run `kernel_<name>.py`; return how many of its tests passed."""
    path = Path(__file__).with_name(f"kernel_{name}.py")
    environment = os.environ | {"TRITON_INTERPRET": "1" if interpreted else "0", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(path)]
    result = subprocess.run(
        command, capture_output=True, text=True, check=False, env=environment, timeout=timeout_s
    )
    assert result.returncode == 0, result.stdout[-6000:]
    passed = re.search(r"(\d+) passed", result.stdout)
    assert passed is not None, result.stdout[-6000:]
    return int(passed.group(1))
