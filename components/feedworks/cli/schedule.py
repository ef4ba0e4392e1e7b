"""`feedworks schedule`: recurring runs of Kubeflow Pipelines, kept as files of options of `submit`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from feedworks.cli.submit import check_host, check_settings, submit
from feedworks.errors import ConfigError

NAME, TIMES = "pipeline", "cron"


@click.command()
@click.argument(
    "files", metavar="FILE...", type=click.Path(path_type=Path, exists=True), nargs=-1, required=True
)
@click.option(
    "--host",
    required=True,
    callback=check_host,
    help="Address of the Kubeflow Pipelines API, as of `submit`.",
)
def schedule(files: tuple[Path, ...], host: str) -> None:
    """Keep the recurring runs of FILEs, or of all *.yaml of a folder, on a cluster.

    A file names the pipeline, the times as crontab does, in UTC, and options of `feedworks submit`:

    \b
        pipeline: recochain
        cron: "0 3 * * *"
        data: /workspace/interactions
        preset: small

    All files are checked before anything is sent. A schedule replaces the one of the same pipeline and
    experiment, so a changed file is applied by the same command.
    """  # noqa: D301 - click keeps the lines of a paragraph that begins with this character
    contexts = [_context(path, host) for each in files for path in _definitions(each)]
    for context in contexts:
        with context:
            submit.invoke(context)


def _definitions(path: Path) -> list[Path]:
    if not path.is_dir():
        return [path]
    found = sorted(path.glob("*.yaml"))
    if not found:
        raise ConfigError(f"{path} has no *.yaml; give files of recurring runs")
    return found


def _context(path: Path, host: str) -> click.Context:
    """The parsed command line of `submit` that a file stands for.

    Raises:
        ConfigError: the file is no definition; the message names it.
    """
    words = words_of(path)
    try:
        context = submit.make_context("submit", [*words, f"--host={host}"])
        check_settings(context.params["paper"], context.params)
    except click.UsageError as error:
        raise ConfigError(f"{path}: {error.format_message()}") from None
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None
    return context


def words_of(path: Path) -> list[str]:
    """The words of `feedworks submit` in a file: the pipeline, then `--KEY=VALUE`, of a list one per item.

    Raises:
        ConfigError: it is no mapping of options, or names no pipeline or no times.
    """
    import yaml

    try:
        told = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is no YAML ({' '.join(str(error).split())})") from None
    if not isinstance(told, dict) or not {NAME, TIMES} <= set(told):
        raise ConfigError(f"{path}: expected `{NAME}`, `{TIMES}` and options of `feedworks submit`")
    if "host" in told:
        raise ConfigError(f"{path}: host: files are for any cluster; give it as --host")
    words = [str(told.pop(NAME))]
    for key, value in told.items():
        words += [f"--{key}={each}" for each in (value if isinstance(value, list) else [value])]
        _require_plain(path, key, value)
    return words


def _require_plain(path: Path, key: Any, value: Any) -> None:
    items = value if isinstance(value, list) else [value]
    if not all(isinstance(item, str | int | float) and not isinstance(item, bool) for item in items):
        raise ConfigError(f"{path}: {key}: expected a text, a number or a list of them, got {value!r}")
