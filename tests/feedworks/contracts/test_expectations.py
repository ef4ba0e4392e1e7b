"""What importing Great Expectations must not do to the process; suites are tested with the gate."""

from __future__ import annotations

import subprocess
import sys

import pytest


def test_a_program_without_a_file_survives_great_expectations() -> None:
    pytest.importorskip("pyspark")
    code = (
        "import sys; from feedworks.contracts.expectations import import_gx; import_gx(); "
        "print('alive', hasattr(sys.modules['__main__'], '__file__'))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout == "alive False\n"
