"""Finished steps, and the results of a run, whichever runner made them: metrics, report and model/."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from feedworks.progress import say
from feedworks.storage import atomic_file, atomic_folder

PAGES = ("metrics.json", "report.html")
BENCH = "bench.json"  # where a paper measures time: {"metrics": flat metrics, ...}, never equal in two runs


def once(result: Path, step: Callable[..., Any], *arguments: Any) -> None:
    """Call a step unless its result is there, and say what it made and how long that took."""
    if result.exists():
        say(f"{step.__name__}: already done")
        return
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
        shutil.rmtree(out_dir / "rejected", ignore_errors=True)
        return
    kept = (out_dir / "model").exists()
    with _pages(evaluation, out_dir / "rejected" if kept else out_dir):
        where = f"; the earlier model stays, this run's metrics are in {out_dir / 'rejected'}" if kept else ""
        say(f"the gate kept the model back: compare the settings gate.* with metrics.json{where}")


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
