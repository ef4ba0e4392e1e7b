"""Triton's cache in two layers: kernels compiled ahead, which are only read, below what a run adds.

Triton's own cache makes a folder for each kernel that it looks up, which fails under a read-only one, and
names files by the path where they were compiled. Here the lower layer may be read-only and may have moved.

    TRITON_CACHE_MANAGER=feedworks_kernels.layered_cache:LayeredCache
    FEEDWORKS_TRITON_AHEAD     the lower layer: what `python -m feedworks_kernels.ahead` wrote
    TRITON_CACHE_DIR           the upper layer, writable: $HOME/.triton/cache unless set
"""

from __future__ import annotations

import json
import os
from pathlib import Path

from triton import knobs
from triton.runtime.cache import FileCacheManager

VARIABLE = "FEEDWORKS_TRITON_AHEAD"


class LayeredCache(FileCacheManager):  # type: ignore[misc]
    """Files of one kernel: those compiled ahead first, then those of the writable folder.

    Args:
        key: of the kernel.
        override: as Triton's own; looks in the upper layer alone.
        dump: the same.
    """

    def __init__(self, key: str, override: bool = False, dump: bool = False) -> None:
        self._below: Path | None = None
        if override or dump:
            super().__init__(key, override=override, dump=dump)
            return
        self.key = key
        # `put` makes the folder, so that a hit writes nothing.
        self.cache_dir = os.path.join(knobs.cache.dir, key)  # noqa: PTH118
        self.lock_path = os.path.join(self.cache_dir, "lock")  # noqa: PTH118
        if ahead := os.environ.get(VARIABLE):
            self._below = Path(ahead) / key

    def get_file(self, filename: str) -> str | None:
        """Return where a file is, None where it is in neither layer."""
        if self._below is not None and (self._below / filename).is_file():
            return str(self._below / filename)
        found: str | None = super().get_file(filename)
        return found

    def get_group(self, filename: str) -> dict[str, str] | None:
        """Return where the files are that were put together, by name; None where one is missing."""
        if self._below is not None and (below := _group(self._below, filename)) is not None:
            return below
        found: dict[str, str] | None = super().get_group(filename)
        return found


def _group(folder: Path, filename: str) -> dict[str, str] | None:
    """Read a group whose files lie beside it, wherever they lay when it was written."""
    try:
        names = json.loads((folder / f"__grp__{filename}").read_text())["child_paths"]
    except (OSError, ValueError, KeyError):
        return None
    paths = {name: folder / name for name in names}
    if not all(path.is_file() for path in paths.values()):
        return None
    return {name: str(path) for name, path in paths.items()}
