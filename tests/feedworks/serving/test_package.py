"""The seal of a packaged model: every file, by its contents."""

from __future__ import annotations

from pathlib import Path

import pytest

from feedworks.errors import ModelError
from feedworks.serving.package import check_seal, seal


@pytest.fixture
def sealed(tmp_path: Path) -> Path:
    (tmp_path / "twin").mkdir()
    (tmp_path / "weights").write_bytes(b"1")
    (tmp_path / "twin" / "program").write_bytes(b"2")
    seal(tmp_path, "toy:1", {"merges": True})
    return tmp_path


def test_what_was_sealed_is_whole(sealed: Path) -> None:
    facts = check_seal(sealed)
    assert (facts["tag"], facts["merges"], set(facts["files"])) == (
        "toy:1",
        True,
        {"weights", "twin/program"},
    )
    (sealed / "notes").write_text("a file that nobody sealed is nobody's business")
    assert check_seal(sealed) == facts


def test_sealed_again_it_is_the_same(sealed: Path) -> None:
    before = (sealed / "package.json").read_bytes()
    seal(sealed, "toy:1", {"merges": True})
    assert (sealed / "package.json").read_bytes() == before


def test_a_changed_or_missing_file_is_named(sealed: Path) -> None:
    (sealed / "twin" / "program").write_bytes(b"3")
    with pytest.raises(ModelError, match="twin/program is not the file"):
        check_seal(sealed)
    (sealed / "twin" / "program").unlink()
    with pytest.raises(ModelError, match="twin/program is missing"):
        check_seal(sealed)


def test_a_file_that_cannot_be_read_is_told(sealed: Path) -> None:
    (sealed / "weights").unlink()
    (sealed / "weights").symlink_to("/proc/self/mem")  # is a file, but not even root can read its first byte
    with pytest.raises(ModelError, match=r"weights cannot be read \(.+\); give this user the right"):
        check_seal(sealed)


@pytest.mark.parametrize("content", ["{}", "[]", "{", '{"tag": "x", "files": 3}'])
def test_a_damaged_seal_is_told(sealed: Path, content: str) -> None:
    (sealed / "package.json").write_text(content)
    with pytest.raises(ModelError, match=r"package\.json is damaged"):
        check_seal(sealed)


def test_a_folder_without_a_seal_is_told(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no packaged model"):
        check_seal(tmp_path)
