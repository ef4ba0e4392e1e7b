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
        model: the packaged model; None where the gate kept it back. Beside an earlier model, metrics and
            report then go to `out_dir/rejected`, so that the earlier results stay together.
        out_dir: where the results go.
    """
    kept = model is None and (out_dir / "model").exists()
    for name in ("metrics.json", "report.html"):
        target = out_dir / "rejected" / name if kept else out_dir / name
        write_bytes(target, (evaluation / name).read_bytes())
    if model is None:
        where = f"; the earlier model stays, this run's metrics are in {out_dir / 'rejected'}" if kept else ""
        say(f"the gate kept the model back: see gate and rerank_gain in metrics.json{where}")
        return
    shutil.rmtree(out_dir / "rejected", ignore_errors=True)
    with atomic_folder(out_dir / "model") as folder:
        shutil.copytree(model, folder, dirs_exist_ok=True)
