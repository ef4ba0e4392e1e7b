from pathlib import Path

import pytest

from feedworks.metrics.memory import limit_bytes, machine_bytes


@pytest.mark.parametrize(
    ("file", "text", "expected"),
    [
        ("memory.max", "1048576", 1048576),
        ("memory.max", "max", None),
        ("memory/memory.limit_in_bytes", "2097152", 2097152),
        ("memory/memory.limit_in_bytes", "9223372036854771712", None),
        ("elsewhere", "1", None),
    ],
)
def test_a_container_has_its_limit_and_no_more_than_the_machine(
    tmp_path: Path, file: str, text: str, expected: int | None
):
    (tmp_path / file).parent.mkdir(exist_ok=True)
    (tmp_path / file).write_text(text + "\n")
    assert limit_bytes(tmp_path) == expected
    if expected is not None:
        assert machine_bytes(tmp_path) == expected
    else:
        assert machine_bytes(tmp_path) > 1 << 28


def test_a_limit_above_the_machine_is_none(tmp_path: Path):
    whole = machine_bytes(tmp_path)
    (tmp_path / "memory.max").write_text(str(1 << 59))
    assert machine_bytes(tmp_path) == whole
