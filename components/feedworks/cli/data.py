"""`feedworks data`: make, fetch, import and validate data folders."""

from __future__ import annotations

import inspect
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, cast

import click

if TYPE_CHECKING:
    from feedworks.contracts.tables import Kind

FOLDER = click.Path(path_type=Path, file_okay=False)
KINDS = ["interactions", "ranking", "retention", "text"]
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
    type=click.Choice(KINDS),
    default="interactions",
    show_default=True,
    help="interactions: what users did with items. ranking: candidates with labels. retention: logs of users "
    "who leave and come back. text: documents.",
)
@click.option("--users", "num_users", type=click.IntRange(min=1), help="  [default: 2000, 300 or 1500]")
@click.option("--items", "num_items", type=click.IntRange(min=10), help="  [default: 500, 200 or 1000]")
@click.option(
    "--noise",
    type=click.Choice(["low", "middle", "high"]),
    help="How hard the planted intent is to see; retention only.  [default: middle]",
)
@click.option("--documents", "num_documents", type=click.IntRange(min=10), help="  [default: 60]")
@click.option("--words", "num_words", type=click.IntRange(min=60), help="Of a document.  [default: 1500]")
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True)
def synth(out: Path, kind: Kind, seed: int, **sizes: int | str | None) -> None:
    """Write seeded synthetic data with planted structure."""
    from feedworks.datasets.folder import WRITERS, build_data
    from feedworks.errors import ConfigError

    given = {name: value for name, value in sizes.items() if value is not None}
    for name in given:
        known = [each for each in KINDS if name in inspect.signature(WRITERS[cast("Kind", each)]).parameters]
        if kind not in known:
            option = name.removeprefix("num_")
            raise ConfigError(f"--{option} is for --kind {' or '.join(known)}, not {kind}; leave it out")
    build_data(out, partial(WRITERS[kind], seed=seed, **given))
    click.echo(f"wrote {out}; next: feedworks data validate {out}")


@data.command("import")
@click.argument("source", type=click.Path(path_type=Path, exists=True, file_okay=False))
@click.option("--out", type=FOLDER, required=True, help=OUT_HELP)
@click.option("--kind", type=click.Choice(KINDS), help="What it must become; text takes any folder of texts.")
def import_data(source: Path, out: Path, kind: Kind | None) -> None:
    """Convert the raw files in SOURCE.

    They are as their owners publish them; the result is a data folder.
    """
    from feedworks.datasets import registry
    from feedworks.datasets.folder import build_data
    from feedworks.errors import DataError

    dataset = registry.detect(source, kind)
    if dataset is None:
        known = ", ".join(registry.names())
        raise DataError(f"{source} holds the files of no known data set; known are {known}")
    if kind not in (None, dataset.kind):
        raise DataError(f"{source} holds {dataset.name}, which makes data of kind {dataset.kind}, not {kind}")
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
@click.option("--kind", type=click.Choice(KINDS), help="What it must hold.  [default: what its files are of]")
def validate(folder: Path, report: Path | None, kind: Kind | None) -> None:
    """Check FOLDER against the contracts.

    Where it breaks them the exit code is 1 and the message names table, column and rows.
    """
    from feedworks.validation.gate import require_valid

    require_valid(folder, report, kind=kind)
    click.echo(f"{folder} keeps its contracts" + (f"; report: {report}" if report else ""))
