"""OCARM (arXiv 2604.25839): the HTML report of a run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from feedworks.configuration import flatten
from feedworks.contracts.retention import label_of
from feedworks.ocarm.config import OcarmConfig
from feedworks.ocarm.evaluation import BASE, OURS, UPPER, Evaluated
from feedworks.reports.figures import curves, grouped_bars, lines
from feedworks.reports.html import Report
from feedworks.reports.tables import Cell

NAMES = {
    "base": "base: PPNet",
    "sfe": "SFE, no teacher",
    "joint": "HAE and SFE jointly",
    "logit": "logit distillation",
    "ocarm": "OCARM",
    "upper": "upper bound: teacher with content",
}
SHOWN = (BASE, OURS, UPPER)

History = Sequence[Mapping[str, Any]]


def write_report(path: Path, found: Evaluated, curves_of: Mapping[str, History], config: OcarmConfig) -> None:
    """Write one self-contained file.

    Args:
        path: the HTML file.
        found: the evaluation.
        curves_of: training histories of `teacher` and `student`.
        config: shown folded at the end.
    """
    seeds = len({seed for _, seed, _ in found.per_seed})
    report = Report("OCARM", f"{len(found.methods)} arms, {seeds} {'seeds' if seeds > 1 else 'seed'}")
    _highlights(report, found)
    methods = {NAMES[arm]: values for arm, values in found.methods.items()}
    within = ", ".join(f"{label_of(days)} within {group}s" for days, group in found.groups.items())
    lower = [name for name in found.methods[BASE] if name.startswith(("log_loss", "ece"))]
    note = f"AUC of any return, mean over seeds; GAUC {within.replace('idles', 'idle times')}."
    report.add_metrics(
        "Test metrics", methods, ours=(NAMES[OURS],), lower_is_better=lower, note=note, over="users and seeds"
    )
    report.add_metrics(
        "AUC over the base", {NAMES[arm]: values for arm, values in found.gains.items()}, ours=(NAMES[OURS],),
        over="users and seeds", note="Paired: the same draws for both.",
    )  # fmt: skip
    aucs = {
        label_of(days): {NAMES[arm]: values[f"auc@{days}"] for arm, values in found.methods.items()}
        for days in found.groups
    }
    report.add_figure("AUC on test", grouped_bars("AUC", aucs))
    _add_seeds(report, found)
    _add_calibration(report, found)
    _add_similarity(report, found)
    for name, history in curves_of.items():
        _add_curves(report, name, history)
    rows: list[list[Cell]] = [[name, str(value)] for name, value in flatten(config).items()]
    report.add_table("Settings", ["setting", "value"], rows, folded=True)
    report.write(path)


def _highlights(report: Report, found: Evaluated) -> None:
    values: dict[str, tuple[Cell, str]] = {}
    for days, share in found.recovered.items():
        name = label_of(days)
        values[f"{name}: share recovered"] = (share, "of the gap between base and upper bound")
        values[f"{name}: gain"] = (found.gains[OURS][f"auc@{days}"], "AUC of OCARM over the base")
    report.add_highlights(values)


def _add_seeds(report: Report, found: Evaluated) -> None:
    horizons = list(found.groups)
    rows: list[list[Cell]] = [
        [f"{NAMES[arm]}, seed {seed}", *(auc[days] for days in horizons)] for arm, seed, auc in found.per_seed
    ]
    columns = ["arm", *(f"AUC {label_of(days)}" for days in horizons)]
    report.add_table("Every seed", columns, rows, folded=True)


def _add_calibration(report: Report, found: Evaluated) -> None:
    figures = []
    for days, arms in found.calibration.items():
        shown = {
            NAMES[arm]: [(each.predicted, each.observed) for each in bins]
            for arm, bins in arms.items()
            if arm in SHOWN
        }
        ends = [value for points in shown.values() for point in points for value in point]
        shown["perfect"] = [(min(ends), min(ends)), (max(ends), max(ends))]
        figures.append(
            lines(f"{label_of(days)}: calibration", shown, x_label="predicted", y_label="observed")
        )
    report.add_figure(
        "Calibration", *figures, note="Test rows of the first seed in bins of equal size by prediction."
    )


def _add_similarity(report: Report, found: Evaluated) -> None:
    figures, rows = [], list[list[Cell]]()
    for days, bins in found.similarity.items():
        name = label_of(days)
        points = [(each.similarity, each.gain.mean) for each in bins]
        figures.append(
            lines(f"{name}: gain by similarity", {name: points}, x_label="cosine of e_u and e_c",
                  y_label="gain in log loss over the base")
        )  # fmt: skip
        rows += [[f"{name}, bin {i + 1}", b.num_rows, b.similarity, b.gain] for i, b in enumerate(bins)]
    note = "Validation rows in bins of equal size by the cosine; positive: OCARM is nearer to the label."
    report.add_figure("Where the student foresees the teacher", *figures, note=note)
    report.add_table("Gain by similarity", ["bin", "rows", "cosine", "gain"], rows, folded=True)


def _add_curves(report: Report, name: str, history: History) -> None:
    keys = list(dict.fromkeys(key for row in history for key in row))
    groups = {prefix: [key for key in keys if key.startswith(prefix)] for prefix in ("train/", "valid/")}
    drawn = [
        curves(f"{name}: {prefix.rstrip('/')}", history, chosen)
        for prefix, chosen in groups.items()
        if chosen
    ]
    report.add_figure(f"Learning curves of the {name}", *drawn)
