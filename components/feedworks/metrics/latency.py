"""The bench harness: providers of one operation timed in turns in one process, as JSON rows.

On a shared machine only ratios taken side by side can be trusted, so every round calls each provider once
and the next round starts with another one. After as many rounds as providers the order turns round, so that
no provider always finds the cache as the same other one leaves it. p20, p50 and p80 stand for the spread.
"""

from __future__ import annotations

import gc
import json
import math
import os
import platform
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np


class Timing(NamedTuple):
    """Quantiles of the wall-clock time of one call, in seconds."""

    p20_s: float
    p50_s: float
    p80_s: float


def interleave(
    providers: Mapping[str, Callable[[], object]],
    *,
    repeats: int = 20,
    warmup: int = 3,
    synchronise: Callable[[], object] | None = None,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, Timing]:
    """Time every provider `repeats` times, round robin, after `warmup` untimed rounds.

    Args:
        providers: name -> function without arguments that does the whole operation once.
        repeats: timed rounds.
        warmup: untimed rounds before them (allocators, caches, compilation).
        synchronise: called before each clock reading, e.g. `torch.cuda.synchronize`.
        clock: seconds; `time.process_time` counts CPU time, which other programs on the machine disturb less.

    Raises:
        ValueError: no provider, or a count out of range.
    """
    if not providers or repeats < 1 or warmup < 0:
        raise ValueError(f"expected providers, repeats >= 1, warmup >= 0; got {repeats=}, {warmup=}")
    wait = synchronise or _nothing
    names = list(providers)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    collecting = gc.isenabled()
    gc.collect()
    gc.disable()  # one full collection with torch loaded takes up to 250 ms and would fall on one provider
    try:
        for round_index in range(warmup + repeats):
            turn = round_index % len(names)
            backwards = round_index // len(names) % 2
            for name in (names[turn:] + names[:turn])[:: -1 if backwards else 1]:
                elapsed_s = _timed(providers[name], wait, clock)
                if round_index >= warmup:
                    seconds[name].append(elapsed_s)
    finally:
        if collecting:
            gc.enable()
    return {name: _quantiles(values) for name, values in seconds.items()}


def json_rows(
    op: str,
    shape: Mapping[str, int] | str,
    device: str,
    timings: Mapping[str, Timing],
    ours: str,
    error: Mapping[str, float] | None = None,
) -> list[dict[str, Any]]:
    """Build one row per provider: op, provider, shape, device, p20_s, p50_s, p80_s.

    Args:
        op: name of the operation.
        shape: sizes of the problem, e.g. `{"beams": 256, "codes": 8192}`.
        device: where it ran, see `device_label`.
        timings: what `interleave` returned.
        ours: our provider; its row gets `speedup` = {peer: peer's p50 / our p50}, above 1 where ours is
            faster.
        error: provider -> largest error against the reference, added as `error`.

    Raises:
        ValueError: `ours` was not timed.
    """
    if ours not in timings:
        raise ValueError(f"our provider {ours!r} was not timed; timed: {', '.join(timings)}")
    rows: list[dict[str, Any]] = []
    for name, timing in timings.items():
        row: dict[str, Any] = {"op": op, "provider": name, "shape": shape, "device": device}
        row.update({key: _significant(value) for key, value in timing._asdict().items()})
        if error is not None and name in error:
            row["error"] = float(error[name])
        if name == ours:
            peers = {peer: other for peer, other in timings.items() if peer != ours}
            row["speedup"] = {peer: _significant(other.p50_s / timing.p50_s) for peer, other in peers.items()}
        rows.append(row)
    return rows


def print_rows(rows: Iterable[Mapping[str, Any]]) -> None:
    """Print one JSON object per line to standard output, at once, so that a pipe sees each row."""
    for row in rows:
        print(json.dumps(row), flush=True)


def markdown_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return rows as a Markdown table; a field that a row lacks is empty, a mapping becomes columns.

    The fields of `shape` stand under their own names, those of others behind the name of the mapping.
    """
    flat = [_flat(row) for row in rows]
    names = list(dict.fromkeys(name for row in flat for name in row))
    lines = [names, ["---"] * len(names)]
    lines += [[_shown(row.get(name)) for name in names] for row in flat]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def device_label(device: str = "cpu") -> str:
    """Name the machine for a row: the processor and the cores this process may use, or the GPU."""
    if device.startswith("cuda"):
        import torch

        return torch.cuda.get_device_name(device)
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text(encoding="utf-8").splitlines() if cpuinfo.exists() else []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    num_cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return f"{models[0] if models else platform.machine()}, {num_cores} cores"


def _flat(row: Mapping[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in row.items():
        if isinstance(value, Mapping):
            found |= {key if name == "shape" else f"{name} {key}": each for key, each in value.items()}
        else:
            found[name] = value
    return found


def _shown(value: object) -> str:
    if value is None:
        return ""
    return f"{value:.4g}" if isinstance(value, float) and abs(value) < 1e4 else str(value)


def _nothing() -> None:
    return None


def _timed(call: Callable[[], object], wait: Callable[[], object], clock: Callable[[], float]) -> float:
    wait()
    start = clock()
    call()
    wait()
    return clock() - start


def _quantiles(seconds: list[float]) -> Timing:
    low, middle, high = np.quantile(seconds, [0.2, 0.5, 0.8])
    return Timing(float(low), float(middle), float(high))


def _significant(value: float, digits: int = 4) -> float:
    if value == 0 or not math.isfinite(value):
        return value
    return round(value, digits - 1 - math.floor(math.log10(abs(value))))
