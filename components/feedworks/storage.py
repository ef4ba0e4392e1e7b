"""Results on disk that are whole or absent: folders and JSON files that appear by one rename."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import json
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

from feedworks.errors import DataError, FeedworksError, SpaceError

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
        SpaceError: the volume is full; `path` is untouched. Whatever writer inside the block noticed it.
        OSError: the folder cannot be written, or `path` is no folder; it is untouched.
    """
    target = _real(Path(path))
    if target.exists() and not target.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, "is no folder; give another path", str(path))
    with _workplace(target) as new:
        new.chmod(0o777 & ~_umask())  # mkdtemp makes private folders
        yield new
        _open_to_others(new)
        if durable:
            _flush(new)
        _swap(new, target)


def write_json(path: str | Path, value: Any, *, durable: bool = True) -> None:
    """Write `value` as sorted, indented JSON by one rename: equal values give equal bytes.

    Args:
        path: the file to write; its folder is made.
        value: anything that JSON can hold.
        durable: flush the file to the device, see `atomic_folder`.

    Raises:
        ValueError: a number is NaN or infinite, which JSON cannot hold.
        OSError: the file cannot be written; an earlier one is untouched.
    """
    with atomic_file(path, durable=durable) as temporary, temporary.open("w", encoding="utf-8") as file:
        # Piece by piece: as one text a list of a million users would take 200 bytes for each.
        json.dump(value, file, indent=2, sort_keys=True, allow_nan=False)
        file.write("\n")


def write_bytes(path: str | Path, content: bytes, *, durable: bool = True) -> None:
    """Write a file by one rename; its folder is made. See `atomic_file`.

    Raises:
        OSError: the file cannot be written; an earlier one is untouched.
    """
    with atomic_file(path, durable=durable) as temporary:
        temporary.write_bytes(content)


@contextmanager
def atomic_file(path: str | Path, *, durable: bool = True) -> Iterator[Path]:
    """Yield the name of a file to write that takes the place of `path` when the block ends without an error.

    Args:
        path: the file to make or to replace; its folder is made.
        durable: flush it to the device first, see `atomic_folder`.

    Raises:
        SpaceError: the volume is full; `path` is untouched.
        OSError: the file cannot be written, or `path` is a folder or a device; it is untouched.
    """
    target = _real(Path(path))
    if target.exists() and not target.is_file():
        raise FileExistsError(errno.EEXIST, "is no regular file; give another path", str(path))
    with _workplace(target) as workplace:
        new = workplace / target.name
        yield new
        new.chmod(0o666 & ~_umask())  # some writers make private files, see `_open_to_others`
        if durable:
            _flush(new)
        new.replace(target)


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
    except (ValueError, OSError, RecursionError) as error:
        raise DataError(f"{source} cannot be read as JSON ({error}); delete it and make it again") from None


@contextmanager
def only_writer(folder: Path) -> Iterator[None]:
    """Hold a folder for this process; the hold ends with the block, or with the process however it dies.

    Args:
        folder: made if need be.

    Raises:
        FeedworksError: another process holds it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        try:
            stack.enter_context(_locked(folder, fcntl.LOCK_EX | fcntl.LOCK_NB))
        except BlockingIOError:
            raise FeedworksError(
                f"another process is writing to {folder}; wait until it ends or choose another folder"
            ) from None
        yield


def _real(path: Path) -> Path:
    # A rename would replace a link itself and leave what it points to as it was.
    return path.resolve() if path.is_symlink() else path


@contextmanager
def _workplace(target: Path) -> Iterator[Path]:
    # A living writer holds a lock on its workplace; the lock dies with the process, whatever killed it.
    with _told_when_full(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        prefix = f".{target.name}.tmp-"
        for left in target.parent.glob(f"{prefix}*"):
            with suppress(OSError), _locked(left, fcntl.LOCK_EX | fcntl.LOCK_NB):
                shutil.rmtree(left, ignore_errors=True)
        workplace = Path(tempfile.mkdtemp(prefix=prefix, dir=target.parent))
        try:
            with _locked(workplace, fcntl.LOCK_EX):
                yield workplace
        finally:
            shutil.rmtree(workplace, ignore_errors=True)


@contextmanager
def _told_when_full(target: Path) -> Iterator[None]:
    # Writers of other languages name neither the file nor the volume, and each has its own kind of error.
    try:
        yield
    except Exception as error:
        full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
        if not full and not re.search(r"[Nn]o space left on|Disk quota exceeded", str(error)):
            raise
        # A folder's error is told by the folder, not by a file that was to stand in it.
        named = getattr(error, "place", "") or getattr(error, "filename", "")
        elsewhere = isinstance(named, str) and named and not Path(named).is_relative_to(target.parent)
        place = Path(named) if elsewhere else target
        told = SpaceError(
            f"no space left on the volume of {place}{_usage(place)}; make room there and start again: "
            f"nothing was written to {target}, and what it held before is as it was"
        )
        told.place = str(place)
        raise told from error


def _usage(place: Path) -> str:
    with suppress(OSError):
        folder = next(parent for parent in (place, *place.parents) if parent.is_dir())
        usage = shutil.disk_usage(folder)
        return f" ({usage.free / 2**20:.1f} MiB free of {usage.total / 2**20:.1f})"
    return ""


@contextmanager
def _locked(folder: Path, operation: int) -> Iterator[None]:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, operation)
        yield
    finally:
        os.close(descriptor)


def _open_to_others(folder: Path) -> None:
    # safetensors makes files that only their owner may read; who serves a model is another user.
    mode = 0o666 & ~_umask()
    for path in folder.rglob("*"):
        if path.is_file() and not path.is_symlink() and path.stat().st_mode & 0o077 == 0:
            path.chmod(mode)


def _umask() -> int:
    # The mask can only be read by setting it.
    mask = os.umask(0o077)
    os.umask(mask)
    return mask


def _flush(path: Path) -> None:
    for entry in [path, *path.rglob("*")]:
        descriptor = os.open(entry, os.O_RDONLY)
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
