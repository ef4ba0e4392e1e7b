"""`feedworks serve` and `demo`: a packaged model behind HTTP on loopback."""

from __future__ import annotations

import errno
import os
import socket
from functools import partial
from pathlib import Path
from typing import Any

import click

from feedworks.cli.options import out_option, paper_argument
from feedworks.cli.processes import become
from feedworks.cli.runs import run_paper
from feedworks.cli.summary import summary
from feedworks.errors import ConfigError, ModelError
from feedworks.papers import Paper
from feedworks.serving.server import HOST, MODEL_DIR, post_json, running_server, server_command


@click.command()
@paper_argument()
@click.option("--model", type=click.Path(path_type=Path, file_okay=False), required=True, help="OUT/model.")
@click.option("--port", type=click.IntRange(1, 65535), default=3000, show_default=True)
@click.option(
    "--host", default=HOST, show_default=True, help="IPv4 address; 0.0.0.0 for all, in a container."
)
def serve(paper: Paper, model: Path, port: int, host: str) -> None:
    """Serve a packaged model of NAME, on loopback if not said otherwise.

    Nobody is asked who they are: open it to others behind a gateway or a network policy only.
    """
    command, environment = service_command(paper, model, port, host)
    _require_free(host, port)
    click.echo(f"serving {model} at http://{host}:{port}; Ctrl-C ends it", err=True)
    become(command, environment)


@click.command()
@paper_argument()
@out_option("out/demo")
def demo(paper: Paper, out: Path) -> None:
    """Run NAME on synthetic data, ask its service.

    The tiny preset, as a pipeline; at the end the packaged service answers one request.
    """
    from feedworks.datasets.folder import open_data

    # A second thread gains nothing on tiny batches and spins on a busy machine: 110 s of CPU became 550 s.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    data = open_data("synthetic", out / "work" / "data", kind=paper.data)
    run_paper(paper, source=str(data), preset="tiny", overrides=(), out=out, runner="kfp")
    environment = {MODEL_DIR: str((out / "model").resolve())}
    with running_server(_target(paper), environment, out / "work" / "service.log") as address:
        said = paper.part("demo").ask(partial(_post, address), data)
    click.echo("\n".join(["", summary(out), "", *said]))
    click.echo(f"\nreport: {(out / 'report.html').resolve()}")


def service_command(
    paper: Paper, model: Path, port: int, host: str = HOST
) -> tuple[list[str], dict[str, str]]:
    """Return the command line and the environment of the service of a packaged model.

    Raises:
        ModelError: there is no packaged model in the folder.
    """
    if not (model / paper.package).is_file():
        raise ModelError(
            f"{model} holds no packaged model (no {paper.package}); make one with `feedworks run`"
        )
    return server_command(_target(paper), port, host), {**os.environ, MODEL_DIR: str(model.resolve())}


def _post(address: str, path: str, body: dict[str, Any]) -> dict[str, Any]:
    return post_json(f"{address}{path}", body)


def _target(paper: Paper) -> str:
    return f"feedworks.{paper.name}.service:{paper.service}"


def _require_free(host: str, port: int) -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                raise ConfigError(f"port {port} is taken; choose another with --port") from None
            raise ConfigError(
                f"--host {host}: {error.strerror or error}; give an address of this machine"
            ) from None
