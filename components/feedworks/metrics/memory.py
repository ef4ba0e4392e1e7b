"""The memory that a process may have; commands under a hard limit of it, and the most that they held."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

from feedworks.errors import FeedworksError

CGROUPS = Path("/sys/fs/cgroup")
POLL_S = 0.05
# By the version of Linux's control groups: the file of the limit, and the line of `memory.stat` that counts
# what cannot be read again from a file.
_LIMIT = {1: "memory.limit_in_bytes", 2: "memory.max"}
_HELD = {1: "rss", 2: "anon"}
# The shell enters the group before it becomes the command, so that not a byte is missed.
_ENTER = 'echo $$ > "$0/cgroup.procs" && exec "$@"'
_NO_LIMIT = 1 << 60  # version 1 writes a huge number for none


class Held(NamedTuple):
    """How a command ended, its wall time, and the most bytes it held that no file does (seen every 50 ms).

    Pages of files that are mapped or cached are left out: the kernel takes them back under pressure.
    """

    returncode: int
    seconds: float
    peak_bytes: int

    @property
    def killed(self) -> bool:
        """Whether the kernel ended it for want of memory."""
        return self.returncode in (-9, 137)


def limit_bytes(cgroups: Path = CGROUPS) -> int | None:
    """Return the limit on the memory of this container, None if there is none.

    Args:
        cgroups: where the kernel tells it, version 2 or 1.
    """
    for path in (cgroups / _LIMIT[2], cgroups / "memory" / _LIMIT[1]):
        with suppress(OSError):
            told = path.read_text().strip()
            return int(told) if told.isdecimal() and int(told) < _NO_LIMIT else None
    return None


def machine_bytes(cgroups: Path = CGROUPS) -> int:
    """Return what all processes here may have together: the machine's memory, or the container's limit."""
    whole = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return min(whole, limit_bytes(cgroups) or whole)


def run_limited(command: Sequence[str], limit_bytes: int) -> Held:
    """Run a command in a memory cgroup of its own.

    Raises:
        FeedworksError: no such group can be made here.
    """
    with _group(limit_bytes) as (group, version):
        started_s, peak_bytes = time.monotonic(), 0
        process = subprocess.Popen(["sh", "-c", _ENTER, str(group), *command], stdout=subprocess.DEVNULL)
        while process.poll() is None:
            peak_bytes = max(peak_bytes, _held_bytes(group, version))
            time.sleep(POLL_S)
        return Held(process.returncode, time.monotonic() - started_s, peak_bytes)


@contextmanager
def _group(limit_bytes: int) -> Iterator[tuple[Path, int]]:
    version = 2 if (CGROUPS / "cgroup.controllers").is_file() else 1
    group = (CGROUPS if version == 2 else CGROUPS / "memory") / f"feedworks-{os.getpid()}"
    try:
        if version == 2:
            (CGROUPS / "cgroup.subtree_control").write_text("+memory")
        group.mkdir()
        (group / _LIMIT[version]).write_text(str(limit_bytes))
    except OSError as error:
        reason = f"{error.filename}: {error.strerror}"
        raise FeedworksError(
            f"no memory cgroup can be made here ({reason}); run it as root on Linux"
        ) from None
    try:
        yield group, version
    finally:
        group.rmdir()


def _held_bytes(group: Path, version: int) -> int:
    rows = (line.split() for line in (group / "memory.stat").read_text().splitlines())
    return next((int(count) for name, count in rows if name == _HELD[version]), 0)
