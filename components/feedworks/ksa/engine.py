"""KSA (arXiv 2604.24432): continuous batching: a thread for the model, an event loop for the clients.

The thread runs a `Scheduler`; what comes in meanwhile joins before its next step. After a step one call takes
all new tokens to the event loop. A client that leaves cancels its ticket: its slots are free after the step
that is under way.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import AsyncIterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

from feedworks.ksa.counting import counters
from feedworks.ksa.scheduling import (
    Decoder,
    EngineError,
    Job,
    Outcome,
    Piece,
    Policy,
    Scheduler,
    Words,
    Work,
)
from feedworks.serving.batching import OverloadedError

if TYPE_CHECKING:
    from feedworks.ksa.cache import KsaCache

RATE_WINDOW_S = 1.0
# Adding up the bytes of 32 sequences in 36 layers takes a millisecond, a tenth of a step on a GPU.
COUNT_EVERY_S = 0.2

_log = logging.getLogger(__name__)


class Ticket:
    """The answers to some jobs as they come; iterate once, cancel when they are no longer wanted."""

    def __init__(self, engine: Engine, works: Sequence[Work]) -> None:
        self.works = works
        self._engine = engine
        self._loop = asyncio.get_running_loop()
        self._pieces: asyncio.Queue[tuple[int, Piece]] = asyncio.Queue()
        self._open = len(works)

    async def __aiter__(self) -> AsyncIterator[tuple[int, Piece]]:
        """Yield `(number of the job, piece)` until all jobs are done.

        Raises:
            EngineError: a job failed.
        """
        while self._open:
            number, piece = await self._pieces.get()
            if piece.error is not None:
                raise piece.error
            self._open -= piece.last
            yield number, piece

    def cancel(self) -> None:
        """End the jobs that go on."""
        self._engine.cancel(self)

    @property
    def loop_id(self) -> int:
        """Tells event loops apart."""
        return id(self._loop)

    def put(self, number: int, piece: Piece) -> None:
        """Take a piece, on the event loop."""
        self._pieces.put_nowait((number, piece))

    def give(self, pieces: Sequence[tuple[Ticket, int, Piece]]) -> None:
        """Bring pieces of any tickets of this one's event loop there, from the model's thread."""
        try:
            self._loop.call_soon_threadsafe(_put_all, pieces)
        except RuntimeError:  # the loop is closed: nobody waits
            _log.debug("an event loop is gone")


class Load(NamedTuple):
    """What the engine holds now."""

    waiting: int
    running: int
    used_bytes: int
    allocated_bytes: int


class Engine:
    """Generates for many clients at once.

    Args:
        model: on the device of the cache, in evaluation mode.
        cache: all of its slots are free.
        words: of the model.
        max_waiting: jobs that may wait; further ones are refused.
        policy: of the scheduler.
    """

    def __init__(
        self,
        model: Decoder,
        cache: KsaCache,
        words: Words,
        *,
        max_waiting: int = 256,
        policy: Policy | None = None,
    ) -> None:
        self.max_jobs = len(cache.lengths) + max_waiting
        self._scheduler = Scheduler(model, cache, words, policy)
        self._tickets: dict[Work, tuple[Ticket, int]] = {}  # of the model's thread
        self._counters = counters()
        self._news = threading.Condition()
        self._added: list[tuple[Work, Ticket, int]] = []
        self._cancelled: list[Work] = []
        self._open_jobs = 0
        self._closing = False
        self._ended = EngineError("the service is shutting down")
        self._rate = _Rate()
        self._counted_s = 0.0
        self._count()
        self._thread = threading.Thread(target=self._run, name="model", daemon=True)
        self._thread.start()

    def submit(self, jobs: Sequence[Job]) -> Ticket:
        """Hand in jobs, on an event loop.

        Raises:
            OverloadedError: too many jobs are waiting.
            EngineError: the engine is closed.
        """
        now_s = time.perf_counter()
        ticket = Ticket(self, [Work.of(job, now_s) for job in jobs])
        with self._news:
            if self._closing:
                raise self._ended
            if self._open_jobs + len(jobs) > self.max_jobs:
                raise OverloadedError(f"{self._open_jobs} sequences run or wait; try again later")
            self._open_jobs += len(jobs)
            self._added += [(work, ticket, number) for number, work in enumerate(ticket.works)]
            self._news.notify()
        return ticket

    def cancel(self, ticket: Ticket) -> None:
        """End the jobs of a ticket that go on; from any thread, as often as one likes."""
        going_on = [work for work in ticket.works if not work.done]
        if going_on:
            with self._news:
                self._cancelled += going_on
                self._news.notify()

    @property
    def alive(self) -> bool:
        """Whether it takes jobs."""
        return self._thread.is_alive() and not self._closing

    def load(self) -> Load:
        """Say what the engine holds now; of a step that is under way, what was before it."""
        scheduler, cache = self._scheduler, self._scheduler.cache
        running = len(scheduler.running) + (scheduler.reading is not None)
        waiting = max(0, self._open_jobs - running)
        return Load(waiting, running, cache.used_bytes(list(cache.lengths)), cache.num_bytes)

    def close(self, within_s: float = 10.0) -> None:
        """Give up all jobs and end the thread."""
        with self._news:
            self._closing = True
            self._news.notify()
        self._thread.join(within_s)

    def _run(self) -> None:
        try:
            while self._wait():
                start_s = time.perf_counter()
                outcomes = self._scheduler.step()
                end_s = time.perf_counter()
                self._deliver(outcomes)
                if end_s - self._counted_s > COUNT_EVERY_S:
                    self._count()
                num_tokens = sum(piece.token is not None for _, piece in outcomes)
                if num_tokens:
                    self._counters.generated_tokens.inc(num_tokens)
                    self._counters.batch_size.observe(num_tokens)
                    self._counters.step_s.observe(end_s - start_s)
                self._counters.tokens_per_s.set(self._rate.add(num_tokens, end_s))
        except BaseException:
            _log.exception("the model's thread broke down")
            self._ended = EngineError("the service broke down; start it again")
        finally:
            with self._news:
                self._closing = True
                self._take_news()
            self._scheduler.cancel_all(self._ended)
            # All that were not told their end, those too that a step had in its hands when it broke down.
            self._deliver([(work, Piece("", error=self._ended)) for work in list(self._tickets)])
            self._count()

    def _wait(self) -> bool:
        """Take what came in; wait where there is nothing to do. False at the end."""
        with self._news:
            while not (self._closing or self._added or self._cancelled or self._scheduler.busy):
                self._count()
                self._counters.tokens_per_s.set(0)
                self._news.wait()
                self._rate = _Rate()
            self._take_news()
            return not self._closing

    def _take_news(self) -> None:
        for work, ticket, number in self._added:
            self._tickets[work] = ticket, number
            self._scheduler.add(work)
        for work in self._cancelled:
            if not work.done:
                self._scheduler.cancel(work)
                self._forget(work)
        self._added, self._cancelled = [], []

    def _forget(self, work: Work) -> tuple[Ticket, int]:
        """Let go of a job that is done."""
        self._open_jobs -= 1  # under the lock in either caller
        return self._tickets.pop(work)

    def _deliver(self, outcomes: Sequence[Outcome]) -> None:
        """Bring the pieces to their event loops, mostly one, in one call each."""
        by_loop: dict[int, list[tuple[Ticket, int, Piece]]] = {}
        now_s = time.perf_counter()
        for work, piece in outcomes:
            if piece.token is not None and not work.told:
                work.told = True
                self._counters.first_token_s.observe(now_s - work.born_s)
                self._counters.prompt_tokens.inc(len(work.job.prompt))
            if piece.last:
                with self._news:
                    ticket, number = self._forget(work)
            else:
                ticket, number = self._tickets[work]
            by_loop.setdefault(ticket.loop_id, []).append((ticket, number, piece))
        for pieces in by_loop.values():
            pieces[0][0].give(pieces)

    def _count(self) -> None:
        self._counted_s = time.perf_counter()
        load = self.load()
        self._counters.waiting.set(load.waiting)
        self._counters.running.set(load.running)
        self._counters.cache_used_bytes.set(load.used_bytes)
        self._counters.cache_bytes.set(load.allocated_bytes)


class _Rate:
    """Tokens per second, over a second or more of work."""

    def __init__(self) -> None:
        self._start_s = time.perf_counter()
        self._num_tokens = 0
        self._last = 0.0

    def add(self, num_tokens: int, now_s: float) -> float:
        """Count tokens; return the rate of the last whole window, or of this one where it is the first."""
        self._num_tokens += num_tokens
        seconds = max(1e-9, now_s - self._start_s)
        rate = self._num_tokens / seconds
        if seconds >= RATE_WINDOW_S:
            self._start_s, self._num_tokens, self._last = now_s, 0, rate
        return self._last or rate


def _put_all(pieces: Sequence[tuple[Ticket, int, Piece]]) -> None:
    for ticket, number, piece in pieces:
        ticket.put(number, piece)
