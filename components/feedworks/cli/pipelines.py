"""`feedworks compile`: from pipelines/<paper>.py to the committed YAML."""

from __future__ import annotations

import importlib.util
import tempfile
from pathlib import Path
from typing import Any

import click

from feedworks.cli.options import paper_argument
from feedworks.errors import ConfigError
from feedworks.papers import PAPERS, Paper


@click.command("compile")
@paper_argument(required=False)
@click.option("--check", is_flag=True, help="Write nothing; fail where the committed YAML is not up to date.")
def compile_command(paper: Paper | None, check: bool) -> None:
    """Compile pipeline NAME, or all, to YAML.

    The target is pipelines/compiled/NAME.yaml.
    """
    for each in [paper] if paper else list(PAPERS.values()):
        target = compiled_path(each.name)
        text = compile_pipeline(each.name)
        if not check:
            target.parent.mkdir(exist_ok=True)
            target.write_bytes(text)
            click.echo(f"wrote {target}")
        elif not target.is_file() or target.read_bytes() != text:
            raise ConfigError(
                f"{target} is not what pipelines/{each.name}.py compiles to; run `make compile`"
            )


def pipelines_folder() -> Path:
    """Return the folder of pipeline scripts: ./pipelines, or that of the source tree of this package.

    Raises:
        ConfigError: there is neither; pipelines are part of the repository, not of the wheel.
    """
    candidates = [Path("pipelines"), Path(__file__).resolve().parents[3] / "pipelines"]
    for folder in candidates:
        if any((folder / f"{name}.py").is_file() for name in PAPERS):
            return folder
    raise ConfigError("no folder `pipelines` here; run this in a checkout of the repository")


def compiled_path(name: str) -> Path:
    """Return where the committed YAML of a pipeline lies."""
    return pipelines_folder() / "compiled" / f"{name}.yaml"


def load_pipeline(name: str) -> Any:
    """Import pipelines/<name>.py, which nothing else imports, and return its `pipeline`."""
    path = pipelines_folder() / f"{name}.py"
    spec = importlib.util.spec_from_file_location(f"feedworks_pipeline_{name}", path)
    if spec is None or spec.loader is None or not path.is_file():
        raise ConfigError(f"{path} is missing")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.pipeline


def compile_pipeline(name: str) -> bytes:
    """Return the YAML of a pipeline; the same source and kfp give the same bytes on every machine."""
    from kfp import compiler

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"{name}.yaml"
        compiler.Compiler().compile(load_pipeline(name), str(path))
        return path.read_bytes()
