"""Downloads that go on where they stopped, and files that are what their owner published.

Pooch decides what is there already, checks the sum and puts a file into place; what it lacks, and what this
module adds as its downloader, is to take up a broken transfer (HTTP Range), also in a later run.
"""

from __future__ import annotations

import fcntl
import functools
import http.client
import logging
import ssl
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from feedworks import __version__
from feedworks.datasets.registry import DataSet, RemoteFile
from feedworks.errors import DataError
from feedworks.progress import Progress, say

SUMS = "SHA256SUMS"
CHUNK_BYTES = 1 << 18
# Worth another try: the server is busy or ill. Anything else from 400 on stays as it is.
PASSING_STATUS = (408, 425, 429, 500, 502, 503, 504)


@dataclass(frozen=True, kw_only=True)
class Patience:
    """When to give up: after `attempts` in a row that brought no byte, waiting twice as long after each."""

    attempts: int = 5
    first_wait_s: float = 1.0
    timeout_s: float = 30.0


class _TransferError(Exception):
    """A transfer that broke off; the next attempt may bring the rest."""


def fetch(data_set: DataSet, cache_dir: Path, *, patience: Patience | None = None) -> Path:
    """Downloads the raw files of a data set into `cache_dir/<name>` and returns that folder.

    Files that are there with the right sum are kept. A broken transfer leaves `<file>.part`, which the next
    call goes on with, provided that the server says that the file has not changed meanwhile. A file without
    a pinned sum is recorded in `SHA256SUMS` (the format of `sha256sum`) at its first download and must match
    that from then on.

    Raises:
        DataError: The set has no addresses, a required file cannot be downloaded, or its sum is wrong; an
            earlier good file stays.
    """
    if not data_set.files:
        raise DataError(
            f"data set {data_set.name} has no public address; import it from a folder with {data_set.expects}"
        )
    folder = cache_dir / data_set.name
    folder.mkdir(parents=True, exist_ok=True)
    say(f"{data_set.title}; licence: {data_set.licence}; cite {data_set.citation}")
    with _alone(folder):
        for file in data_set.files:
            try:
                _fetch_file(file, folder, patience or Patience())
            except DataError as error:
                if file.required:
                    raise
                say(f"going on without {file.name}: {error}")
    return folder


def _fetch_file(file: RemoteFile, folder: Path, patience: Patience) -> None:
    import pooch

    # Pooch's own messages would repeat ours, in two lines.
    pooch.get_logger().setLevel(logging.ERROR)
    recorded = _read_sums(folder).get(file.name)
    path = folder / file.name
    try:
        pooch.retrieve(
            url=file.url,
            known_hash=_expected(file, recorded),
            fname=file.name,
            path=folder,
            downloader=functools.partial(_download_to, part=folder / f"{file.name}.part", patience=patience),
        )
    except ValueError as error:
        raise DataError(_wrong_sum(file, folder, error)) from None
    except OSError as error:
        raise DataError(
            f"{path} cannot be written ({error.strerror or error}); free space or mend it"
        ) from None
    if recorded is None:
        with (folder / SUMS).open("a", encoding="utf-8") as sums:
            sums.write(f"{pooch.file_hash(str(path))}  {file.name}\n")


def _expected(file: RemoteFile, recorded: str | None) -> str | None:
    """The sum that the file must have, with its kind, if any is known."""
    if sha256 := file.sha256 or recorded:
        return f"sha256:{sha256}"
    return f"md5:{file.md5}" if file.md5 else None


def _wrong_sum(file: RemoteFile, folder: Path, error: Exception) -> str:
    got = str(error).partition("but got ")[2].partition(".")[0] or str(error)
    if file.sha256:
        return f"{file.url}: sha256 is {got}, expected {file.sha256}; deleted it, try again later"
    recorded = _read_sums(folder).get(file.name)
    if recorded is None:
        return f"{file.url}: md5 is {got}, expected {file.md5}; deleted it, try again later"
    return (
        f"{file.url}: sha256 is {got}, the first download had {recorded}; if its owner changed the file, "
        f"remove {file.name} from {folder / SUMS} and fetch again"
    )


def _download_to(url: str, output_file: str, _pooch: object, *, part: Path, patience: Patience) -> None:
    """Pooch's downloader: brings `part` to its full length, then hands it over."""
    failures = 0
    while True:
        before = _size(part)
        try:
            _transfer(url, part, patience.timeout_s)
            break
        except (
            _TransferError,
            urllib.error.URLError,
            http.client.HTTPException,
            ConnectionError,
            TimeoutError,
            ssl.SSLError,
        ) as error:
            reason = _reason(error)
            passing = not isinstance(error, urllib.error.HTTPError) or error.code in PASSING_STATUS
        failures = 0 if _size(part) > before else failures + 1
        if not passing or failures >= patience.attempts:
            raise DataError(
                f"cannot download {url} ({reason}); {_size(part):,} bytes are kept: try again, or put the "
                f"file at {part.with_suffix('')} yourself"
            )
        wait_s = patience.first_wait_s * 2**failures
        say(f"{part.stem}: {reason}; going on at byte {_size(part):,} in {wait_s:g} s")
        time.sleep(wait_s)
    part.replace(output_file)
    _validator_path(part).unlink(missing_ok=True)


def _transfer(url: str, part: Path, timeout_s: float) -> None:
    """One request: appends to `part` what is missing of it, or writes it from the start."""
    headers = {"User-Agent": f"feedworks/{__version__}", "Accept-Encoding": "identity"}
    # Without a validator there is no telling whether the rest belongs to the same file.
    validator = _validator_path(part).read_text() if _validator_path(part).is_file() else ""
    have = _size(part) if validator else 0
    if have:
        headers |= {"Range": f"bytes={have}-", "If-Range": validator}
    try:
        response = urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=timeout_s)
    except urllib.error.HTTPError as error:
        error.close()
        if error.code != http.HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
            raise
        if error.headers.get("Content-Range") == f"bytes */{have}":
            return
        part.unlink(missing_ok=True)
        raise _TransferError("the file on the server is shorter now") from None
    with response:
        if response.status != http.HTTPStatus.PARTIAL_CONTENT:
            have = 0
        elif not response.headers.get("Content-Range", "").startswith(f"bytes {have}-"):
            part.unlink()
            raise _TransferError("the server answered with another range")
        _validator_path(part).write_text(_validator(response))
        _append(response, part, have)


def _append(response: http.client.HTTPResponse, part: Path, have: int) -> None:
    length = response.headers.get("Content-Length")
    total = have + int(length) if length is not None else None
    with (
        part.open("ab" if have else "wb") as out,
        Progress(f"{part.stem} [bytes]", total=total, start=have) as shown,
    ):
        while chunk := response.read(CHUNK_BYTES):
            out.write(chunk)
            shown.advance(len(chunk))
    # A read with a size returns what there is when the connection ends early, without a word.
    if total is not None and _size(part) != total:
        raise _TransferError(f"the connection ended after {_size(part):,} of {total:,} bytes")


def _validator(response: http.client.HTTPResponse) -> str:
    tag = response.headers.get("ETag", "")
    return tag if tag and not tag.startswith("W/") else response.headers.get("Last-Modified", "")


def _validator_path(part: Path) -> Path:
    return part.with_name(f"{part.name}.validator")


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0


def _reason(error: Exception) -> str:
    if isinstance(error, urllib.error.HTTPError):
        return f"{error.code} {error.reason}"
    return str(getattr(error, "reason", "")) or str(error) or type(error).__name__


def _read_sums(folder: Path) -> dict[str, str]:
    path = folder / SUMS
    if not path.is_file():
        return {}
    lines = (line.split(maxsplit=1) for line in path.read_text(encoding="utf-8").splitlines())
    return {parts[1]: parts[0] for parts in lines if len(parts) == 2}


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Waits until no other process downloads into `folder`; two would spoil each other's parts."""
    with (folder / ".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say(f"another process downloads into {folder}; waiting for it")
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield
