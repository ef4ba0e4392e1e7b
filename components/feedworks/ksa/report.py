"""KSA (arXiv 2604.24432): the HTML report of a run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from feedworks.configuration import flatten
from feedworks.ksa.arms import FULL, NAMES, OURS
from feedworks.ksa.config import KsaConfig
from feedworks.ksa.evaluation import DECODE, GROUPS, NEEDLES, Evaluated, buckets, grid
from feedworks.metrics.ranking import Interval
from feedworks.reports.figures import curves, heat_map, lines
from feedworks.reports.html import Report
from feedworks.reports.tables import Cell
from feedworks.reports.text import format_number

TASKS = {
    "single": "one needle",
    "multi_key": "one needle among other keys",
    "multi_value": "several values of one key",
    "tracking": "variables that take over a value",
    "frequent": "most frequent words",
}
CACHES = {OURS: "KSA, as trained", "windows_only": "KSA in every layer", FULL: "full attention"}
SHOWN_LENGTH = 32768

History = Sequence[Mapping[str, Any]]


def write_report(
    path: Path, found: Evaluated, histories: Mapping[str, History], config: KsaConfig, about: str
) -> None:
    """Write one self-contained file.

    Args:
        path: the HTML file.
        found: the evaluation.
        histories: of the training runs, by stage or arm.
        config: shown folded at the end.
        about: how the model was made, in one line.
    """
    report = Report("KSA", about)
    _highlights(report, found, config)
    _add_losses(report, found)
    _add_positions(report, found, config)
    _add_needles(report, found, config)
    _add_cache(report, found, config)
    for name, history in histories.items():
        _add_curves(report, name, history)
    rows: list[list[Cell]] = [[name, str(value)] for name, value in flatten(config).items()]
    report.add_table("Settings", ["setting", "value"], rows, folded=True)
    report.write(path)


def _highlights(report: Report, found: Evaluated, config: KsaConfig) -> None:
    metrics = found.metrics
    values: dict[str, tuple[Cell, str]] = {
        "perplexity": (metrics[f"heldout/{OURS}/perplexity"], "on held-out text"),
        "needles found": (metrics[NEEDLES], "share of the facts, all lengths and depths"),
    }
    if FULL in found.measured:
        ratio = _interval(metrics, f"ratio/{FULL}/loss")
        values["loss over full attention's"] = (ratio, f"gate: at most {config.gate.max_loss_ratio:g}")
    length = max(config.evaluation.cache_lengths)
    small = metrics[f"cache/{OURS}/ratio@{length}"]
    values["cache"] = (f"1/{small:.3g}", f"of full attention's at {length:,} tokens")
    values["prefill = decode"] = (f"{metrics[DECODE]:.1e}", "largest difference of a logit")
    report.add_highlights(values)


def _add_losses(report: Report, found: Evaluated) -> None:
    methods: dict[str, dict[str, Interval | float]] = {}
    for arm in found.measured:
        values: dict[str, Interval | float] = {
            f"{split} perplexity": found.metrics[f"{group}/{arm}/perplexity"]
            for split, group in GROUPS.items()
        }
        values["test loss"] = _interval(found.metrics, f"heldout/{arm}/loss")
        if arm != OURS:
            values["KSA's loss over it"] = _interval(found.metrics, f"ratio/{arm}/loss")
        values["needles exact"] = found.metrics[f"needle/{arm}/exact"]
        methods[NAMES[arm]] = values
    report.add_metrics(
        "Against other attentions",
        methods,
        ours=(NAMES[OURS],),
        lower_is_better=[*(f"{split} perplexity" for split in GROUPS), "test loss", "KSA's loss over it"],
        note="Loss in nats of a token. Needles exact: the most probable continuation is the whole answer.",
        over="rows of text",
    )


def _add_positions(report: Report, found: Evaluated, config: KsaConfig) -> None:
    ends = [high for _, high in buckets(config)]
    series = {
        NAMES[arm]: [(float(end), found.metrics[f"position/{arm}/perplexity@{end}"]) for end in ends]
        for arm in found.measured
    }
    note = "Each point is the mean over the positions since the point before; later ones have more to read."
    figure = lines("perplexity on test", series, x_label="tokens read", y_label="perplexity", log_x=True)
    report.add_figure("Perplexity by position", figure, note=note)


def _add_needles(report: Report, found: Evaluated, config: KsaConfig) -> None:
    recall_N = found.measured[OURS].recall_N
    lengths = [f"{length:,}" for length in config.needles.lengths]
    figures = []
    for task in config.needles.tasks if recall_N is not None else ():
        assert recall_N is not None
        cells = grid(found.needles, recall_N, task, config)
        depths = sorted(
            {needle.depth for needle in found.needles if needle.task == task and needle.depth is not None}
        )
        names = [f"{100 * depth:.0f} %" for depth in depths] or ["all"]
        figures.append(
            heat_map(TASKS[task], cells, rows=names, columns=lengths, x_label="tokens", y_label="depth")
        )
    note = "Share of the facts in the generated answers, in per cent; depth 0 is the start of the text."
    report.add_figure("Needles", *figures, note=note)
    rows: list[list[Cell]] = [
        [
            TASKS[task],
            found.metrics[f"needle_{task}/{OURS}/recall"],
            *(found.metrics[f"needle_{task}/{arm}/exact"] for arm in found.measured),
        ]
        for task in config.needles.tasks
    ]
    columns = ["task", "KSA, facts found", *(f"{NAMES[arm]}, exact" for arm in found.measured)]
    report.add_table("Needles by task", columns, rows)


def _add_cache(report: Report, found: Evaluated, config: KsaConfig) -> None:
    series: dict[str, list[tuple[float, float]]] = {}
    rows: list[list[Cell]] = []
    for length in config.evaluation.cache_lengths:
        for kind, name in CACHES.items():
            size = found.cache[kind, length]
            series.setdefault(name, []).append((float(length), size.num_bytes / 2**20))
            ratios = [found.metrics[f"cache/{kind}/{which}@{length}"] for which in ("ratio", "formula_ratio")]
            slack = f"{100 * found.metrics[f'cache/{kind}/slack@{length}']:.2f} %"
            rows.append([f"{length:,}\n{name}", size.num_bytes, size.formula_bytes, slack, *ratios])
    figure = lines("cache of one sequence", series, x_label="tokens", y_label="MiB", log_x=True, log_y=True)
    report.add_figure("Cache", figure)
    columns = ["tokens", "bytes", "by the formula", "more", "times less than full", "by the formula"]
    note = "Allocated for one sequence of just so many tokens, against T(n) of the paper."
    report.add_table("Bytes of the cache", columns, rows, note=note)


def _add_curves(report: Report, name: str, history: History) -> None:
    keys = sorted({key for row in history for key in row if key.startswith(("train/", "valid/"))})
    losses = [key for key in keys if key.endswith("loss")]
    others = [key for key in keys if key not in losses and not key.endswith("perplexity")]
    figures = [curves("loss", history, losses, x="step")] if losses else []
    if others:
        figures.append(curves("terms", history, others, x="step"))
    last = history[-1] if history else {}
    said = ", ".join(f"{key} {format_number(float(last[key]))}" for key in losses if key in last)
    report.add_figure(f"Training: {name}", *figures, note=f"At the end: {said}." if said else "")


def _interval(metrics: Mapping[str, float], name: str) -> Interval:
    return Interval(metrics[name], metrics[f"{name}/ci_low"], metrics[f"{name}/ci_high"])
