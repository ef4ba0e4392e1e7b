"""Arguments and options that several commands share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

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


def settings_options(command: CommandT) -> CommandT:
    """The options --data, --preset and --set, which say what a run computes."""
    for option in (
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


def out_option(default: str | None = None) -> Callable[[CommandT], CommandT]:
    """The option --out: where a run writes metrics.json, report.html, model/ and work/."""
    return click.option(
        "--out",
        type=click.Path(path_type=Path, file_okay=False),
        **({"required": True} if default is None else {"default": default, "show_default": True}),
        help="Folder for metrics.json, report.html and model/; work/ beside them lets a killed run go on.",
    )
