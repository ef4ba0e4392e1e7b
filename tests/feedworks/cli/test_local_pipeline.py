"""kfp.local as the CLI drives it: what is shown, what is kept, what an error looks like."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from feedworks.cli.local_pipeline import run_pipeline
from feedworks.errors import FeedworksError

from .conftest import environment

TOY = Path(__file__).with_name("toy_pipeline.py")


@pytest.fixture
def out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the result of an earlier run, in a checkout whose only pipeline is the toy."""
    (tmp_path / "pipelines").mkdir()
    shutil.copy(TOY, tmp_path / "pipelines" / "recochain.py")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", environment()["PYTHONPATH"])
    folder = tmp_path / "out"
    (folder / "model").mkdir(parents=True)
    (folder / "model" / "earlier").touch()
    (folder / "report.html").write_text("earlier")
    (folder / "metrics.json").write_text("earlier")
    return folder


def run(out: Path, preset: str) -> None:
    run_pipeline("recochain", source="synthetic", preset=preset, overrides=("a=1",), out=out)


def is_untouched(out: Path) -> bool:
    earlier = [(out / name).read_text() for name in ("report.html", "metrics.json")] == ["earlier"] * 2
    return earlier and [path.name for path in (out / "model").iterdir()] == ["earlier"]


def test_results_are_collected_and_only_the_tasks_speak(
    out: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    run(out, "good")
    (threads,) = (out / "work" / "kfp").glob("*/evaluate/evaluation/threads")
    assert threads.read_text() == "1", "a pod's number of threads is not this machine's"
    assert (out / "metrics.json").read_text() == '{"test/rerank/recall@5": 0.5}\n'
    assert (out / "report.html").read_text() == "<!doctype html>new"
    assert [path.name for path in (out / "model").iterdir()] == ["config.json"]
    shown = capfd.readouterr()
    assert shown.out == ""
    lines = [line.partition(" in ")[0] for line in shown.err.splitlines()]
    assert lines == ["[evaluate]", "  evaluating", "[evaluate] success", "[package]", "[package] success"]
    assert "Got executor_input" in (out / "work" / "kfp" / "tasks.log").read_text()


@pytest.mark.parametrize(
    ("preset", "message"),
    [
        ("bad-data", r"^table items, column vector: 3 rows hold NaN; mend the file$"),
        ("bug", r"^ZeroDivisionError: nothing was counted; the trace is in .*tasks.log$"),
    ],
)
def test_a_failure_is_one_line_and_touches_no_earlier_result(out: Path, preset: str, message: str) -> None:
    start_s = time.monotonic()
    with pytest.raises(FeedworksError, match=message):
        run(out, preset)
    assert time.monotonic() - start_s < 20, "the 30 s wait before a retry is for the cluster"
    assert is_untouched(out)


def test_a_closed_gate_reports_and_leaves_the_earlier_results(
    out: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    run(out, "weak")
    assert (out / "rejected" / "report.html").read_text() == "<!doctype html>new"
    assert (out / "report.html").read_text() != "<!doctype html>new"
    assert (out / "model").exists()
    assert capfd.readouterr().err.splitlines()[-1].startswith("the gate kept the model back")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_ends_the_tasks_too(out: Path, number: int) -> None:
    code = (
        "from pathlib import Path; from feedworks.cli.processes import end_children_on_sigterm;"
        "from feedworks.cli.local_pipeline import run_pipeline; end_children_on_sigterm();"
        "run_pipeline('recochain', source='s', preset='slow', overrides=(), out=Path('out'))"
    )
    process = subprocess.Popen([sys.executable, "-c", code], env=environment(), stderr=subprocess.DEVNULL)
    deadline_s = time.monotonic() + 60
    while not Path("started").exists() and time.monotonic() < deadline_s:
        time.sleep(0.05)
    children = descendants(process.pid)
    assert children
    process.send_signal(number)
    process.wait(timeout=20)
    assert process.returncode in (-signal.SIGINT, 128 + signal.SIGTERM)
    time.sleep(0.5)
    assert not [child for child in children if is_running(child)]
    assert is_untouched(out)


def descendants(pid: int) -> list[int]:
    found: list[int] = []
    for path in Path(f"/proc/{pid}/task").glob("*/children"):
        for child in path.read_text().split():
            found += [int(child), *descendants(int(child))]
    return found


def is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    # A dead orphan that nobody has reaped yet still has a pid.
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
