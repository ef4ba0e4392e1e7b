import fcntl
import os
import pty
import struct
import subprocess
import sys
import termios

import pytest

from feedworks.progress import Progress, Relay, progress, say


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


def in_terminal(script: str, lines: int = 24, columns: int = 120) -> str:
    """Run a script with a pseudo terminal as its stderr; return what the terminal got."""
    leader, follower = pty.openpty()
    fcntl.ioctl(follower, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))
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
    return shown.decode()


@pytest.mark.parametrize(("lines", "columns"), [(24, 120), (24, 0), (0, 0)])
def test_a_terminal_gets_a_bar(lines, columns):
    text = in_terminal(
        "from feedworks.progress import Progress, say\n"
        "with Progress('steps', total=4) as shown:\n"
        "    for _ in range(4):\n"
        "        shown.advance(1, lambda: 'loss 0.5')\n"
        "    say('a line')\n",
        lines,
        columns,
    )
    assert "100%" in text
    assert "4/4" in text
    assert "loss 0.5" in text
    assert "a line\r\n" in text


LINES = (
    "start of it",
    "train: 1/110, 0 s, loss 7.5",
    "train: 55/110, 61 s, 2,000.1/s, epoch 1/6 loss 5.25",
    "train: 110/110, 120 s, 1.8/s",
    "train: 3/9, 1 s, 3.0/s",
    "rows: 12, 3 s",
    "loss: 3/4 of what it was",
)


def test_lines_of_another_process_pass_through_a_pipe_as_they_are(capsys):
    relay = Relay(indent="  ")
    for line in LINES:
        relay.show(line)
    relay.close()
    assert capsys.readouterr().err.splitlines() == [f"  {line}" for line in LINES]


def test_lines_of_another_process_become_bars_in_a_terminal():
    text = in_terminal(
        "from feedworks.progress import Relay\n"
        "import time\n"
        "relay = Relay(indent='  ')\n"
        f"for line in {LINES!r}:\n"
        "    relay.show(line)\n"
        "    time.sleep(0.3)\n"  # a bar moves at most four times a second
        "relay.close()\n"
    )
    assert "  start of it\r\n" in text
    assert "50%" in text
    assert "epoch 1/6 loss 5.25" in text
    assert "110/110" in text
    assert "3/9" in text
    assert "12it" in text
    assert "  loss: 3/4 of what it was\r\n" in text
    assert text.count("\n") == 5  # two lines and three bars, each ended once
