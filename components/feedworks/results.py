"""Finished steps, and the results of a run, whichever runner made them: metrics, report and model/."""

from __future__ import annotations

import hashlib
import shutil
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from feedworks import __version__
from feedworks.progress import say
from feedworks.storage import atomic_file, atomic_folder, read_json

PAGES = ("metrics.json", "report.html")
REJECTED = "rejected"  # of a run whose model the gate kept back, beside the results of an earlier one
BENCH = "bench.json"  # where a paper measures time: {"metrics": flat metrics, ...}, never equal in two runs


def run_key(settings: str, files: Iterable[Path | None]) -> str:
    """Name a run by its settings, the names and bytes of its files, and the version; 16 hex digits.

    Args:
        settings: as text.
        files: in a fixed order; those that are not there count as absent.
    """
    digest = hashlib.sha256(f"{__version__}\n{settings}".encode())
    for path in files:
        if path is not None and path.is_file():
            with path.open("rb") as file:
                digest.update(path.name.encode() + hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()[:16]


def once(result: Path, step: Callable[..., Any], *arguments: Any) -> None:
    """Call a step unless its result is there, and say what it made and how long that took."""
    if result.exists():
        say(f"{step.__name__}: already done")
        return
    again(step, *arguments)


def again(step: Callable[..., Any], *arguments: Any) -> None:
    """Call a step whatever is there, and say what it made: a proof holds for the files as they are now."""
    say(f"{step.__name__}: started")
    start_s = time.monotonic()
    made = step(*arguments)
    numbers = made._asdict() if hasattr(made, "_asdict") else {}
    said = [f"{name} {value}" for name, value in numbers.items() if isinstance(value, int | float | str)]
    say(", ".join([f"{step.__name__}: done in {time.monotonic() - start_s:.1f} s", *said]))


def publish(evaluation: Path, model: Path | None, out_dir: Path) -> None:
    """Put the results of a finished run into place: all of them, or none where one cannot be written.

    Args:
        evaluation: a folder with metrics.json and report.html, perhaps bench.json.
        model: the packaged model; None where the gate kept it back. Beside an earlier model, metrics and
            report then go to `out_dir/rejected`, so that the earlier results stay together.
        out_dir: where the results go.

    Raises:
        OSError: a result cannot be written; earlier results stay.
    """
    if model is not None:
        with _pages(evaluation, out_dir), atomic_folder(out_dir / "model") as folder:
            shutil.copytree(model, folder, dirs_exist_ok=True)
        shutil.rmtree(out_dir / REJECTED, ignore_errors=True)
        return
    kept = (out_dir / "model").exists()
    with _pages(evaluation, out_dir / REJECTED if kept else out_dir):
        where = f"; the earlier model stays, this run's metrics are in {out_dir / REJECTED}" if kept else ""
        say(f"the gate kept the model back: compare the settings gate.* with metrics.json{where}")


def last_results(out_dir: Path) -> Path:
    """Return the folder of the last run's metrics and report: a model that is packaged removes REJECTED."""
    return out_dir / REJECTED if (out_dir / REJECTED).exists() else out_dir


def finish(work: Path, evaluation: Path, model: Path, out_dir: Path) -> dict[str, float]:
    """Publish what a run made, remove what other runs left, and return the flat metrics.

    Args:
        work: the run's folder of steps; its neighbours are those of other data, settings and versions.
        evaluation: see `publish`.
        model: the packaged model; not there where the gate kept it back.
        out_dir: where the results go.

    Raises:
        OSError: a result cannot be written; earlier results and steps stay.
    """
    publish(evaluation, model if model.exists() else None, out_dir)
    for other in work.parent.iterdir():
        if other != work:
            shutil.rmtree(other, ignore_errors=True)
    metrics: dict[str, float] = read_json(evaluation / "metrics.json")
    return metrics


@contextmanager
def _pages(evaluation: Path, folder: Path) -> Iterator[None]:
    """Copy metrics and report beside their places; they appear when the block ends without an error."""
    with ExitStack() as stack:
        for name in (*PAGES, *([BENCH] if (evaluation / BENCH).exists() else [])):
            copy = stack.enter_context(atomic_file(folder / name))
            copy.write_bytes((evaluation / name).read_bytes())
        yield
    if not (evaluation / BENCH).exists():  # of an earlier run
        (folder / BENCH).unlink(missing_ok=True)
