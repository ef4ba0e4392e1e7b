"""Progress that is always visible: a bar in a terminal, a plain line every few seconds elsewhere."""

from __future__ import annotations

import os
import re
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sized
from types import TracebackType
from typing import TypeVar

from tqdm import tqdm

T = TypeVar("T")

LINE_EVERY_S = 5.0
BAR_EVERY_S = 0.25
# What `Progress` prints where there is no terminal: label, count, total, note.
_PLAIN = re.compile(r"(.+): (\d+)(?:/(\d+))?, \d+ s(?:, [\d.,]+/s)?(?:, (.*))?")


class Progress:
    """A counter towards `total` that shows itself on stderr; only the first process of a group shows.

    Args:
        label: what is counted, at the front of the line.
        total: the count at the end, None where it is unknown.
        start: the count to start from, for work that is taken up again.
    """

    def __init__(self, label: str, *, total: int | None = None, start: int = 0) -> None:
        self.count = start
        self.label = label
        self._total = total
        self._start = start
        self._start_s = time.monotonic()
        self._shown_s = -float("inf")
        self._shown_count: int | None = None
        self._silent = os.environ.get("RANK", "0") != "0"
        self._bar: tqdm[None] | None = None
        if not self._silent and sys.stderr.isatty():
            # A container's terminal often has no size: a bar would have no columns, or stand below its
            # last row.
            size = os.get_terminal_size(sys.stderr.fileno())
            self._bar = tqdm(
                desc=label,
                total=total,
                initial=start,
                dynamic_ncols=size.columns > 0,
                ncols=None if size.columns else 80,
                nrows=None if size.lines else 24,
            )

    def __enter__(self) -> Progress:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def advance(self, count: int = 1, note: Callable[[], str] | None = None) -> None:
        """Count on; `note` gives text for the end of the line and is called only when it is shown."""
        self.count += count
        now_s = time.monotonic()
        if self._silent or now_s - self._shown_s < (LINE_EVERY_S if self._bar is None else BAR_EVERY_S):
            return
        self._show(now_s, note)

    def close(self, note: Callable[[], str] | None = None) -> None:
        """Show the last count, if it has not been shown, and end the bar."""
        if not self._silent and (self._shown_count != self.count or note is not None):
            self._show(time.monotonic(), note)
        self._silent = True
        if self._bar is not None:
            self._bar.close()

    def _show(self, now_s: float, note: Callable[[], str] | None) -> None:
        self._shown_s, self._shown_count = now_s, self.count
        text = note() if note is not None else ""
        if self._bar is not None:
            if text:
                self._bar.set_postfix_str(text, refresh=False)
            self._bar.update(self.count - self._bar.n)
            self._bar.refresh()
            return
        elapsed_s = now_s - self._start_s
        of_total = f"/{self._total}" if self._total is not None else ""
        rate = f", {(self.count - self._start) / elapsed_s:,.1f}/s" if elapsed_s > 0.1 else ""
        tail = f", {text}" if text else ""
        print(
            f"{self.label}: {self.count}{of_total}, {elapsed_s:.0f} s{rate}{tail}",
            file=sys.stderr,
            flush=True,
        )


class Relay:
    """Shows what another process prints through a pipe; in a terminal its lines of progress become a bar.

    Args:
        indent: stands before every line.
    """

    def __init__(self, indent: str = "") -> None:
        self._indent = indent
        self._shown: Progress | None = None

    def show(self, line: str) -> None:
        """Show one line; anything but the next count of the same work ends the bar."""
        found = _PLAIN.fullmatch(line) if sys.stderr.isatty() else None
        if found is None:
            self.close()
            say(self._indent + line)
            return
        label, count, total, note = found.groups()
        label, count = self._indent + label, int(count)
        shown = self._shown
        if shown is None or shown.label != label or count < shown.count:
            self.close()
            shown = self._shown = Progress(label, total=int(total) if total else None)
        shown.advance(count - shown.count, (lambda: note) if note else None)

    def close(self) -> None:
        """End the bar, if there is one."""
        if self._shown is not None:
            self._shown.close()
            self._shown = None


def progress(iterable: Iterable[T], *, label: str, total: int | None = None) -> Iterator[T]:
    """Yield from `iterable` and show how far it is; the total is its length where it has one."""
    if total is None and isinstance(iterable, Sized):
        total = len(iterable)
    with Progress(label, total=total) as shown:
        for item in iterable:
            yield item
            shown.advance()


def say(message: str) -> None:
    """Print one line on stderr without tearing a bar; only the first process of a group speaks."""
    if os.environ.get("RANK", "0") == "0":
        tqdm.write(message, file=sys.stderr)
        sys.stderr.flush()
