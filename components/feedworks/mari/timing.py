"""MaRI (arXiv 2602.23105): one request of a model timed in every paradigm, as the pipeline's benchmark.

Shape legend: B candidates of the request.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch.export import ExportedProgram

from feedworks.mari.config import BenchConfig
from feedworks.mari.paradigms import scorers
from feedworks.mari.samples import one_request
from feedworks.mari.schema import RankerSchema
from feedworks.metrics.latency import device_label, interleave
from feedworks.progress import say

Calls = Mapping[tuple[str, bool], Callable[..., Any]]  # by paradigm, and whether it is compiled


def time_model(program: ExportedProgram, schema: RankerSchema, cfg: BenchConfig, seed: int) -> dict[str, Any]:
    """Time one request of every size, all variants in turns.

    Returns:
        `device`, `threads`, `repeats`; `rows`: variant, compiled, rows and quantiles in ms; `metrics`: the
        medians as flat metrics.
    """
    with _threads(cfg.threads), warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of the compiler, about its own parts
        calls: dict[tuple[str, bool], Callable[..., Any]] = {
            (name, False): scorer for name, scorer in scorers(program, schema).items()
        }
        if cfg.compiled:
            say("compiling every variant; this takes a minute or more")
            calls |= {(name, True): torch.compile(call, dynamic=True) for (name, _), call in calls.items()}
        rows = [row for count in cfg.rows for row in _time_rows(calls, schema, count, cfg.repeats, seed)]
        return {
            "device": device_label(),
            "threads": torch.get_num_threads(),
            "repeats": cfg.repeats,
            "rows": rows,
            "metrics": {f"speed/{_label(row)}/ms@{row['rows']}": row["p50_ms"] for row in rows},
        }


def _time_rows(
    calls: Calls, schema: RankerSchema, count: int, repeats: int, seed: int
) -> list[dict[str, Any]]:
    inputs = one_request(schema, count, seed)
    providers = {f"{name} {compiled}": partial(call, *inputs) for (name, compiled), call in calls.items()}
    with torch.inference_mode():
        timings = interleave(providers, repeats=repeats)
    return [
        {
            "variant": name,
            "compiled": compiled,
            "rows": count,
            "p20_ms": 1e3 * timing.p20_s,
            "p50_ms": 1e3 * timing.p50_s,
            "p80_ms": 1e3 * timing.p80_s,
        }
        for (name, compiled), timing in zip(calls, timings.values(), strict=True)
    ]


def _label(row: Mapping[str, Any]) -> str:
    return f"{row['variant']}{'_compiled' if row['compiled'] else ''}"


@contextmanager
def _threads(number: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(number or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)
