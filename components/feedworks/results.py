"""The three results of a run, whichever runner made them: metrics.json, report.html and model/."""

from __future__ import annotations

import shutil
from pathlib import Path

from feedworks.progress import say
from feedworks.storage import atomic_folder, write_bytes


def publish(evaluation: Path, model: Path | None, out_dir: Path) -> None:
    """Put the results of a finished run into place, each whole.

    Args:
        evaluation: a folder with metrics.json and report.html.
        model: the packaged model; None where the gate kept it back, and an earlier one, which would stand
            beside metrics that are not its own, goes.
        out_dir: where the results go.
    """
    for name in ("metrics.json", "report.html"):
        write_bytes(out_dir / name, (evaluation / name).read_bytes())
    if model is None:
        shutil.rmtree(out_dir / "model", ignore_errors=True)
        say("the gate kept the model back: see gate.min_gain and test/rerank_gain in metrics.json")
        return
    with atomic_folder(out_dir / "model") as folder:
        shutil.copytree(model, folder, dirs_exist_ok=True)
