"""One door for data: a word, a data folder or the raw files of a known data set, all become a data folder."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path

from feedworks.contracts.files import FILES, folder_layout, is_data_folder
from feedworks.contracts.synthetic import write_synthetic
from feedworks.contracts.synthetic_ranking import write_synthetic_ranking
from feedworks.contracts.synthetic_retention import write_synthetic_retention
from feedworks.contracts.synthetic_text import write_synthetic_text
from feedworks.contracts.tables import Kind
from feedworks.datasets import registry
from feedworks.errors import DataError
from feedworks.storage import atomic_folder

SYNTHETIC = "synthetic"
WRITERS: dict[Kind, Callable[..., object]] = {
    "interactions": write_synthetic,
    "ranking": write_synthetic_ranking,
    "retention": write_synthetic_retention,
    "text": write_synthetic_text,
}


def open_data(source: str | Path, work_dir: Path, *, kind: Kind = "interactions") -> Path:
    """Returns a data folder for `source`; it is not validated here.

    Args:
        source: `synthetic` (generated into `work_dir`), the path of a data folder (returned as it is), or the
            path of a folder with the raw files of a known data set (converted into `work_dir`).
        work_dir: Where a generated or converted data folder goes, in the place of an earlier one; not touched
            for a source that is a data folder, nor on an error.
        kind: Of which kind the data folder must be: `interactions` for what users did with items, `ranking`
            for candidates with labels, `retention` for logs of users who leave and come back, `text` for
            documents.

    Raises:
        DataError: There is no such folder, or nothing in it is known or of this kind; lists what was
            expected. Or `work_dir` holds other files.
    """
    if str(source) == SYNTHETIC:
        return build_data(work_dir, WRITERS[kind])
    folder = Path(source)
    if not folder.is_dir():
        raise DataError(f"data {str(source)!r}: no such folder; give a folder or the word {SYNTHETIC!r}")
    if is_data_folder(folder, kind):
        return folder
    data_set = registry.detect(folder, kind)
    if data_set is None or data_set.kind != kind:
        raise DataError(
            f"data {folder}: {_found(folder, data_set)}; expected {_named(kind)} ({folder_layout(kind)}) "
            f"or raw files of {registry.expectations(kind)}"
        )
    return build_data(work_dir, functools.partial(data_set.convert, folder))


def build_data(folder: Path, write: Callable[[Path], object]) -> Path:
    """Replaces a data folder as a whole: a table of earlier data must not stay among the new ones.

    Args:
        folder: The data folder; it may be absent.
        write: Writes the tables into the folder that it is given.

    Raises:
        DataError: See `require_replaceable`.
    """
    require_replaceable(folder)
    with atomic_folder(folder) as new:
        write(new)
    return folder


def require_replaceable(folder: Path) -> None:
    """Checks that nothing but tables of a data folder would be lost with `folder`.

    Raises:
        DataError: It holds other files, or this process stands in it.
    """
    known = {name for names in FILES.values() for name in names}
    others = sorted(path.name for path in folder.glob("*") if path.name not in known)
    if others:
        raise DataError(f"{folder} holds other files ({others[0]}); give a folder of its own for the data")
    if Path.cwd().is_relative_to(folder.resolve()):
        raise DataError(f"{folder} is the current folder, which cannot be replaced; name a folder in it")


def _found(folder: Path, data_set: registry.DataSet | None) -> str:
    if data_set is not None:
        return f"these are raw files of {data_set.name}, which makes {_named(data_set.kind)}"
    other = next((kind for kind in FILES if is_data_folder(folder, kind)), None)
    return "nothing known in it" if other is None else f"this is {_named(other)}"


def _named(kind: Kind) -> str:
    return "a data folder" if kind == "interactions" else f"a {kind} data folder"
