"""Files that the machines of a training share: inputs, training state and result, on one volume.

WORKSPACE/runs/KEY/inputs/<n>-<name>    copies of what lies elsewhere
WORKSPACE/runs/KEY/<name>               the result, and beside it <name>.state while it is trained
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Sequence
from pathlib import Path

from feedworks import __version__
from feedworks.errors import FeedworksError
from feedworks.storage import atomic_file, atomic_folder

VARIABLE = "FEEDWORKS_WORKSPACE"
DEFAULT = "/workspace"


def workspace() -> Path:
    """Return the shared folder, where every pod sees it.

    Raises:
        FeedworksError: it is not mounted here.
    """
    folder = Path(os.environ.get(VARIABLE, DEFAULT))
    if not folder.is_dir():
        raise FeedworksError(
            f"several nodes share their files on a volume, and nothing is mounted at {folder}; mount the "
            "claim feedworks-workspace there, or train with num_nodes=1"
        )
    return folder


def run_key(paper: str, step: str, preset: str, overrides: Sequence[str], out: str) -> str:
    """Name a training by what it computes and for whom: another try of a task has the same name."""
    words = "\0".join([__version__, paper, step, preset, *overrides, out])
    return hashlib.sha256(words.encode()).hexdigest()[:12]


def make_folder(run: Path) -> None:
    """Make the folder of a training, before machines are asked for that could not write there either.

    Raises:
        FeedworksError: the volume does not let this user write.
    """
    try:
        run.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise FeedworksError(
            f"cannot make {run} ({error.strerror}); let user {os.getuid()} write on the volume at "
            f"{workspace()}, and see that it has room"
        ) from None


def bring(paths: Sequence[Path], run: Path) -> list[Path]:
    """Return where all pods see the inputs: where they lie on the volume, or copies under `run`."""
    found = []
    for number, path in enumerate(paths):
        if path.resolve().is_relative_to(workspace().resolve()):
            found.append(path)
            continue
        copy = run / "inputs" / f"{number}-{path.name}"
        if not copy.exists():
            _copy(path, copy)
        found.append(copy)
    return found


def take(result: Path, out: Path) -> None:
    """Copy a result to where a task's output belongs, whole or not at all.

    Raises:
        FeedworksError: there is none.
    """
    if not result.exists():
        raise FeedworksError(
            f"the training ended, but {result} is not there: the nodes wrote to another volume than the "
            "one that is mounted here; use one claim for tasks and training jobs"
        )
    _copy(result, out)


def _copy(source: Path, target: Path) -> None:
    if source.is_dir():
        with atomic_folder(target, durable=False) as folder:
            shutil.copytree(source, folder, dirs_exist_ok=True)
    else:
        with atomic_file(target, durable=False) as file:
            shutil.copyfile(source, file)
