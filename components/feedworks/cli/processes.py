"""Child processes: none outlives the command that started it."""

from __future__ import annotations

import os
import signal
import sys
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


def _on_sigterm(number: int, frame: FrameType | None) -> NoReturn:
    end_children()
    sys.exit(TERMINATED)
