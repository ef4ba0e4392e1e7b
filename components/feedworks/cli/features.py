"""`feedworks features`: the feature store from its definitions to an answer."""

from __future__ import annotations

import json
import tempfile
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click

FOLDER = click.Path(path_type=Path, file_okay=False)
MAX_ID = 2**63 - 1  # ids are whole numbers of 64 bits, not negative
TIME_HELP = "ISO 8601, as 2024-05-01 or 2024-05-01T12:00:00Z; without a zone it is UTC"


class Time(click.ParamType[datetime]):
    """A time in ISO 8601; UTC where it has no zone."""

    name = "time"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> datetime:
        """Turn text into a time with a zone."""
        if isinstance(value, datetime):
            return value
        try:
            time = datetime.fromisoformat(value)
        except ValueError:
            self.fail(f"{value!r} is no time; {TIME_HELP}.", param, ctx)
        return time if time.tzinfo else time.replace(tzinfo=UTC)


class Ids(click.ParamType[tuple[int, ...]]):
    """Ids of one entity, or of several with a colon between them."""

    name = "ids"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[int, ...]:
        """Turn text into ids."""
        if isinstance(value, tuple):
            return value
        try:
            ids = tuple(map(int, value.split(":")))
        except ValueError:
            self.fail(f"{value!r} is no id and no ids such as 17:991.", param, ctx)
        if wrong := [each for each in ids if not 0 <= each <= MAX_ID]:
            self.fail(f"{wrong[0]} is not in the range 0 to {MAX_ID}.", param, ctx)
        return ids


repo_option = click.option(
    "--repo", type=FOLDER, help="The feature repository; ./feature_repo, or that of the source tree."
)


@click.group()
def features() -> None:
    """Apply, fill, read and check the feature store.

    \b
    feedworks features build                      event logs -> feature tables
    feedworks features apply                      register views and services
    feedworks features materialize START END      offline tables -> online store
    feedworks features push --rate 1000           replay live rooms, count what is lost
    feedworks features get ocarm_student_v1 17    what a model would read now

    The store is the embedded one (SQLite, DuckDB) unless FEAST_FS_YAML_FILE_PATH names another file of the
    repository, such as redis.yaml. The tables lie in its folder data/tables, or where FEEDWORKS_FEATURES
    says.
    """  # noqa: D301 - click keeps the lines of a paragraph that begins with this character


@features.command(short_help="Make the feature tables from event logs.")
@click.option(
    "--data",
    "source",
    default="synthetic",
    show_default=True,
    help="A retention data folder, a folder of raw files that a known data set left, or `synthetic`.",
)
@click.option("--out", type=FOLDER, help="Where they go; data/tables of the repository if not said.")
@click.option(
    "--set", "overrides", multiple=True, metavar="KEY=VALUE", help="A setting samples.* of OCARM; repeatable."
)
@repo_option
def build(source: str, out: Path | None, overrides: tuple[str, ...], repo: Path | None) -> None:
    """Make the tables of users, items and authors from event logs, as a run of OCARM does.

    The log is checked first. Earlier tables are replaced as a whole.
    """
    from feedworks.datasets.folder import open_data
    from feedworks.features.repo import repository, tables_folder
    from feedworks.ocarm import config, samples
    from feedworks.validation.gate import require_valid

    cfg = config.resolve("small", overrides)
    target = out or tables_folder(repository(repo))
    with tempfile.TemporaryDirectory() as scratch:
        data = open_data(source, Path(scratch) / "data", kind="retention")
        require_valid(data, None, kind="retention")
        samples.build_samples(data, Path(scratch) / "samples", target, cfg.samples)
    click.echo(f"wrote {target}; next: feedworks features apply")


@features.command()
@repo_option
@click.option("--tables", type=FOLDER, help="Folder with the feature tables; kept in the registry.")
def apply(repo: Path | None, tables: Path | None) -> None:
    """Register views and services; say what changed.

    The same definitions a second time change nothing.
    """
    from feedworks.features import repo as repository

    folder = repository.repository(repo)
    click.echo(repository.apply(folder, tables))
    click.echo(f"applied {folder} with {repository.store_file(folder).name}")


@features.command(short_help="Write the rows of [START, END] online.")
@click.argument("start", type=Time())
@click.argument("end", type=Time())
@repo_option
@click.option("--view", "views", multiple=True, help="Only this view; repeatable. Else all with a table.")
def materialize(start: datetime, end: datetime, repo: Path | None, views: tuple[str, ...]) -> None:
    """Write the latest row of each entity with START <= event_time <= END into the online store.

    Times are ISO 8601, as 2024-05-01 or 2024-05-01T12:00:00Z; without a zone they are UTC. All tables are
    checked first: a row that breaks its contract is named, and nothing is written. What the store has that
    is newer stays.
    """
    from feedworks.features.materialize import materialize as run
    from feedworks.features.repo import repository

    for name, done in run(repository(repo), start, end, views).items():
        rate = f", {done.num_rows / done.seconds:,.0f} rows/s" if done.seconds > 0 else ""
        click.echo(f"{name}: {done.num_rows} rows in {done.seconds:.1f} s{rate}")


@features.command(short_help="Print what a model would read.")
@click.argument("service")
@click.argument("keys", type=Ids(), nargs=-1, required=True)
@click.option("--at", type=Time(), help=f"As of this time instead of now; {TIME_HELP}.")
@click.option("--source", help="Address of the store; `feast://` and the repository's path by default.")
@repo_option
def get(
    service: str,
    keys: tuple[tuple[int, ...], ...],
    at: datetime | None,
    source: str | None,
    repo: Path | None,
) -> None:
    """Print what a model of SERVICE would read of the entities KEYS, a line of JSON for each.

    Of a service that reads of users and items, a key is USER:ITEM, such as 17:991 for ocarm_student_v2.

    A row past its time to live is stale: its age is told, its values are not. SERVICE may not be one that
    reads what is known too late, such as ocarm_teacher_v1.
    """
    from feedworks.features.lookup import lookup
    from feedworks.features.repo import repository
    from feedworks.features.schema import ServiceSchema

    schema = ServiceSchema.of(service).require_servable()
    address = source or f"feast://{repository(repo)}"
    for row in lookup(address, schema, keys, at or datetime.now(UTC)):
        click.echo(json.dumps(row))


@features.command()
@repo_option
@click.option("--tables", type=FOLDER, help="Folder with the feature tables; that of the repository if none.")
def validate(repo: Path | None, tables: Path | None) -> None:
    """Check definitions and tables; exit 1 where one breaks.

    Definitions: every view has a time to live, an owner, a description and tags, and no service that may be
    served reads what is known too late. Tables: every row keeps its contract; those that are not there are
    named and are no error.
    """
    from feedworks.contracts.features import FEATURE_TABLES
    from feedworks.features import repo as repository
    from feedworks.features.definitions import require_sound
    from feedworks.features.validate import require_tables

    folder = repository.repository(repo)
    contents = repository.read_definitions(folder)
    require_sound(contents.feature_views, contents.feature_services)
    click.echo(f"{len(contents.feature_views)} views and {len(contents.feature_services)} services are sound")
    place = tables or repository.tables_folder(folder)
    there = [table for table in FEATURE_TABLES if table.path(place).exists()]
    for name, num_rows in require_tables(place, there).items():
        click.echo(f"{name}: {num_rows} rows keep their contract")
    if absent := [table.name for table in FEATURE_TABLES if table not in there]:
        click.echo(f"not in {place}: {', '.join(absent)}")
