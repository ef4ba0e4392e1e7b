"""`feedworks features push` and `freshness`: live rows into the online store, and how old what it has is."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

import click

from feedworks.cli.features import FOLDER, TIME_HELP, Time, repo_option

if TYPE_CHECKING:
    from feedworks.features.push import Sink

MAX_NAMED = 20
_STORE_HELP = "packed+redis://HOST:PORT/DB?project=NAME or feast:///FOLDER; the repository's store else."


@click.command(short_help="Push live rows, or replay a log.")
@click.argument("log", default="synthetic")
@click.option("--view", default="live_stream", show_default=True, help="Stream view of the rows.")
@click.option("--rate", type=click.FloatRange(min=0.1), help="Replay at so many events/s, and count.")
@click.option(
    "--seconds", type=click.FloatRange(min=0.1), default=60.0, show_default=True, help="Of the replay."
)
@click.option("--seed", type=int, default=0, show_default=True, help="Of the synthetic log and late events.")
@click.option("--to", "url", help=_STORE_HELP)
@repo_option
def push(
    log: str, view: str, rate: float | None, seconds: float, seed: int, url: str | None, repo: Path | None
) -> None:
    """Push the rows of LOG, a parquet file, or `synthetic`.

    A row that breaks the contract is named and left out, the others are written; exit 1 if there was one.
    With --rate the log is replayed as if it came now, while a second process reads: it tells after what time
    an event is readable, and counts the events that are lost.
    """
    from feedworks.features.push import open_sink
    from feedworks.features.repo import repository

    address = url or f"feast://{repository(repo)}"
    sink = open_sink(address)
    try:
        if rate is None:
            _push_file(sink, view, log)
        else:
            _replay(sink, address, log, rate, seconds, seed)
    finally:
        sink.close()


@click.command()
@click.argument("service")
@click.option("--out", type=click.Path(path_type=Path, dir_okay=False), required=True, help="HTML file.")
@click.option("--tables", type=FOLDER, help="Folder with the feature tables, whose entities are asked for.")
@click.option("--from", "url", help=_STORE_HELP)
@click.option("--at", type=Time(), help=f"As of this time instead of now; {TIME_HELP}.")
@repo_option
def freshness(
    service: str, out: Path, tables: Path | None, url: str | None, at: datetime | None, repo: Path | None
) -> None:
    """Write a report on the age of SERVICE's rows online."""
    from feedworks.features.freshness import report_on
    from feedworks.features.repo import repository, tables_folder
    from feedworks.features.schema import ServiceSchema

    schema = ServiceSchema.of(service).require_servable()
    folder = tables or tables_folder(repository(repo))
    now_us = None if at is None else int(at.timestamp()) * 1_000_000
    for view in report_on(url or f"feast://{repository(repo)}", schema, folder, out, now_us):
        shares = f"{100 * view.stale_share:.1f} % stale, {100 * view.missing_share:.1f} % missing"
        click.echo(f"{view.view}: {view.num_rows} entities, {shares}")
    click.echo(f"report: {out.resolve()}")


def _push_file(sink: Sink, view: str, log: str) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    from feedworks.errors import DataError
    from feedworks.features.push import push as push_rows
    from feedworks.features.push import stream_table

    table = stream_table(view)
    path = Path(log)
    if not path.is_file():
        raise DataError(f"{log}: no such file; `synthetic` needs --rate")
    try:
        with pq.ParquetFile(path) as file:
            rows = file.read()
    except (pa.ArrowException, OSError) as error:
        reason = str(error).splitlines()[0]
        raise DataError(f"{log}: {reason}; expected a parquet file of {view}") from None
    done = push_rows(sink, table, rows)
    for row in done.rejected[:MAX_NAMED]:
        click.echo(f"rejected {row}", err=True)
    click.echo(f"{view}: {done.num_accepted} rows pushed, {len(done.rejected)} rejected")
    if done.rejected:
        raise SystemExit(1)


def _replay(sink: Sink, url: str, log: str, rate: float, seconds: float, seed: int) -> None:
    from feedworks.features.live_log import read_log, synthetic_log
    from feedworks.features.replay import replay

    rows = synthetic_log(int(rate * seconds), seed=seed) if log == "synthetic" else read_log(Path(log))
    done = replay(sink, url, rows, rate, seconds, seed=seed)
    click.echo(
        f"{done.num_pushed} pushes in {done.seconds:.1f} s, {done.num_rejected} rejected; "
        f"{done.num_late} late and {done.num_repeated} repeated events changed nothing"
    )
    click.echo(
        f"readable after {1000 * done.freshness_p50_s:.1f} ms (p50), {1000 * done.freshness_p99_s:.1f} ms "
        f"(p99), {1000 * done.freshness_max_s:.1f} ms (longest)"
    )
    click.echo(f"{done.num_reads} reads of all rooms, {1000 * done.read_p99_s:.1f} ms (p99)")
    click.echo(f"lost {done.num_lost}, went back in time {done.num_backwards}, wrong {done.num_wrong}")
    if done.num_lost or done.num_backwards or done.num_wrong:
        raise SystemExit(1)
