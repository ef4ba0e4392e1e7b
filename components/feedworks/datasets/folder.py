"""One door for data: a word, a data folder or the raw files of a known data set, all become a data folder."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path

from feedworks.contracts.files import folder_layout, is_data_folder
from feedworks.contracts.synthetic import write_synthetic
from feedworks.contracts.tables import DATA_FOLDER
from feedworks.datasets import registry
from feedworks.errors import DataError
from feedworks.storage import atomic_folder

SYNTHETIC = "synthetic"


def open_data(source: str | Path, work_dir: Path) -> Path:
    """Returns a data folder for `source`; it is not validated here.

    Args:
        source: `synthetic` (generated into `work_dir`), the path of a data folder (returned as it is), or the
            path of a folder with the raw files of a known data set (converted into `work_dir`).
        work_dir: Where a generated or converted data folder goes, in the place of an earlier one; not touched
            for a source that is a data folder, nor on an error.

    Raises:
        DataError: There is no such folder, or nothing in it is known; lists what was expected. Or `work_dir`
            holds files of another kind.
    """
    if str(source) == SYNTHETIC:
        return build_data(work_dir, write_synthetic)
    folder = Path(source)
    if not folder.is_dir():
        raise DataError(f"data {str(source)!r}: no such folder; give a folder or the word {SYNTHETIC!r}")
    if is_data_folder(folder):
        return folder
    data_set = registry.detect(folder)
    if data_set is None:
        raise DataError(
            f"data {folder}: nothing known in it; expected a data folder ({folder_layout()}) or raw files of "
            f"{registry.expectations()}"
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
    tables = {contract.file_name for contract in DATA_FOLDER}
    others = sorted(path.name for path in folder.glob("*") if path.name not in tables)
    if others:
        raise DataError(f"{folder} holds other files ({others[0]}); give a folder of its own for the data")
    if Path.cwd().is_relative_to(folder.resolve()):
        raise DataError(f"{folder} is the current folder, which cannot be replaced; name a folder in it")
