"""Archives as their owners publish them, unpacked without trusting what they say about paths."""

from __future__ import annotations

import re
import shutil
import tarfile
import zlib
from pathlib import Path, PurePosixPath

from feedworks.errors import DataError
from feedworks.progress import say
from feedworks.storage import atomic_folder


def unpack(archive: Path, wanted: re.Pattern[str], out_dir: Path) -> Path:
    """Writes the files of a tar archive whose names match into `out_dir`, without their folders.

    Only regular files are written, each under the last part of its path; `out_dir` appears whole or not at
    all.

    Args:
        archive: A tar file, compressed or not.
        wanted: Matches the whole last part of a path.
        out_dir: Folder to write, in the place of an earlier one.

    Raises:
        DataError: The archive is truncated or no archive, a path in it is absolute or leads upwards, a wanted
            name is not a regular file or stands there twice, or nothing matches.
    """
    try:
        with tarfile.open(archive, "r|*") as members, atomic_folder(out_dir) as folder:
            for member in members:
                _write(member, members, wanted, folder, archive)
            if not any(folder.iterdir()):
                raise DataError(f"{archive} holds no file called like {wanted.pattern}; fetch it again")
    except (tarfile.TarError, EOFError, zlib.error, OSError) as error:
        raise DataError(f"{archive}: cannot be unpacked ({error}); fetch it again") from None
    return out_dir


def _write(
    member: tarfile.TarInfo, members: tarfile.TarFile, wanted: re.Pattern[str], folder: Path, archive: Path
) -> None:
    path = PurePosixPath(member.name)
    if path.is_absolute() or ".." in path.parts:
        raise DataError(f"{archive}: {member.name!r} leads out of the archive; do not use this file")
    if member.isdir() or not wanted.fullmatch(path.name):
        return
    content = members.extractfile(member) if member.isreg() else None
    if content is None:
        raise DataError(f"{archive}: {member.name!r} is no regular file; do not use this archive")
    say(f"unpacking {path.name} ({member.size / 1e6:,.0f} MB)")
    with content, (folder / path.name).open("xb") as out:
        shutil.copyfileobj(content, out, 1 << 20)
