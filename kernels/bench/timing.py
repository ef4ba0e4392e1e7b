"""Check every provider against float64, then time those that are right, side by side.

A provider that errs on a small case or on the timed one gets a row that says so and no time; so does one that
cannot run here.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch

from bench.registry import OURS, Case, Operator, Provider, Work
from feedworks_kernels.measuring import Call, Ceilings, measure

# All buffer sets together are this many times the second-level cache of a GPU.
_TIMES_L2 = 3
_MOST_SETS = 24
_CPU_SETS = 3
# Beyond this a single set is larger than any cache of a CPU.
_LARGE_BYTES = 1 << 28


class Outcome(NamedTuple):
    """What became of a case: rows for the table, and a sentence for each provider that is wrong."""

    rows: list[dict[str, object]]
    wrong: list[str]


def run_case(
    operator: Operator,
    case: Case,
    limits: Ceilings | None,
    seconds: float,
    same: Mapping[str, object],
    known: dict[tuple[str, ...], str],
) -> Outcome:
    """Check and time one case.

    Args:
        operator: what the case belongs to.
        case: sizes, mode, type and device.
        limits: the ceilings of this run; None: check only.
        seconds: time for all timed rounds.
        same: columns that are the same for all rows.
        known: as `check`; one for a whole run.
    """
    rows, wrong = [], []
    ready: dict[str, list[Call]] = {}
    errors: dict[str, float] = {}
    num = 1 if limits is None else num_sets(case, operator.work(case))
    sets = [operator.inputs(case, seed) for seed in range(1, 1 + num)]
    for provider in operator.providers(case):
        if provider.missing:
            rows.append(_row(case, provider, same) | {"note": f"not run: {provider.missing}"})
            continue
        found = check(operator, case, provider, sets[0], known)
        if isinstance(found, str):
            rows.append(_row(case, provider, same) | {"note": found})
            if found.startswith("wrong"):
                wrong.append(f"{case.label()}, {provider.name}: {found}")
            continue
        errors[provider.name] = found
        if limits is None:
            rows.append(_row(case, provider, same) | {"error": found, "note": provider.computes})
            continue
        ready[provider.name] = [provider.bind(inputs) for inputs in sets]
        rows.append(_row(case, provider, same) | {"note": provider.computes})
    if ready and limits is not None:
        timings = measure(ready, case.device, seconds=seconds)
        work, ours = operator.work(case), timings.get(OURS)
        for row in rows:
            timing = timings.get(str(row["provider"]))
            if timing is not None:
                row |= timing._asdict() | {"clock": timing.how, "error": errors[str(row["provider"])]}
                row.pop("how")
                row["fraction_of_ceiling"] = floor_s(work, limits) / timing.p50_s
                row["speedup"] = timing.p50_s / ours.p50_s if ours else None
                row["load"] = os.getloadavg()[0]
                row |= {"flops": work.flops, "bytes": work.num_bytes}
    if case.device == "cuda":
        ready.clear()
        torch.cuda.empty_cache()  # other processes of a round need the memory
    return Outcome(rows, wrong)


def untimed(cases: Sequence[Case], same: Mapping[str, object]) -> list[dict[str, object]]:
    """Return a row for each case that there was no time for."""
    return [_row(case, Provider(OURS, _nothing), same) | {"note": "not run: no time left"} for case in cases]


def _nothing(inputs: Any) -> Call:
    return lambda: inputs


def floor_s(work: Work, limits: Ceilings) -> float:
    """Return the least time by the ceilings: operations or bytes, whichever takes longer."""
    return max(work.flops / limits.flop_per_s, work.num_bytes / limits.bytes_per_s)


def num_sets(case: Case, work: Work) -> int:
    """Return how many sets of buffers keep a call from finding its inputs in the cache."""
    if case.device != "cuda":
        return 1 if work.num_bytes > _LARGE_BYTES else _CPU_SETS
    cache = torch.cuda.get_device_properties(0).L2_cache_size
    wanted = math.ceil(_TIMES_L2 * cache / max(1.0, work.num_bytes))
    return max(1 if wanted == 1 else 3, min(_MOST_SETS, wanted))


def check(
    operator: Operator, case: Case, provider: Provider, inputs: Any, known: dict[tuple[str, ...], str]
) -> float | str:
    """Return the error of a provider on the timed case, or why it may not be timed.

    Args:
        operator: what the case belongs to.
        case: the timed case.
        provider: one that can run here.
        inputs: of the timed case.
        known: what the small cases gave before, of this mode, type and provider; filled here.
    """
    allowed = operator.tolerance(case) if provider.tolerance is None else provider.tolerance
    key = (case.op, case.mode, case.dtype, case.device, provider.name)
    try:
        if key not in known:
            known[key] = _small_cases(operator, case, provider.name, allowed)
        if known[key]:
            return known[key]
        error = operator.error_of(case, provider, inputs)
    except Exception as problem:  # a peer that breaks must not take the others with it
        kind = "wrong: breaks" if provider.name.startswith(OURS) else "not run"
        return f"{kind}: {type(problem).__name__}: {' '.join(str(problem).split())[:200]}"
    if not provider.computes and not error <= allowed:
        return f"wrong: errs by {error:.2g}, allowed {allowed:.2g}"
    return error


def _small_cases(operator: Operator, case: Case, name: str, allowed: float) -> str:
    """Say what is wrong with a provider at small awkward sizes; nothing if nothing is."""
    for small in operator.checks(case):
        twin = {each.name: each for each in operator.providers(small)}.get(name)
        if twin is None or twin.missing or twin.computes:
            continue
        error = operator.error_of(small, twin, operator.inputs(small, seed=7))
        if not error <= allowed:
            return f"wrong: errs by {error:.2g} at {small.shape}, allowed {allowed:.2g}"
    return ""


def _row(case: Case, provider: Provider, same: Mapping[str, object]) -> dict[str, object]:
    return {
        **same,
        "op": case.op,
        "mode": case.mode,
        "shape": case.shape,
        "dtype": case.dtype,
        "provider": provider.name,
    }


def within(
    cases: Sequence[tuple[Operator, Case]],
    seconds: float,
    clock: Callable[[], float] = time.perf_counter,
    *,
    all_of_them: bool = False,
) -> Iterator[tuple[Operator, Case, float]]:
    """Yield each case with its share of the time that is left, until there is none (or all, with none)."""
    deadline = clock() + seconds
    for number, (operator, case) in enumerate(cases):
        left = deadline - clock()
        if left <= 0 and not all_of_them:
            return
        # Half of a share, since inputs, checks and compilation take about as long as the rounds.
        yield operator, case, left / (len(cases) - number) / 2
