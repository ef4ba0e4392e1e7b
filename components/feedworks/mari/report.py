"""MaRI (arXiv 2602.23105): the HTML pages of a run."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from feedworks.configuration import flatten
from feedworks.mari.config import MariConfig
from feedworks.mari.drawing import COLOURS, CUT, REFUSED, GraphNode, draw_model
from feedworks.mari.gate import speedup
from feedworks.mari.sites import cut_sites
from feedworks.metrics.ranking import Interval
from feedworks.reports.figures import bars, curves
from feedworks.reports.html import Report
from feedworks.reports.tables import Cell

JsonObject = dict[str, Any]
LEGEND = {
    "user": COLOURS["user"],
    "item": COLOURS["item"],
    "cross": COLOURS["cross"],
    "both": COLOURS["mixed"],
    "cut by side": CUT,
    "not cut": REFUSED,
}
KINDS = {
    "linear": "cut by side",
    "shortened": "shorter",
    "user_only": "user only",
    "attention": "keys and values once",
    "sum": "user summed once",
}
VARIANTS = {
    "vani": "VanI: everything for every row",
    "uoi": "UOI: user-only parts once",
    "mari_fragmented": "MaRI, fragmented",
    "mari": "MaRI",
}


def write_sites_page(path: Path, sites: JsonObject) -> None:
    """Write the site report alone as a page."""
    report = Report("MaRI: where the model is cut", _subtitle(sites))
    _add_sites(report, sites)
    report.write(path)


def write_report(
    path: Path,
    *,
    sites: JsonObject,
    verdict: JsonObject,
    bench: JsonObject,
    quality: Mapping[str, Mapping[str, Interval | float]],
    history: list[dict[str, Any]],
    config: MariConfig,
) -> None:
    """Write the report of a run, one self-contained file.

    Args:
        path: the HTML file.
        sites: the site report.
        verdict: of the verification.
        bench: the timings.
        quality: method -> metric on the test split; empty for a model from outside.
        history: of the training; empty for a model from outside.
        config: shown folded at the end.
    """
    report = Report("MaRI", _subtitle(sites))
    report.add_highlights(_highlights(sites, verdict, bench, quality))
    if quality:
        report.add_metrics(
            "Test metrics",
            quality,
            ours=("twin",),
            lower_is_better=("log_loss",),
            over="rows",
            note="Original and twin are one model.",
        )
    _add_sites(report, sites)
    _add_verdict(report, verdict, config)
    _add_bench(report, bench)
    if history:
        keys = [key for key in history[0] if key.startswith(("train/", "valid/"))]
        report.add_figure("Learning curves", *(curves(key, history, [key]) for key in keys))
    rows: list[list[Cell]] = [[name, str(value)] for name, value in flatten(config).items()]
    report.add_table("Settings", ["setting", "value"], rows, folded=True)
    report.write(path)


def _subtitle(sites: JsonObject) -> str:
    inputs = sum(node["op"] == "input" and node["colour"] != "const" for node in sites["nodes"])
    cut = len(cut_sites(sites))
    products = "product" if cut == 1 else "products"
    return f"{inputs} inputs, {len(sites['nodes']):,} nodes, {cut} {products} cut by side"


def _highlights(
    sites: JsonObject, verdict: JsonObject, bench: JsonObject, quality: Mapping[str, Any]
) -> dict[str, tuple[Cell, str]]:
    rows, (before, after) = list(sites["flops"].items())[-1]
    errors = [row["error"] for row in verdict["rows"] if row["dtype"] == "float32"]
    most = max(row["rows"] for row in bench["rows"])
    found: dict[str, tuple[Cell, str]] = {}
    if quality:
        auc = quality["twin"]["auc"]
        found["AUC"] = (auc.mean if isinstance(auc, Interval) else auc, "of the twin, on test")
    found |= {
        "Equal": (verdict["equal"], f"{len(verdict['rows'])} comparisons"),
        "Largest difference": (None if None in errors else max(errors), "twin against model, float32"),
        "Operations saved": (before / max(1, after), f"times fewer in products, {int(rows):,} candidates"),
        "Speed-up": (
            speedup(bench),
            f"over UOI, eager, {most:,} candidates",
        ),
    }
    return found


def _add_sites(report: Report, sites: JsonObject) -> None:
    nodes = [GraphNode(**{**node, "inputs": tuple(node["inputs"])}) for node in sites["nodes"]]
    report.add_drawing(
        "The coloured graph",
        draw_model(nodes, _notes(sites), [each["node"] for each in sites["refusals"]]),
        LEGEND,
        "A colour says what a node depends on. In a cut product: columns of the user | of candidates → "
        "outputs. Left out: weights, and what only moves numbers. ×n: n equal nodes side by side.",
    )
    counts = list(sites["flops"])
    columns = ["product", "kind", "user", "candidate", "outputs", "positions"]
    columns += [f"saved, B = {int(rows):,}" for rows in counts]
    table: list[list[Cell]] = [
        [
            site["node"],
            _kind(site),
            *(site[name] for name in ("user_width", "other_width", "outputs", "positions")),
            *(_saved(site["flops"].get(rows)) for rows in counts),
        ]
        for site in sites["sites"]
    ]
    table.append(["all products", "", *([None] * 4), *(_saved(sites["flops"][rows]) for rows in counts)])
    note = (
        "Columns of the user and of candidates in the twin; operations of the model and of the twin for B "
        "candidates, and their ratio. user only: once per request, as one-shot inference has it too."
    )
    report.add_table("Products that cost less", columns, table, note)
    if sites["refusals"]:
        rows: list[list[Cell]] = [[each["node"], each["reason"]] for each in sites["refusals"]]
        report.add_table("Products that stay whole", ["product", "reason"], rows)


def _notes(sites: JsonObject) -> dict[str, str]:
    """The line on each framed box."""
    return {
        site["node"]: f"{site['user_width']} | {site['other_width']} → {site['outputs']}"
        if site["kind"] == "linear"
        else KINDS[site["kind"]]
        for site in cut_sites(sites)
    }


def _kind(site: JsonObject) -> str:
    more = [f"behind {', '.join(site['helped'])}"] if site["helped"] else []
    more += [f"one product with {site['shared']}"] if site["shared"] else []
    return "\n".join([KINDS[site["kind"]], "; ".join(more)]) if more else KINDS[site["kind"]]


def _saved(pair: tuple[int, int] | None) -> Cell:
    if pair is None:
        return None
    before, after = pair
    return f"{before / max(1, after):.2f} ×\n{_short(before)} to {_short(after)}"


def _short(number: float) -> str:
    for size, suffix in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if number >= size:
            return f"{number / size:.3g} {suffix}"
    return f"{number:.0f}"


def _add_verdict(report: Report, verdict: JsonObject, config: MariConfig) -> None:
    wanted = config.verify
    columns = ["type", "requests", "rows", "largest difference", "twin to float64", "model to float64"]
    columns += ["twin, RMS", "model, RMS", "swapped", "equal"]
    names = ("error", "twin_error", "model_error", "twin_rms", "model_rms", "swapped", "equal")
    rows: list[list[Cell]] = [
        [row["dtype"], row["graph"], row["rows"], *(row[name] for name in names)] for row in verdict["rows"]
    ]
    report.add_table(
        "Equality",
        columns,
        rows,
        f"float32: rtol {wanted.rtol:g}, atol {wanted.atol:g}, against the model and the model in float64. "
        f"16 bits: the root mean square of the twin's error against float64, over all samples of a type, at "
        f"most {wanted.low_ratio:g} times the model's. Swapped: pairs of candidates of one request, over "
        f"{wanted.min_gap:g} apart, in another order.",
    )


def _add_bench(report: Report, bench: JsonObject) -> None:
    figures = []
    for rows in sorted({row["rows"] for row in bench["rows"]}):
        times = {
            _named(row): float(row["p50_ms"])
            for variant in VARIANTS
            for row in bench["rows"]
            if row["rows"] == rows and row["variant"] == variant
        }
        ours = [name for name in times if name.startswith("MaRI") and "fragmented" not in name]
        figures.append(bars(f"{rows:,} candidate{'s' if rows > 1 else ''}, ms", times, ours=ours))
    report.add_figure(
        "Time of one request", *figures, note=f"Median of {bench['repeats']} calls. {bench['device']}."
    )


def _named(row: JsonObject) -> str:
    return VARIANTS[row["variant"]].partition(":")[0] + (", compiled" if row["compiled"] else "")
