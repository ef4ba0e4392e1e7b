"""RecoChain (arXiv 2604.25787): the HTML report of a run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from feedworks.configuration import flatten
from feedworks.metrics.codebook import bucket_sizes, code_counts
from feedworks.recochain.catalogue import Catalogue
from feedworks.recochain.config import RecoChainConfig
from feedworks.recochain.evaluation import Evaluated
from feedworks.reports.figures import bars, curves, grouped_bars, histogram, lines
from feedworks.reports.html import Report
from feedworks.reports.tables import Cell

OURS = ("generation", "rerank")
PROTOCOL = (
    "Leave-one-out: the last item of each user is the test target, the one before it chooses epochs. The "
    "whole catalogue is ranked and nothing is sampled. Generation and rerank order the same candidates."
)

History = Sequence[Mapping[str, Any]]


def write_report(
    path: Path,
    found: Evaluated,
    catalogue: Catalogue,
    curves_of: Mapping[str, History],
    facts: Mapping[str, Mapping[str, Any]],
    config: RecoChainConfig,
) -> None:
    """Write one self-contained file.

    Args:
        path: the HTML file.
        found: the evaluation.
        catalogue: for the use of the codebooks.
        curves_of: training histories of `generator`, `joint` and `sasrec`.
        facts: `data` (counts) and `sids` (collision report).
        config: shown folded at the end.
    """
    data = facts["data"]
    report = Report(
        "RecoChain",
        f"{data['num_users']:,} users, {data['num_items']:,} items, {data['num_events']:,} events",
    )
    _highlights(report, found, config)
    seen = " Items of the user's own history are left out." if config.exclude_seen else ""
    report.add_metrics("Test metrics", found.methods, ours=OURS, note=PROTOCOL + seen)
    report.add_metrics(
        "Relative gain of reranking", {"rerank over generation": found.gain}, note="0.03 is three per cent."
    )
    k = max(config.evaluation.cutoffs)
    recalls = {name: values[f"recall@{k}"] for name, values in found.methods.items()}
    report.add_figure(f"Recall@{k}", bars(f"Recall@{k}", recalls, ours=OURS))
    if found.novel:
        note = f"{int(found.metrics['test/novel/num_users']):,} users whose target is not in the window read."
        report.add_metrics("Novel targets only", found.novel, ours=OURS, note=note)
    report.add_figure(
        f"Slices, recall@{k}", *(grouped_bars(family, groups) for family, groups in found.slices.items())
    )
    _add_sweep(report, found, config)
    _add_curves(report, curves_of)
    _add_codebooks(report, catalogue, facts["sids"])
    rows = [[name, str(value)] for name, value in flatten(config).items()]
    report.add_table("Settings", ["setting", "value"], rows, folded=True)
    report.write(path)


def _highlights(report: Report, found: Evaluated, config: RecoChainConfig) -> None:
    low, high = min(config.evaluation.cutoffs), max(config.evaluation.cutoffs)
    gain = found.gain[f"recall@{low}"]
    report.add_highlights(
        {
            f"Recall@{high} reranked": (found.methods["rerank"][f"recall@{high}"], "test users"),
            f"NDCG@{high} reranked": (found.methods["rerank"][f"ndcg@{high}"], "test users"),
            f"Gain in recall@{low}": (gain, "relative, over the generated order"),
            "Beam recall": (found.metrics["test/beam_recall"], "ceiling of any order"),
            "Invalid SIDs": (found.metrics["test/invalid_sid_rate"], "must be 0"),
        }
    )


def _add_sweep(report: Report, found: Evaluated, config: RecoChainConfig) -> None:
    if not found.sweep:
        return
    k = min(config.evaluation.cutoffs)
    columns = ["beam, retrieved", "generation", "rerank", "relative gain", "ceiling"]
    rows: list[list[Cell]] = [[f"{row.beam}, {row.retrieved}", *row[2:]] for row in found.sweep]
    users = config.evaluation.sweep_users
    note = f"Recall@{k} on at most {users:,} validation users, one model for all settings."
    report.add_table("Beam and retrieval length", columns, rows, note, best={"rerank": "max"})
    series = {
        f"beam {beam}": [(row.retrieved, row.reranked) for row in found.sweep if row.beam == beam]
        for beam in config.evaluation.sweep_beams
    }
    figure = lines(f"Recall@{k} reranked", series, x_label="retrieved behaviours")
    report.add_figure("Sweep", figure)


def _add_curves(report: Report, curves_of: Mapping[str, History]) -> None:
    figures = []
    for name, history in curves_of.items():
        keys = list(dict.fromkeys(key for row in history for key in row))
        for prefix in ("train/", "valid/"):
            chosen = [key for key in keys if key.startswith(prefix)]
            if chosen:
                figures.append(curves(f"{name}: {prefix.rstrip('/')}", history, chosen))
    report.add_figure("Learning curves", *figures)


def _add_codebooks(report: Report, catalogue: Catalogue, sids: Mapping[str, Any]) -> None:
    codes = catalogue.code_NL[: catalogue.num_known].cpu().numpy()
    rows = [
        [str(level), usage, perplexity]
        for level, (usage, perplexity) in enumerate(zip(sids["usage"], sids["perplexity"], strict=True))
    ]
    note = f"{sids['num_sids']:,} distinct semantic IDs, collision rate {sids['collision_rate']:.4f}."
    report.add_table("Codebooks", ["level", "share of codes used", "perplexity"], rows, note)
    counts = code_counts(codes, catalogue.num_codes)
    ranked = {
        f"level {level}": list(enumerate(sorted(map(float, row), reverse=True)))
        for level, row in enumerate(counts)
    }
    report.add_figure(
        "Use of codes",
        lines("Items per code, most used first", ranked, x_label="code", y_label="items"),
        histogram("Items per semantic ID", bucket_sizes(codes), x_label="items", log_y=True),
    )
