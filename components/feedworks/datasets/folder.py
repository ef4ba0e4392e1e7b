"""One door for data: a word, a data folder or the raw files of a known data set, all become a data folder."""

from __future__ import annotations

from pathlib import Path

from feedworks.contracts.files import folder_layout, is_data_folder
from feedworks.contracts.synthetic import write_synthetic
from feedworks.datasets import registry
from feedworks.errors import DataError

SYNTHETIC = "synthetic"


def open_data(source: str | Path, work_dir: Path) -> Path:
    """Returns a data folder for `source`; it is not validated here.

    Args:
        source: `synthetic` (generated into `work_dir`), the path of a data folder (returned as it is), or the
            path of a folder with the raw files of a known data set (converted into `work_dir`).
        work_dir: Where a generated or converted data folder goes; made if needed, else not touched.

    Raises:
        DataError: There is no such folder, or nothing in it is known; lists what was expected.
    """
    if str(source) == SYNTHETIC:
        return write_synthetic(work_dir).folder
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
    return data_set.convert(folder, work_dir)
