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
        return _build(work_dir, write_synthetic)
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
    return _build(work_dir, functools.partial(data_set.convert, folder))


def _build(work_dir: Path, write: Callable[[Path], object]) -> Path:
    """Replaces `work_dir` as a whole: a table of earlier data must not stay among the new ones."""
    tables = {contract.file_name for contract in DATA_FOLDER}
    others = sorted(path.name for path in work_dir.glob("*") if path.name not in tables)
    if others:
        raise DataError(f"{work_dir} holds other files ({others[0]}); give a folder of its own for the data")
    with atomic_folder(work_dir) as folder:
        write(folder)
    return work_dir
