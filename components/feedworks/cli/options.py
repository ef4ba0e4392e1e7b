"""Arguments and options that several commands share."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar, cast

import click

from feedworks.papers import PAPERS, Paper

CommandT = TypeVar("CommandT", bound=Callable[..., Any])
PRESETS = ("tiny", "small", "paper")


class PaperName(click.ParamType[Paper]):
    """The name of a paper of the house, given to the command as a `Paper`."""

    name = "paper"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Paper:
        """Turn a name into its `Paper`; a usage error lists the known ones."""
        if isinstance(value, Paper):
            return value
        if value not in PAPERS:
            self.fail(f"no paper is called {value!r}; known papers: {', '.join(PAPERS)}.", param, ctx)
        return PAPERS[value]


def paper_argument(*, required: bool = True) -> Callable[[CommandT], CommandT]:
    """The argument NAME."""
    return click.argument(
        "paper", metavar="NAME" if required else "[NAME]", type=PaperName(), required=required
    )


def settings_options(*, tasks_here: bool) -> Callable[[CommandT], CommandT]:
    """The options --data, --preset, --set, --model and --sides, which say what a run computes.

    The command gets the last two as the overrides `outside.model` and `outside.sides`.

    Args:
        tasks_here: whether the tasks see this machine's files; else paths must be absolute, and are theirs.
    """

    def decorate(command: CommandT) -> CommandT:
        @functools.wraps(command)
        def with_outside(paper: Paper, overrides: tuple[str, ...], **others: Any) -> Any:
            outside = _outside(paper, others.pop("model"), others.pop("sides"), tasks_here)
            return command(paper=paper, overrides=(*overrides, *outside), **others)

        return cast(CommandT, _with_settings(with_outside))

    return decorate


def _with_settings(command: Callable[..., Any]) -> Callable[..., Any]:
    for option in (
        click.option(
            "--sides",
            type=click.Path(path_type=Path, dir_okay=False),
            help="With --model: the JSON file that names its inputs and says whose they are.",
        ),
        click.option(
            "--model",
            metavar="MODULE:CALLABLE",
            help="Take the model that CALLABLE() returns, train none and read no data. FILE.py:CALLABLE too.",
        ),
        click.option(
            "--set",
            "overrides",
            multiple=True,
            metavar="KEY=VALUE",
            help="Change one setting of the preset; repeatable. A wrong KEY lists all of them.",
        ),
        click.option("--preset", type=click.Choice(PRESETS), default="tiny", show_default=True),
        click.option(
            "--data",
            "source",
            default="synthetic",
            show_default=True,
            help="A data folder, a folder of raw files that a known data set left, or `synthetic`.",
        ),
    ):
        command = option(command)
    return command


def _outside(paper: Paper, model: str | None, sides: Path | None, tasks_here: bool) -> list[str]:
    if model is None and sides is None:
        return []
    if not paper.takes_model:
        raise click.UsageError(f"{paper.name} trains its own model and takes no --model or --sides.")
    if model is None or sides is None:
        raise click.UsageError("--model and --sides go together.")
    module, separator, name = model.rpartition(":")
    if not separator or not module or not name.isidentifier():
        raise click.UsageError(f"--model {model!r} is not of the form MODULE:CALLABLE or FILE.py:CALLABLE.")
    if module.endswith(".py"):
        module = _path(module, "--model", tasks_here)
    return [f"outside.model={module}:{name}", f"outside.sides={_path(str(sides), '--sides', tasks_here)}"]


def _path(path: str, option: str, tasks_here: bool) -> str:
    if not tasks_here and not path.startswith("/"):
        raise click.UsageError(
            f"{option} {path}: the tasks run elsewhere; give a path that they see, /workspace/{path}."
        )
    return str(Path(path).absolute())  # local tasks may run in other folders


def out_option(default: str | None = None) -> Callable[[CommandT], CommandT]:
    """The option --out: where a run writes metrics.json, report.html, model/ and work/."""
    return click.option(
        "--out",
        type=click.Path(path_type=Path, file_okay=False),
        **({"required": True} if default is None else {"default": default, "show_default": True}),
        help="Folder for metrics.json, report.html and model/; work/ beside them lets a killed run go on.",
    )
