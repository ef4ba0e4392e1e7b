"""A volume that runs full under a step of RecoChain: one error, nothing half-written, and on it goes."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from feedworks.contracts.synthetic import write_synthetic
from feedworks.errors import FeedworksError, SpaceError
from feedworks.recochain import config, steps
from feedworks.recochain.config import RecoChainConfig
from feedworks.storage import atomic_file, atomic_folder, write_bytes

ROOT = Path(__file__).resolve().parents[2]
SIZE_MIB = 16


@pytest.fixture
def volume(tmp_path: Path) -> Iterator[Path]:
    """A real file system of 16 MiB."""
    folder = tmp_path / "volume"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={SIZE_MIB}m", "tmpfs", str(folder)]
    if os.geteuid() or subprocess.run(mount, check=False, capture_output=True).returncode:
        pytest.skip("a full volume needs a small tmpfs, and this user or machine may not mount one")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_synthetic(tmp_path_factory.mktemp("events"), num_users=120, num_items=100, seed=2).folder


def fill(volume: Path, leave_bytes: int) -> Path:
    """Write a file that leaves so much room."""
    stat = os.statvfs(volume)
    ballast = volume / "ballast"
    with ballast.open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, stat.f_bavail * stat.f_frsize - leave_bytes)
    return ballast


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def settings(seed: int) -> RecoChainConfig:
    return config.resolve("tiny", [f"seed={seed}", "generator.epochs=1"])


@pytest.mark.parametrize("step", ["prepare", "fit_tokenizer"])
def test_a_step_that_runs_out_of_space_keeps_the_earlier_result(volume: Path, data: Path, step: str) -> None:
    out = volume / "artifacts"
    sequences, tokenizer = out / "sequences", out / "tokenizer"

    def run(seed: int) -> None:
        if step == "prepare":
            log = write_synthetic(volume.parent / "new", num_users=120, num_items=100, seed=seed).folder
            steps.prepare(log, sequences, settings(seed))
        else:
            steps.fit_tokenizer(sequences, tokenizer, settings(seed))

    steps.prepare(data, sequences, settings(0))
    steps.fit_tokenizer(sequences, tokenizer, settings(0))
    before = contents(out)
    ballast = fill(volume, leave_bytes=8192)
    with pytest.raises(SpaceError) as caught:
        run(seed=1)
    (line,) = str(caught.value).splitlines()
    wanted = sequences if step == "prepare" else tokenizer
    assert line.startswith(
        f"no space left on the volume of {wanted} (0.0 MiB free of {SIZE_MIB}.0); make room"
    )
    assert contents(out) == before
    assert sorted(path.name for path in out.iterdir()) == ["sequences", "tokenizer"]
    ballast.unlink()
    run(seed=1)
    assert contents(out).keys() == before.keys()
    assert contents(out) != before


def test_a_run_that_runs_out_of_space_ends_with_one_line(volume: Path, data: Path) -> None:
    fill(volume, leave_bytes=65536)
    out = volume / "out"
    sources = os.pathsep.join([str(ROOT / "components"), str(ROOT / "kernels")])
    result = subprocess.run(
        [
            sys.executable,
            "-m",
            "feedworks",
            "run",
            "recochain",
            "--preset",
            "tiny",
            "--data",
            data,
            "--out",
            out,
        ],
        env={**os.environ, "PYTHONPATH": sources, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 1
    assert "Traceback" not in result.stderr
    last = result.stderr.splitlines()[-1]
    assert last.startswith(f"feedworks: no space left on the volume of {out}")
    assert "make room there and start again" in last
    assert not (out / "metrics.json").exists()
    assert not list(volume.rglob(".*.tmp-*"))


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        OSError(errno.EDQUOT, "Disk quota exceeded"),
        RuntimeError("I/O error: No space left on device (os error 28)"),
    ],
)
def test_whatever_noticed_it_the_place_is_told(tmp_path: Path, error: Exception) -> None:
    wanted = (
        rf"no space left on the volume of {tmp_path / 'out'} \(.*nothing was written to {tmp_path / 'out'},"
    )
    with pytest.raises(SpaceError, match=wanted), atomic_folder(tmp_path / "out"):
        raise error
    with (
        pytest.raises(SpaceError, match=wanted),
        atomic_folder(tmp_path / "out") as folder,
        atomic_file(folder / "inside"),
    ):
        raise error
    assert not list(tmp_path.iterdir())
    assert isinstance(SpaceError(), FeedworksError)


def test_another_place_that_is_full_is_named(tmp_path: Path) -> None:
    scratch = str(tmp_path / "scratch" / "sorted")
    with (
        pytest.raises(SpaceError, match=rf"on the volume of {scratch} \(.* free of .*\); make room there"),
        atomic_folder(tmp_path / "results" / "out"),
    ):
        raise OSError(errno.ENOSPC, "No space left on device", scratch)


def test_other_errors_stay_what_they_are(tmp_path: Path) -> None:
    write_bytes(tmp_path / "out" / "a", b"1")
    for error in (PermissionError(errno.EACCES, "Permission denied"), ValueError("full")):
        with pytest.raises(type(error)) as caught, atomic_folder(tmp_path / "out"):
            raise error
        assert caught.value is error
    assert contents(tmp_path / "out") == {"a": b"1"}
