"""Child processes: none outlives the command that started it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from types import FrameType
from typing import NoReturn

TERMINATED = 128 + signal.SIGTERM


def end_children(pid: int | None = None) -> None:
    """Send SIGTERM to every descendant of a process, this one by default; Linux only, else nothing.

    Ctrl-C in a terminal reaches the children by itself; `kill` and `timeout` reach only the parent.
    """
    for children in Path(f"/proc/{pid or os.getpid()}/task").glob("*/children"):
        for child in children.read_text().split():
            end_children(int(child))
            try:
                os.kill(int(child), signal.SIGTERM)
            except ProcessLookupError:
                continue


def end_children_on_sigterm() -> None:
    """From now on SIGTERM ends the children, then this process with code 143."""
    signal.signal(signal.SIGTERM, _on_sigterm)


def become(command: list[str], environment: Mapping[str, str]) -> NoReturn:
    """Go on as another program; a container's first process stays, hands signals on and ends with its code.

    Linux drops SIGTERM for a first process that does not handle it yet: BentoML imports for seconds before it
    does, and a container that was stopped meanwhile went on until it was killed.
    """
    if os.getpid() != 1:
        os.execve(command[0], command, environment)
    # In a session of its own, as a terminal would tell it Ctrl-C a second time.
    with subprocess.Popen(command, env=environment, start_new_session=True) as program:
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda told, _: program.send_signal(told))
        code = program.wait()
    sys.exit(code if code >= 0 else 128 - code)


def _on_sigterm(number: int, frame: FrameType | None) -> NoReturn:
    end_children()
    sys.exit(TERMINATED)
