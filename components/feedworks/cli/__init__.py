"""The command line: `feedworks list | data | features | run | compile | submit | serve | report | demo`.

Modules of this package import nothing heavy at their top, so that `feedworks --help` is instant.
"""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Sequence
from typing import NoReturn

import click

from feedworks import __version__
from feedworks.cli.data import data
from feedworks.cli.features import features
from feedworks.cli.features_stream import freshness, push
from feedworks.cli.pipelines import compile_command
from feedworks.cli.processes import end_children_on_sigterm
from feedworks.cli.runs import list_papers, report, run
from feedworks.cli.schedule import schedule
from feedworks.cli.serving import demo, serve
from feedworks.cli.submit import submit
from feedworks.errors import FeedworksError

INTERRUPTED = 130


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="feedworks")
@click.option("--debug", is_flag=True, help="Show the trace of an error; may stand anywhere.")
def cli(debug: bool) -> None:
    """Recommendation papers as pipelines, kernels and services."""
    del debug  # main() has read it


for command in (list_papers, data, features, run, compile_command, submit, schedule, serve, report, demo):
    cli.add_command(command)


for command in (push, freshness):
    features.add_command(command)


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run the command line and exit: 0 done, 1 failed, 2 wrong usage, 130 interrupted.

    Args:
        arguments: words after `feedworks`; those of the process where None.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in words
    end_children_on_sigterm()
    try:
        code = cli.main([word for word in words if word != "--debug"], "feedworks", standalone_mode=False)
    except BrokenPipeError:
        # The reader (head, less) has gone; flushing at exit would raise once more.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except (Exception, KeyboardInterrupt) as error:
        if debug:
            traceback.print_exc()
        message, code = _one_line(error)
        click.echo(message, err=True)
    sys.exit(code or 0)


def _one_line(error: BaseException) -> tuple[str, int]:
    if isinstance(error, KeyboardInterrupt | click.Abort):
        return "feedworks: interrupted", INTERRUPTED
    if isinstance(error, click.exceptions.NoArgsIsHelpError):
        return error.format_message(), error.exit_code
    if isinstance(error, click.UsageError):
        command = error.ctx.command_path if error.ctx else "feedworks"
        return f"{command}: {error.format_message()} See `{command} --help`.", error.exit_code
    if isinstance(error, click.ClickException):
        return f"feedworks: {error.format_message()}", error.exit_code
    if isinstance(error, FeedworksError):
        return f"feedworks: {error}", 1
    if isinstance(error, ModuleNotFoundError) and (extra := _EXTRA_OF.get(str(error.name).partition(".")[0])):
        return f"feedworks: {error.name} is not installed; pip install 'feedworks[{extra}]'", 1
    if "No space left on device" in str(error):
        return f"feedworks: no space left on the device{_of(error)}; make room and start again", 1
    if isinstance(error, OSError) and error.filename:
        return f"feedworks: {error.filename}: {error.strerror}", 1
    text = " ".join(str(error).split())
    return f"feedworks: {type(error).__name__}: {text} (--debug shows the trace)", 1


def _of(error: BaseException) -> str:
    # Writers of other languages and copies of whole folders put the path into a long text.
    return f" of {error.filename}" if isinstance(error, OSError) and error.filename else ""


_EXTRA_OF = {
    "torch": "train",
    "lightning": "train",
    "safetensors": "train",
    "faiss": "train",
    "sklearn": "train",
    "scipy": "train",
    "matplotlib": "train",
    "docker": "pipelines",
    "kfp": "pipelines",
    "kfp_server_api": "pipelines",
    "great_expectations": "validation",
    "bentoml": "serve",
    "duckdb": "features",
    "feast": "features",
    "redis": "features",
    "psycopg": "features",
    "pyspark": "features",
    "ray": "ray",
}
