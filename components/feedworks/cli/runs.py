"""`feedworks list`, `run` and `report`."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import click

from feedworks import images
from feedworks.cli.options import out_option, paper_argument, settings_options
from feedworks.cli.summary import summary
from feedworks.errors import ConfigError
from feedworks.papers import PAPERS, Paper

RUNNERS = ("steps", "kfp", "docker")


@click.command("list")
def list_papers() -> None:
    """Show the papers of the house."""
    for paper in PAPERS.values():
        click.echo(f"{paper.name:<12} {paper.title} ({paper.source})\n{'':<12} {paper.does}")


@click.command()
@paper_argument()
@settings_options(tasks_here=True)
@out_option()
@click.option(
    "--runner",
    type=click.Choice(RUNNERS),
    default="steps",
    show_default=True,
    help="steps: in this process. kfp: the Kubeflow pipeline on this machine, without Kubernetes. docker: "
    "the same, each task in a container.",
)
@click.option("--image", default=images.CPU, show_default=True, help="Of all tasks, with --runner docker.")
def run(paper: Paper, **arguments: Any) -> None:
    """Train, evaluate and package NAME on a data folder, or with --model on a model from outside."""
    from feedworks.results import last_results

    run_paper(paper, **arguments)
    click.echo(summary(last_results(arguments["out"])))


@click.command()
@click.argument("folder", metavar="DIR", type=click.Path(path_type=Path, file_okay=False))
def report(folder: Path) -> None:
    """Print the metrics of the run in DIR."""
    click.echo(summary(folder))


def run_paper(
    paper: Paper,
    *,
    source: str,
    preset: str,
    overrides: tuple[str, ...],
    out: Path,
    runner: str,
    image: str = images.CPU,
) -> None:
    """Run a paper from a source of data to OUT/metrics.json, OUT/report.html and OUT/model/.

    Raises:
        FeedworksError: a setting or the data is at fault, or torchrun started this; an earlier result in OUT
            stays.
    """
    from feedworks.storage import only_writer

    _refuse_torchrun()
    config = paper.part("config").resolve(preset, overrides)
    # Two runs at once would remove each other's work.
    with only_writer(out / "work"):
        if runner != "steps":
            from feedworks.cli.local_pipeline import run_pipeline

            settings: dict[str, Any] = {"preset": preset, "overrides": overrides, "out": out}
            containers = runner == "docker"
            run_pipeline(paper.name, source=source, **settings, containers=containers, image=image)
            return
        data = None
        if not (paper.takes_model and config.outside.model):
            from feedworks.datasets.folder import open_data
            from feedworks.validation.gate import require_valid

            data = open_data(source, out / "work" / "data", kind=paper.data)
            require_valid(data, out / "work" / "validation.html", kind=paper.data)
        paper.part("chain").run(data, out, config)


def _refuse_torchrun() -> None:
    """Stop where torchrun started the command: its processes would all do the steps that do not train."""
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        return
    if os.environ.get("RANK", "0") != "0":
        sys.exit(0)  # the first process tells it
    raise ConfigError(
        "feedworks run does not go under torchrun: only training steps share their work. Start it alone, "
        "or one step by torchrun -m feedworks.launch --preset PRESET NAME STEP INPUT... OUT; pipelines do it "
        "with num_gpus and num_nodes"
    )
