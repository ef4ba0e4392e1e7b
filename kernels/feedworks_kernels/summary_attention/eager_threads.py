"""Independent pieces of work on a CPU, each on one thread.

A block is a chain of some ten operators of 0.1 ms. If each of them is cut over the threads, every one ends
with a wait for the slowest; a thread that goes through whole blocks alone never waits.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from threading import Barrier
from typing import Any, TypeVar

import torch

Task = TypeVar("Task")
Result = TypeVar("Result")


def num_workers(device: torch.device) -> int:
    """Return how many tasks run at the same time: torch's threads; one on other devices."""
    return torch.get_num_threads() if device.type == "cpu" else 1


def run(function: Callable[[Task], Result], tasks: Iterable[Task], workers: int) -> Iterator[Result]:
    """Yield the results of all tasks, in their order. What a task raises is raised here."""
    tasks = list(tasks)
    if workers == 1 or len(tasks) <= 1:
        yield from map(function, tasks)
        return
    inference = torch.is_inference_mode_enabled()

    def in_worker(task: Task) -> Result:
        # Modes belong to a thread: a worker takes the caller's.
        with torch.inference_mode() if inference else torch.no_grad():
            return function(task)

    yield from _pool(os.getpid(), workers).map(in_worker, tasks)


@cache
def _pool(process: int, workers: int) -> ThreadPoolExecutor:
    """Return threads whose operators use one thread each. A forked process gets its own."""
    del process
    pool = ThreadPoolExecutor(workers, thread_name_prefix="summary_attention")
    started = Barrier(workers + 1)

    def start() -> None:
        torch.set_num_threads(1)
        started.wait()

    threads = torch.get_num_threads()
    waiting: list[Any] = [pool.submit(start) for _ in range(workers)]
    started.wait()
    for each in waiting:
        each.result()
    # The number is kept for the calling thread and for threads to come: only the first is still right.
    torch.set_num_threads(threads)
    return pool
