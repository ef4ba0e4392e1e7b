"""What a user sees when something is wrong: one line that says how to mend it, and an exit code."""

from __future__ import annotations

import errno
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from feedworks.cli import main
from feedworks.storage import only_writer

from .conftest import ROOT, Command, command_line, environment


@pytest.mark.parametrize(
    ("words", "code", "expected"),
    [
        (["run", "nope", "--out", "o"], 2, "known papers: recochain"),
        (["run", "recochain"], 2, "Missing option '--out'"),
        (["run", "recochain", "--out", "o", "--preset", "huge"], 2, "'tiny', 'small', 'paper'"),
        (["run", "recochain", "--out", "o", "--runner", "slurm"], 2, "'steps', 'kfp'"),
        (["run", "recochain", "--out", "o", "--model", "a:b"], 2, "recochain trains its own model"),
        (["frobnicate"], 2, "No such command 'frobnicate'"),
        (["report", "."], 1, "holds no finished run"),
        (["serve", "recochain", "--model", "."], 1, "holds no packaged model"),
        (["serve", "recochain", "--model", ".", "--port", "0"], 2, "1<=x<=65535"),
        (["data", "import", ".", "--out", "o"], 1, "known are amazon_beauty"),
        (["data", "import", "absent", "--out", "o"], 2, "does not exist"),
        (["data", "fetch", "nope", "--out", "o"], 1, "known: amazon_beauty"),
        (["data", "synth", "--users", "0", "--out", "o"], 2, "x>=1"),
    ],
)
def test_wrong_usage_is_one_line(feedworks: Command, words: list[str], code: int, expected: str) -> None:
    result = feedworks(*words)
    assert (result.returncode, result.stdout) == (code, "")
    assert len(result.stderr.splitlines()) == 1
    assert expected in result.stderr


def test_a_result_folder_that_is_a_file_is_one_line(feedworks: Command, tmp_path: Path) -> None:
    (tmp_path / "o").write_text("")
    result = feedworks("data", "synth", "--out", "o/inside")
    assert result.returncode == 1
    assert len(result.stderr.splitlines()) == 1
    assert result.stderr == "feedworks: o: File exists\n"


@pytest.mark.parametrize("runner", ["steps", "kfp"])
def test_a_second_run_into_the_same_folder_is_refused(
    feedworks: Command, tmp_path: Path, runner: str
) -> None:
    with only_writer(tmp_path / "o" / "work"):
        result = feedworks("run", "recochain", "--out", "o", "--runner", runner)
    assert result.returncode == 1
    assert result.stderr == (
        "feedworks: another process is writing to o/work; wait until it ends or choose another folder\n"
    )


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device", "o/x"),
        OSError("x.safetensors: I/O error: No space left on device (os error 28)"),
        shutil.Error([("a", "b", "[Errno 28] No space left on device: 'a' -> 'b'")]),
    ],
)
def test_a_full_disk_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], error: OSError
) -> None:
    def full(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr("feedworks.cli.cli.main", full)
    with pytest.raises(SystemExit) as ended:
        main(["report", "."])
    assert ended.value.code == 1
    of = " of o/x" if error.filename else ""
    assert capsys.readouterr().err == (
        f"feedworks: no space left on the device{of}; make room and start again\n"
    )


@pytest.mark.parametrize("place", [0, 1, 2])
def test_debug_shows_the_trace_wherever_it_stands(feedworks: Command, place: int) -> None:
    words = ["report", "."]
    result = feedworks(*words[:place], "--debug", *words[place:])
    assert result.returncode == 1
    assert "Traceback" in result.stderr
    assert result.stderr.splitlines()[-1].startswith("feedworks: . holds no finished run")


def test_a_closed_pipe_is_silent(tmp_path: Path) -> None:
    writer = subprocess.Popen(
        command_line("--help"), env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert writer.stdout is not None
    writer.stdout.close()
    _, errors = writer.communicate(timeout=60)
    assert errors == b""


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupt_ends_quickly_and_leaves_nothing(tmp_path: Path, number: int, code: int) -> None:
    out = tmp_path / "big"
    process = subprocess.Popen(
        command_line("data", "synth", "--users", "200000", "--items", "2000", "--out", out),
        env=environment(),
        stderr=subprocess.PIPE,
        text=True,
    )
    deadline_s = time.monotonic() + 60
    while not list(tmp_path.iterdir()) and time.monotonic() < deadline_s:
        time.sleep(0.05)
    time.sleep(1)  # numpy.random, imported at its first use, swallows an interrupt while it is being imported
    process.send_signal(number)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == code, errors
    assert errors.strip() == ("feedworks: interrupted" if number == signal.SIGINT else "")
    assert list(tmp_path.iterdir()) == []


def test_a_missing_extra_is_named(tmp_path: Path) -> None:
    blocked = "import sys; sys.modules['kfp'] = None; from feedworks.cli import main; main(['compile'])"
    result = subprocess.run(
        [sys.executable, "-c", blocked],
        env=environment(),
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 1
    assert result.stderr == "feedworks: kfp is not installed; pip install 'feedworks[pipelines]'\n"


@pytest.mark.parametrize(("rank", "code", "said"), [("0", 1, 1), ("1", 0, 0)])
def test_torchrun_is_not_how_to_start_a_run(
    feedworks: Command, tmp_path: Path, rank: str, code: int, said: int
) -> None:
    torchrun = {"TORCHELASTIC_RUN_ID": "none", "RANK": rank, "WORLD_SIZE": "2"}
    result = feedworks("run", "recochain", "--out", "o", **torchrun)
    assert (result.returncode, len(result.stderr.splitlines())) == (code, said)
    assert ("does not go under torchrun" in result.stderr) == bool(said)
    assert not (tmp_path / "o").exists()
