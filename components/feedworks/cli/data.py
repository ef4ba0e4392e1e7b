"""`feedworks data`: make, fetch, import and validate data folders."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from feedworks.contracts.tables import Kind

FOLDER = click.Path(path_type=Path, file_okay=False)
OUT_HELP = "The data folder to write, in the place of an earlier one."


@click.group()
def data() -> None:
    """Make, fetch, import and validate data folders."""


@data.command("list")
def list_data() -> None:
    """Show the public data sets that can be fetched or imported."""
    from feedworks.datasets import registry

    for name in registry.names():
        dataset = registry.get(name)
        click.echo(f"{name:<24} {dataset.title}  [{dataset.licence}]")


@data.command()
@click.option("--out", type=FOLDER, required=True, help=OUT_HELP)
@click.option(
    "--kind",
    type=click.Choice(["interactions", "ranking", "retention"]),
    default="interactions",
    show_default=True,
    help="interactions: what users did with items. ranking: candidates with labels. retention: logs of users "
    "who leave and come back.",
)
@click.option("--users", "num_users", type=click.IntRange(min=1), help="  [default: 2000, 300 or 1500]")
@click.option("--items", "num_items", type=click.IntRange(min=10), help="  [default: 500, 200 or 1000]")
@click.option(
    "--noise",
    type=click.Choice(["low", "middle", "high"]),
    help="How hard the planted intent is to see; retention only.  [default: middle]",
)
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True)
def synth(out: Path, kind: Kind, seed: int, **sizes: int | str | None) -> None:
    """Write seeded synthetic data with planted structure."""
    from feedworks.datasets.folder import WRITERS, build_data
    from feedworks.errors import ConfigError

    if sizes["noise"] is not None and kind != "retention":
        raise ConfigError(f"--noise is for --kind retention, not {kind}; leave it out")
    given = {name: value for name, value in sizes.items() if value is not None}
    build_data(out, partial(WRITERS[kind], seed=seed, **given))
    click.echo(f"wrote {out}; next: feedworks data validate {out}")


@data.command("import")
@click.argument("source", type=click.Path(path_type=Path, exists=True, file_okay=False))
@click.option("--out", type=FOLDER, required=True, help=OUT_HELP)
def import_data(source: Path, out: Path) -> None:
    """Convert the raw files in SOURCE.

    They are as their owners publish them; the result is a data folder.
    """
    from feedworks.datasets import registry
    from feedworks.datasets.folder import build_data
    from feedworks.errors import DataError

    dataset = registry.detect(source)
    if dataset is None:
        known = ", ".join(registry.names())
        raise DataError(f"{source} holds the files of no known data set; known are {known}")
    build_data(out, partial(dataset.convert, source))
    click.echo(f"wrote {out} from {dataset.title}; next: feedworks data validate {out}")


@data.command()
@click.argument("name")
@click.option("--out", type=FOLDER, required=True, help=OUT_HELP)
@click.option("--cache", type=FOLDER, default=Path("out/downloads"), show_default=True)
def fetch(name: str, out: Path, cache: Path) -> None:
    """Download data set NAME and convert it.

    A broken download resumes; a checksum guards it.
    """
    from feedworks.datasets import download, registry
    from feedworks.datasets.folder import build_data, require_replaceable

    dataset = registry.get(name)
    require_replaceable(out)  # before minutes of downloading
    raw = download.fetch(dataset, cache)
    build_data(out, partial(dataset.convert, raw))
    click.echo(f"wrote {out}; licence: {dataset.licence}; cite: {dataset.citation}")


@data.command()
@click.argument("folder", type=FOLDER)
@click.option("--report", type=click.Path(path_type=Path, dir_okay=False), help="Write an HTML report here.")
def validate(folder: Path, report: Path | None) -> None:
    """Check FOLDER against the contracts.

    Where it breaks them the exit code is 1 and the message names table, column and rows.
    """
    from feedworks.validation.gate import require_valid

    require_valid(folder, report)
    click.echo(f"{folder} keeps its contracts" + (f"; report: {report}" if report else ""))
