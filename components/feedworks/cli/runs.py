"""`feedworks list`, `run` and `report`."""

from __future__ import annotations

from pathlib import Path

import click

from feedworks.cli.options import out_option, paper_argument, settings_options
from feedworks.errors import DataError
from feedworks.papers import PAPERS, Paper

METRICS = ("recall", "ndcg", "mrr")
GAIN = "rerank_gain"


@click.command("list")
def list_papers() -> None:
    """Show the papers of the house."""
    for paper in PAPERS.values():
        click.echo(f"{paper.name:<12} {paper.title} ({paper.source})\n{'':<12} {paper.does}")


@click.command()
@paper_argument()
@settings_options
@out_option()
@click.option(
    "--runner",
    type=click.Choice(["steps", "kfp"]),
    default="steps",
    show_default=True,
    help="steps: in this process. kfp: the Kubeflow pipeline on this machine, without Kubernetes.",
)
def run(paper: Paper, source: str, preset: str, overrides: tuple[str, ...], out: Path, runner: str) -> None:
    """Train, evaluate and package NAME on a data folder."""
    run_paper(paper, source=source, preset=preset, overrides=overrides, out=out, runner=runner)
    click.echo(summary(out))


@click.command()
@click.argument("folder", metavar="DIR", type=click.Path(path_type=Path, file_okay=False))
def report(folder: Path) -> None:
    """Print the metrics of the run in DIR."""
    click.echo(summary(folder))


def run_paper(
    paper: Paper, *, source: str, preset: str, overrides: tuple[str, ...], out: Path, runner: str
) -> None:
    """Run a paper from a source of data to OUT/metrics.json, OUT/report.html and OUT/model/.

    Raises:
        FeedworksError: a setting or the data is at fault; an earlier result in OUT stays.
    """
    from feedworks.storage import only_writer

    config = paper.part("config").resolve(preset, overrides)
    # Two runs at once would remove each other's work.
    with only_writer(out / "work"):
        if runner == "kfp":
            from feedworks.cli.local_pipeline import run_pipeline

            run_pipeline(paper.name, source=source, preset=preset, overrides=overrides, out=out)
            return
        from feedworks.datasets.folder import open_data
        from feedworks.validation.gate import require_valid

        data = open_data(source, out / "work" / "data")
        require_valid(data, out / "work" / "validation.html")
        paper.part("chain").run(data, out, config)


def summary(folder: Path) -> str:
    """Return the test metrics of a finished run as a table, best method first, and where its report lies.

    Raises:
        DataError: the folder holds no finished run, or its metrics are not those of a run.
    """
    from feedworks.storage import read_json

    path = folder / "metrics.json"
    if not path.is_file():
        raise DataError(f"{folder} holds no finished run (no metrics.json); make one with `feedworks run`")
    metrics = read_json(path)
    try:
        table = _table(metrics)
    except (TypeError, ValueError, AttributeError):
        raise DataError(f"{path} holds no metrics of a run; make it again with `feedworks run`") from None
    files = [f"{kind}: {folder / name}" for kind, name in (("report", "report.html"), ("model", "model"))]
    return "\n".join([*table, *(line for line in files if Path(line.partition(": ")[2]).exists())])


def _table(metrics: dict[str, float]) -> list[str]:
    rows: dict[str, dict[str, float]] = {}
    for key, value in metrics.items():
        part, _, rest = key.partition("/")
        method, _, name = rest.partition("/")
        if part == "test" and name.partition("@")[0] in METRICS and "/" not in name:
            rows.setdefault(method, {})[name] = value
    columns = sorted({name for values in rows.values() for name in values}, key=_column_order)
    if not columns:
        raise ValueError("no test metric")
    gains = rows.pop(GAIN, {})
    lines = [f"{'':<16}" + "".join(f"{name:>11}" for name in columns)]
    for method, values in sorted(rows.items(), key=lambda row: -row[1].get(columns[0], 0.0)):
        cells = [f"{values[name]:>11.4f}" if name in values else f"{'':>11}" for name in columns]
        lines.append(f"{method:<16}" + "".join(cells))
    if gains:
        cells = [f"{gains[name]:>+11.1%}" if name in gains else f"{'':>11}" for name in columns]
        lines.append(f"{GAIN:<16}" + "".join(cells))
    return lines


def _column_order(name: str) -> tuple[int, int]:
    metric, _, cutoff = name.partition("@")
    return METRICS.index(metric), int(cutoff)
