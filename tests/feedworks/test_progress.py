import fcntl
import os
import pty
import struct
import subprocess
import sys
import termios

import pytest

from feedworks.progress import Progress, progress, say


def test_lines_show_the_first_and_the_last_count(capsys):
    assert list(progress(range(100), label="rows")) == list(range(100))
    lines = capsys.readouterr().err.splitlines()
    assert [line.split(",")[0] for line in lines] == ["rows: 1/100", "rows: 100/100"]


def test_an_unknown_total_and_an_empty_one(capsys):
    assert list(progress(iter("ab"), label="letters")) == ["a", "b"]
    assert list(progress([], label="none")) == []
    assert "letters: 2, 0 s" in capsys.readouterr().err


def test_lines_come_at_most_every_few_seconds_and_call_the_note_only_then(capsys, monkeypatch):
    now_s = 0.0
    monkeypatch.setattr("feedworks.progress.time.monotonic", lambda: now_s)
    notes = []

    def note() -> str:
        notes.append(now_s)
        return "loss 1.0"

    with Progress("steps", total=20) as shown:
        for _ in range(20):
            now_s += 1.0
            shown.advance(1, note)
    assert notes == [1.0, 6.0, 11.0, 16.0]
    lines = capsys.readouterr().err.splitlines()
    assert lines[1] == "steps: 6/20, 6 s, 1.0/s, loss 1.0"
    assert lines[-1].startswith("steps: 20/20")


def test_work_taken_up_again_counts_on(capsys):
    with Progress("steps", total=10, start=8) as shown:
        shown.advance(2)
    assert "steps: 10/10" in capsys.readouterr().err


def test_only_the_first_process_speaks(capsys, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    list(progress(range(3), label="rows"))
    say("hello")
    assert capsys.readouterr().err == ""
    monkeypatch.setenv("RANK", "0")
    say("hello")
    assert capsys.readouterr().err == "hello\n"


@pytest.mark.skipif(sys.platform != "linux", reason="needs a pseudo terminal")
@pytest.mark.parametrize("columns", [0, 120])
def test_a_terminal_gets_a_bar(columns):
    script = (
        "from feedworks.progress import Progress, say\n"
        "with Progress('steps', total=4) as shown:\n"
        "    for _ in range(4):\n"
        "        shown.advance(1, lambda: 'loss 0.5')\n"
        "    say('a line')\n"
    )
    leader, follower = pty.openpty()
    fcntl.ioctl(follower, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    env = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    with subprocess.Popen([sys.executable, "-W", "error", "-c", script], stderr=follower, env=env) as process:
        os.close(follower)
        shown = b""
        while True:
            try:
                chunk = os.read(leader, 4096)
            except OSError:
                break
            shown += chunk
    os.close(leader)
    assert process.returncode == 0
    text = shown.decode()
    assert "100%" in text
    assert "4/4" in text
    assert "loss 0.5" in text
    assert "a line\r\n" in text
