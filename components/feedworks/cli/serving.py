"""`feedworks serve` and `demo`: a packaged model behind HTTP on loopback."""

from __future__ import annotations

import json
import os
import socket
import urllib.request
from pathlib import Path
from typing import Any

import click

from feedworks.cli.options import out_option, paper_argument
from feedworks.cli.runs import run_paper, summary
from feedworks.errors import ConfigError, ModelError
from feedworks.papers import Paper
from feedworks.serving.server import HOST, READY_WITHIN_S, running_server, server_command

MODEL_DIR = "FEEDWORKS_MODEL_DIR"
TOP_K = 10


@click.command()
@paper_argument()
@click.option("--model", type=click.Path(path_type=Path, file_okay=False), required=True, help="OUT/model.")
@click.option("--port", type=click.IntRange(1, 65535), default=3000, show_default=True)
def serve(paper: Paper, model: Path, port: int) -> None:
    """Serve a packaged model of NAME on loopback."""
    command, environment = service_command(paper, model, port)
    _require_free(port)
    click.echo(f"serving {model} at http://{HOST}:{port}; Ctrl-C ends it", err=True)
    os.execve(command[0], command, environment)


@click.command()
@paper_argument()
@out_option("out/demo")
def demo(paper: Paper, out: Path) -> None:
    """Run NAME on synthetic events, ask its service.

    The tiny preset, as a pipeline; at the end the packaged service gives one user's top-10.
    """
    from feedworks.datasets.folder import open_data

    # A second thread gains nothing on tiny batches and spins on a busy machine: 110 s of CPU became 550 s.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    data = open_data("synthetic", out / "work" / "data")
    run_paper(paper, source=str(data), preset="tiny", overrides=(), out=out, runner="kfp")
    history = longest_history(data)
    environment = {MODEL_DIR: str((out / "model").resolve())}
    with running_server(_target(paper), environment, out / "work" / "service.log") as address:
        answer = post_json(f"{address}/recommend", {"history": history, "k": TOP_K})
    click.echo(f"\n{summary(out)}\n\nthe user's last items: {' '.join(map(str, history[-TOP_K:]))}")
    click.echo(f"top-{TOP_K} from the service (model {answer['model_tag']}):")
    for rank, item in enumerate(answer["items"], start=1):
        click.echo(f"{rank:>4}  item {item['item_id']:<8} score {item['score']:<9.4f} sid {item['sid']}")
    click.echo(f"\nreport: {(out / 'report.html').resolve()}")


def service_command(paper: Paper, model: Path, port: int) -> tuple[list[str], dict[str, str]]:
    """Return the command line and the environment of the service of a packaged model.

    Raises:
        ModelError: there is no packaged model in the folder.
    """
    if not (model / "config.json").is_file():
        raise ModelError(f"{model} holds no packaged model (no config.json); make one with `feedworks run`")
    return server_command(_target(paper), port), {**os.environ, MODEL_DIR: str(model.resolve())}


def post_json(url: str, body: dict[str, Any]) -> dict[str, Any]:
    """POST a JSON object and return the JSON object of the answer."""
    request = urllib.request.Request(
        url, data=json.dumps(body).encode(), headers={"Content-Type": "application/json"}
    )
    with _direct().open(request, timeout=READY_WITHIN_S) as response:
        answer: dict[str, Any] = json.load(response)
    return answer


def longest_history(data: Path) -> list[int]:
    """Return the item ids, oldest first, of the user with the most events in a data folder."""
    from feedworks.contracts.files import read_table
    from feedworks.contracts.tables import INTERACTIONS

    events = read_table(INTERACTIONS, data).to_pandas().sort_values(["user_id", "event_time"])
    user = events["user_id"].value_counts().sort_index().idxmax()
    return [int(item) for item in events.loc[events["user_id"] == user, "item_id"]]


def _target(paper: Paper) -> str:
    return f"feedworks.{paper.name}.service:{paper.service}"


def _direct() -> urllib.request.OpenerDirector:
    # A proxy set for the outside world must not be asked for loopback.
    return urllib.request.build_opener(urllib.request.ProxyHandler({}))


def _require_free(port: int) -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError:
            raise ConfigError(f"port {port} is taken; choose another with --port") from None
