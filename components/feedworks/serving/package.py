"""The seal of a packaged model: package.json names its contents by a tag and every file by its sha256."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from feedworks import __version__
from feedworks.errors import DataError, ModelError
from feedworks.storage import read_json, write_json

PACKAGE_FILE = "package.json"
# BentoML writes this one into the folder of a model that it stores.
STORE_FILE = "model.yaml"


def seal(folder: Path, tag: str, facts: Mapping[str, Any] | None = None) -> None:
    """Write package.json for the files that lie in the folder now.

    Args:
        folder: the packaged model.
        tag: names what the model computes, such as `ocarm:1f00a9...`.
        facts: whatever else the file shall say.
    """
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != PACKAGE_FILE)
    digests = {str(path.relative_to(folder)): sha256(path) for path in files}
    write_json(
        folder / PACKAGE_FILE, {"feedworks": __version__, **(facts or {}), "tag": tag, "files": digests}
    )


def check_seal(folder: Path, files: Collection[str] | None = None) -> dict[str, Any]:
    """Check that every file is the one that was packaged, and return what package.json says.

    Args:
        folder: the packaged model.
        files: names of all files of such a model besides package.json; then no other may lie there, sealed
            or not.

    Raises:
        ModelError: the folder or a file is missing, a file is another, or one does not belong there.
    """
    path = folder / PACKAGE_FILE
    if not path.is_file():
        raise ModelError(f"{folder} is no packaged model: it has no {PACKAGE_FILE}")
    try:
        facts: dict[str, Any] = dict(read_json(path))
        sealed = {str(name): str(digest) for name, digest in dict(facts["files"]).items()}
        facts["tag"] = str(facts["tag"])
    except (DataError, KeyError, TypeError, ValueError) as error:
        raise ModelError(f"{path} is damaged ({error}); package the model again") from None
    if files is not None:
        _require_files(folder, sealed, set(files))
    for name, digest in sealed.items():
        if not (folder / name).is_file():
            raise ModelError(f"{folder / name} is missing; package the model again")
        if _digest(folder / name) != digest:
            raise ModelError(f"{folder / name} is not the file that was packaged; package the model again")
    return facts


def _require_files(folder: Path, sealed: Collection[str], files: set[str]) -> None:
    there = {str(path.relative_to(folder)) for path in folder.rglob("*") if not path.is_dir()}
    if extra := sorted((there | set(sealed)) - files - {PACKAGE_FILE, STORE_FILE}):
        raise ModelError(f"{folder / extra[0]} is no file of such a model; package the model again")
    if missing := sorted(files - set(sealed)):
        raise ModelError(f"{folder / PACKAGE_FILE} does not name {missing[0]}; package the model again")


def _digest(path: Path) -> str:
    try:
        return sha256(path)
    except OSError as error:
        raise ModelError(
            f"{path} cannot be read ({error.strerror}); give this user the right to read it"
        ) from None


def sha256(path: Path) -> str:
    """Digest of a file, 64 hex digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
