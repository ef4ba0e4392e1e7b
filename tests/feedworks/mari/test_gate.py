"""What the gate looks at: equality always, speed and AUC where they are asked for."""

from __future__ import annotations

import pytest

from feedworks.mari.config import GateConfig
from feedworks.mari.gate import finite, flat_metrics, reasons, speedup


def row(variant: str, rows: int, ms: float, *, compiled: bool = False) -> dict[str, object]:
    return {"variant": variant, "rows": rows, "p50_ms": ms, "compiled": compiled}


BENCH = {
    "rows": [
        row("uoi", 1, 1.0),
        row("mari", 1, 9.0),
        row("uoi", 100, 6.0),
        row("mari", 100, 2.0),
        row("uoi", 100, 1.0, compiled=True),
        row("mari", 100, 5.0, compiled=True),
    ]
}
EQUAL = {"equal/passed": 1.0}


def test_the_speed_up_is_that_of_the_largest_request_without_compilation() -> None:
    assert speedup(BENCH) == 3.0


@pytest.mark.parametrize(
    ("metrics", "gate", "said"),
    [
        (EQUAL, GateConfig(), []),
        (EQUAL, GateConfig(min_speedup=3.0), []),
        (EQUAL, GateConfig(min_speedup=3.1), ["3.00 times as fast"]),
        ({"equal/passed": 0.0}, GateConfig(), ["does not score as its model"]),
        ({**EQUAL, "test/twin/auc": 0.7}, GateConfig(min_auc=0.7), []),
        ({**EQUAL, "test/twin/auc": 0.7}, GateConfig(min_auc=0.8), ["AUC on test is 0.7000"]),
        (EQUAL, GateConfig(min_auc=0.8), []),
        ({"equal/passed": 0.0}, GateConfig(min_speedup=4), ["does not score", "as fast"]),
    ],
)
def test_reasons(metrics: dict[str, float], gate: GateConfig, said: list[str]) -> None:
    found = reasons(metrics, BENCH, gate)
    assert len(found) == len(said)
    assert all(part in reason for part, reason in zip(said, found, strict=True))


def test_metrics_take_the_worst_of_each_type_and_leave_out_what_is_no_number() -> None:
    comparison = {"dtype": "float32", "twin_error": 2.0, "model_error": 3.0, "swapped": 1, "model_rms": None}
    verdict = {
        "equal": False,
        "requests_apart": True,
        "rows": [
            {**comparison, "error": 1.0, "twin_rms": 3.0, "rows": 1},
            {**comparison, "error": None, "twin_rms": 1.0, "rows": 7},
        ],
    }
    sites = {"nodes": [1, 2], "sites": [{"kind": "linear"}, {"kind": "user_only"}], "refusals": [1]}
    metrics = flat_metrics({**sites, "flops": {"10": [6, 2]}}, verdict, {"test/twin/auc": 0.5})
    assert metrics == {
        "test/twin/auc": 0.5,
        "graph/num_nodes": 2.0,
        "graph/num_cut": 1.0,
        "graph/num_refused": 1.0,
        "equal/passed": 0.0,
        "equal/requests_apart": 1.0,
        "flops/products/ratio@10": 3.0,
        "equal/float32/error": 1.0,
        "equal/float32/twin_error": 2.0,
        "equal/float32/model_error": 3.0,
        "equal/float32/twin_rms": 2**0.5,
        "equal/float32/swapped": 2.0,
    }


def test_what_json_cannot_hold_becomes_none() -> None:
    assert finite({"a": float("nan"), "b": float("inf"), "c": 1, "d": "x"}) == {
        "a": None,
        "b": None,
        "c": 1,
        "d": "x",
    }
