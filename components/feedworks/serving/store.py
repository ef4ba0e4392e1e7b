"""Packaged models in the BentoML model store: `python -m feedworks.serving.store OUT/model`.

`bentoml build` puts the stored model into a bento; a service without a model folder takes it from there.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import click

from feedworks.errors import DataError, FeedworksError, ModelError
from feedworks.serving.package import PACKAGE_FILE
from feedworks.storage import read_json
from feedworks.training.checkpoint import load_extra


def store_model(folder: Path) -> str:
    """Copy a packaged model into the store under its own tag, which names its contents; return the tag.

    A model that is there already is left as it is.

    Raises:
        ModelError: the folder is missing or damaged.
    """
    import bentoml

    tag = _tag(folder)
    if tag not in {str(model.tag) for model in bentoml.models.list()}:
        with bentoml.models.create(tag) as model:
            shutil.copytree(folder, model.path, dirs_exist_ok=True)
    return tag


def _tag(folder: Path) -> str:
    """The tag in the package.json of a model of several files, else in the config.json of one of weights."""
    package = folder / PACKAGE_FILE
    try:
        return str((read_json(package) if package.is_file() else load_extra(folder))["tag"])
    except (DataError, KeyError, TypeError) as error:
        raise ModelError(f"{folder} holds no tag ({error}); package the model again") from None


@click.command()
@click.argument("folder", type=click.Path(path_type=Path, file_okay=False))
def main(folder: Path) -> None:
    """Copy the packaged model in FOLDER into the BentoML model store and print its tag."""
    try:
        click.echo(store_model(folder))
    except FeedworksError as error:
        raise click.ClickException(str(error)) from None


if __name__ == "__main__":
    main()
