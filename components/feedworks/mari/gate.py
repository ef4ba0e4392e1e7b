"""MaRI (arXiv 2602.23105): the numbers of a run, and whether its twin may be packaged."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from feedworks.mari.config import GateConfig
from feedworks.mari.sites import cut_sites

JsonObject = dict[str, Any]


def flat_metrics(sites: JsonObject, verdict: JsonObject, quality: Mapping[str, float]) -> dict[str, float]:
    """What was found out, as flat metrics that are equal in two equal runs.

    Args:
        sites: the site report.
        verdict: of the verification.
        quality: `test/...` of a trained ranker; empty for a model from outside.
    """
    metrics = {
        **quality,
        "graph/num_nodes": float(len(sites["nodes"])),
        "graph/num_cut": float(len(cut_sites(sites))),
        "graph/num_refused": float(len(sites["refusals"])),
        "equal/passed": float(verdict["equal"]),
        "equal/requests_apart": float(verdict["requests_apart"]),
    }
    for rows, (before, after) in sites["flops"].items():
        metrics[f"flops/products/ratio@{rows}"] = before / max(1, after)
    for dtype in dict.fromkeys(row["dtype"] for row in verdict["rows"]):
        rows_of = [row for row in verdict["rows"] if row["dtype"] == dtype]
        for name in ("error", "twin_error", "model_error"):
            if (largest := _largest(row[name] for row in rows_of)) is not None:
                metrics[f"equal/{dtype}/{name}"] = largest
        for name in ("twin_rms", "model_rms"):
            if (pooled := _pooled(rows_of, name)) is not None:
                metrics[f"equal/{dtype}/{name}"] = pooled
        metrics[f"equal/{dtype}/swapped"] = float(sum(row["swapped"] for row in rows_of))
    return metrics


def speedup(bench: JsonObject) -> float:
    """Time of user-side one-shot inference over that of the twin, both eager, at the most rows timed."""
    last = max(row["rows"] for row in bench["rows"])
    eager = [row for row in bench["rows"] if row["rows"] == last and not row["compiled"]]
    times = {row["variant"]: row["p50_ms"] for row in eager}
    return float(times["uoi"] / times["mari"])


def reasons(metrics: Mapping[str, float], bench: JsonObject, cfg: GateConfig) -> list[str]:
    """Why the twin may not be packaged, one sentence each; empty where it may."""
    found = []
    if metrics["equal/passed"] != 1:
        found.append("the twin does not score as its model does: see equal/* in metrics.json")
    faster = speedup(bench)
    if faster < cfg.min_speedup:
        wanted = f"gate.min_speedup is {cfg.min_speedup}"
        found.append(f"the twin is {faster:.2f} times as fast as one-shot inference, {wanted}")
    auc = metrics.get("test/twin/auc")
    if auc is not None and auc < cfg.min_auc:
        found.append(f"the AUC on test is {auc:.4f}, gate.min_auc is {cfg.min_auc}")
    return found


def finite(row: JsonObject) -> JsonObject:
    """A row with None for what JSON cannot hold."""
    return {
        name: None if isinstance(value, float) and not math.isfinite(value) else value
        for name, value in row.items()
    }


def _pooled(rows: Sequence[JsonObject], name: str) -> float | None:
    """Root of the mean square over the rows of all samples."""
    known = [row for row in rows if row[name] is not None]
    if not known:
        return None
    return math.sqrt(sum(row[name] ** 2 * row["rows"] for row in known) / sum(row["rows"] for row in known))


def _largest(values: Any) -> float | None:
    known: Sequence[float] = [value for value in values if value is not None]
    return max(known) if known else None
