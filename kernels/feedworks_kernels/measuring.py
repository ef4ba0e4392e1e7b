"""Time several providers of one operation side by side in one process, on a CPU or a GPU.

On a shared machine only ratios taken side by side can be trusted: every round calls each provider once, the
next round starts with another one, and after as many rounds as providers the order turns round. Each provider
is given as one call per set of buffers; the sets take turns, so that no call finds its inputs in the cache
because the same inputs were just used.
"""

from __future__ import annotations

import gc
import platform
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

Call = Callable[[], object]

MIN_REPEATS = 7
MAX_REPEATS = 60
_WARMUP = 3
# Reading a clock, waiting and Python's own calls cost some microseconds: a turn on a CPU takes at least this.
_TURN_S = 1e-3
# Below this a GPU waits for Python between calls: many calls become one CUDA graph.
_SHORT_S = 3e-4
_SLOW_S = 0.1
# A replay takes about this long, beside which waiting for it is nothing.
_REPLAY_S = 4e-3
_MOST_CALLS = 1000


class Timing(NamedTuple):
    """Quantiles of the time of one call in seconds; how it was taken: `wall`, `events` or `graph`."""

    min_s: float
    p20_s: float
    p50_s: float
    p80_s: float
    how: str


class Ceilings(NamedTuple):
    """What the machine gives: FLOP/s of a large product, bytes/s of a copy (both ways count)."""

    flop_per_s: float
    bytes_per_s: float


class _Lane(NamedTuple):
    """One provider, ready to be timed: `turn` runs one turn of `num_calls` calls."""

    turn: Callable[[int], object]
    num_calls: int
    how: str


def measure(calls: Mapping[str, Sequence[Call]], device: str, *, seconds: float) -> dict[str, Timing]:
    """Time every provider in turns, at least 7 times each and for about `seconds` together.

    Args:
        calls: provider -> the whole operation once, one call for each set of buffers.
        device: "cpu" or "cuda".
        seconds: time for all rounds; slow providers get `MIN_REPEATS` rounds whatever it is.

    Raises:
        ValueError: there is no provider, or one without a call.
    """
    if not calls or not all(calls.values()):
        raise ValueError(f"expected a call or more for every provider, got {dict(calls)}")
    lanes = {name: _lane(sets, device) for name, sets in calls.items()}
    samples: dict[str, list[float]] = {name: [] for name in lanes}
    names, deadline = list(lanes), time.perf_counter() + seconds
    with _no_collection():
        for number in range(MAX_REPEATS):
            if number >= MIN_REPEATS and time.perf_counter() > deadline:
                break
            turn, backwards = number % len(names), number // len(names) % 2
            order = (names[turn:] + names[:turn])[:: -1 if backwards else 1]
            for name, elapsed_s in _round({name: lanes[name] for name in order}, number, device):
                samples[name].append(elapsed_s / lanes[name].num_calls)
    return {name: _quantiles(samples[name], lane.how) for name, lane in lanes.items()}


def ceilings(device: str, *, quick: bool = False) -> Ceilings:
    """Measure the two limits that every row is held to.

    Args:
        device: "cpu" or "cuda".
        quick: products of 512^3 and copies of 16 MiB: no limits, but a try of everything around them.

    Returns:
        On a GPU a bf16 product of 8192^3 and a copy of 4 GiB, on a CPU an fp32 product of 2048^3 and a copy
        of 256 MiB with the threads that torch has; random numbers, since zeros run faster.
    """
    on_gpu = device == "cuda"
    size, kind = (8192, torch.bfloat16) if on_gpu else (2048, torch.float32)
    num_bytes = 1 << 32 if on_gpu else 1 << 28
    if quick:
        size, num_bytes = 512, 1 << 24
    left, right = (torch.randn(size, size, device=device).to(kind) for _ in range(2))
    source = torch.empty(num_bytes, dtype=torch.uint8, device=device).random_()
    target = torch.empty_like(source)
    timings = measure(
        {"product": [lambda: left @ right], "copy": [lambda: target.copy_(source)]}, device, seconds=0.5
    )
    # The best of a few on a CPU, where other programs run; a GPU keeps what it can sustain.
    product_s, copy_s = ((each.p50_s if on_gpu else each.min_s) for each in timings.values())
    return Ceilings(2 * size**3 / product_s, 2 * source.numel() / copy_s)


def device_label(device: str) -> str:
    """Name the machine for a row: the GPU, or the processor and the threads that torch uses."""
    if device == "cuda":
        return torch.cuda.get_device_name()
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text(encoding="utf-8").splitlines() if cpuinfo.exists() else []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{models[0] if models else platform.machine()}, {torch.get_num_threads()} threads"


def captured(calls: Sequence[Call]) -> tuple[torch.cuda.CUDAGraph, int]:
    """Capture rounds of the calls in a CUDA graph, after warming them up (compilation, tuning).

    Returns:
        The graph, and how many calls one replay makes.
    """
    stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(_WARMUP):
            for call in calls:
                call()
        once_s = _elapsed_s(calls)
    # Most of this time may be launches from Python, which a graph does not have: so ten times as many.
    rounds = max(1, min(_MOST_CALLS // len(calls), round(10 * _REPLAY_S / (once_s + 1e-9))))
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        for _ in range(rounds):
            for call in calls:
                call()
    return graph, rounds * len(calls)


def _lane(calls: Sequence[Call], device: str) -> _Lane:
    """Warm a provider up and settle how many calls make one turn."""
    if device == "cuda":
        if _elapsed_s(calls) < _SLOW_S:  # a slow call is warm after one
            for _ in range(_WARMUP):
                for call in calls:
                    call()
        if _elapsed_s(calls) < _SHORT_S * len(calls):
            try:
                graph, num_calls = captured(calls)
            except RuntimeError:  # it waits for the GPU or allocates otherwise: Python's launches count
                torch.cuda.synchronize()
                return _Lane(_in_turn(calls, len(calls)), len(calls), "events")
            return _Lane(lambda number: graph.replay(), num_calls, "graph")
        return _Lane(_in_turn(calls, 1), 1, "events")
    calls[0]()
    start_s = time.perf_counter()
    calls[-1]()
    once_s = time.perf_counter() - start_s
    if once_s < _SLOW_S:
        for call in calls:
            call()
    num_calls = max(1, min(_MOST_CALLS, round(_TURN_S / (once_s + 1e-9))))
    return _Lane(_in_turn(calls, num_calls), num_calls, "wall")


def _in_turn(calls: Sequence[Call], num_calls: int) -> Callable[[int], None]:
    """Return turn number -> that many calls, going round the sets of buffers."""

    def turn(number: int) -> None:
        for place in range(num_calls):
            calls[(number * num_calls + place) % len(calls)]()

    return turn


def _round(lanes: Mapping[str, _Lane], number: int, device: str) -> Iterator[tuple[str, float]]:
    """Run one turn of each provider; yields its seconds."""
    if device == "cuda":
        events = [_event() for _ in range(2 * len(lanes))]
        torch.cuda.synchronize()
        for lane, start, end in zip(lanes.values(), events[::2], events[1::2], strict=True):
            start.record()
            lane.turn(number)
            end.record()
        torch.cuda.synchronize()
        for name, start, end in zip(lanes, events[::2], events[1::2], strict=True):
            yield name, start.elapsed_time(end) * 1e-3
        return
    for name, lane in lanes.items():
        start_s = time.perf_counter()
        lane.turn(number)
        yield name, time.perf_counter() - start_s


def _elapsed_s(calls: Sequence[Call]) -> float:
    """Seconds of the calls one after the other on the current stream, Python's launches included."""
    start, end = _event(), _event()
    start.record()
    for call in calls:
        call()
    end.record()
    torch.cuda.synchronize()
    return float(start.elapsed_time(end)) * 1e-3


def _event() -> torch.cuda.Event:
    return torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]


@contextmanager
def _no_collection() -> Iterator[None]:
    """A full collection with torch loaded takes up to 250 ms and would fall on one provider."""
    collecting = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if collecting:
            gc.enable()


def _quantiles(seconds: Sequence[float], how: str) -> Timing:
    low, middle, high = np.quantile(np.asarray(seconds), [0.2, 0.5, 0.8])
    return Timing(float(min(seconds)), float(low), float(middle), float(high), how)
