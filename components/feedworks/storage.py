"""Results on disk that are whole or absent: folders and JSON files that appear by one rename."""

from __future__ import annotations

import ctypes
import fcntl
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from feedworks.errors import DataError

_AT_FDCWD = -100
_RENAME_EXCHANGE = 2


@contextmanager
def atomic_folder(path: str | Path, *, durable: bool = True) -> Iterator[Path]:
    """Yield an empty folder that takes the place of `path` when the block ends without an error.

    Until then, and after an error or a kill, whatever was at `path` before stays as it was. What a killed
    writer left beside `path` is removed by the next one.

    Args:
        path: the folder to make or to replace; its parents are made.
        durable: flush the files to the device before the swap, so that a power cut cannot leave empty
            files behind the new name. A kill of the process never can.

    Raises:
        OSError: the folder cannot be written (full disk, no permission); `path` is untouched.
    """
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    _remove_stale(target)
    temporary = Path(tempfile.mkdtemp(prefix=_prefix(target), dir=target.parent))
    lock = os.open(temporary, os.O_RDONLY)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        temporary.chmod(0o777 & ~_umask())
        yield temporary
        if durable:
            _flush(temporary)
        _swap(temporary, target)
    finally:
        os.close(lock)
        shutil.rmtree(temporary, ignore_errors=True)


def write_json(path: str | Path, value: Any) -> None:
    """Write `value` as sorted, indented JSON by one rename: equal values give equal bytes.

    Raises:
        ValueError: a number is NaN or infinite, which JSON cannot hold.
        OSError: the file cannot be written; an earlier one is untouched.
    """
    write_bytes(path, (json.dumps(value, indent=2, sort_keys=True, allow_nan=False) + "\n").encode())


def write_bytes(path: str | Path, content: bytes) -> None:
    """Write a file by one rename; its folder is made.

    Raises:
        OSError: the file cannot be written; an earlier one is untouched.
    """
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    descriptor, name = tempfile.mkstemp(prefix=_prefix(target), dir=target.parent)
    try:
        with os.fdopen(descriptor, "wb") as file:
            os.fchmod(file.fileno(), 0o666 & ~_umask())
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        Path(name).replace(target)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def read_json(path: str | Path) -> Any:
    """Read a JSON file.

    Raises:
        DataError: the file is missing or is not JSON.
    """
    source = Path(path)
    try:
        return json.loads(source.read_bytes())
    except FileNotFoundError:
        raise DataError(f"{source} is missing; run the step that writes it") from None
    except (ValueError, OSError) as error:
        raise DataError(f"{source} cannot be read as JSON ({error}); delete it and make it again") from None


def _prefix(target: Path) -> str:
    return f".{target.name}.tmp-"


def _umask() -> int:
    # The mask can only be read by setting it; mkdtemp and mkstemp ignore it and make private files.
    mask = os.umask(0o077)
    os.umask(mask)
    return mask


def _remove_stale(target: Path) -> None:
    # A living writer holds a lock on its folder; the lock dies with the process, whatever killed it.
    for folder in target.parent.glob(f"{_prefix(target)}*"):
        if not folder.is_dir():
            continue
        try:
            lock = os.open(folder, os.O_RDONLY)
        except FileNotFoundError:
            continue
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(folder, ignore_errors=True)
        except OSError:
            continue
        finally:
            os.close(lock)


def _flush(folder: Path) -> None:
    for path in [*folder.rglob("*"), folder]:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _swap(new: Path, target: Path) -> None:
    # rename(2) refuses to replace a folder with files in it, so Linux is asked to exchange the two names.
    if not target.exists():
        new.rename(target)
    elif not _exchange(new, target):
        old = new.with_name(new.name + "-old")
        target.rename(old)
        new.rename(target)
        shutil.rmtree(old, ignore_errors=True)


def _exchange(first: Path, second: Path) -> bool:
    if sys.platform != "linux":
        return False
    renameat2 = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if renameat2 is None:
        return False
    status = renameat2(_AT_FDCWD, os.fsencode(first), _AT_FDCWD, os.fsencode(second), _RENAME_EXCHANGE)
    return bool(status == 0)
