"""MaRI (arXiv 2602.23105): all steps in one process, without an orchestrator.

Finished steps are kept under `OUT/work/runs/<key>`, where the key names data or outside model, settings and
version: the same command goes on where it stopped, another one starts afresh, and the results of an earlier
run stay in place until the new ones are whole.
"""

from __future__ import annotations

from pathlib import Path

from feedworks.configuration import to_json
from feedworks.mari import steps
from feedworks.mari.config import MariConfig
from feedworks.mari.outside import source_file
from feedworks.results import finish, once, run_key


def run(data_dir: Path | None, out_dir: Path, cfg: MariConfig) -> dict[str, float]:
    """Run the whole chain and write OUT/metrics.json, OUT/report.html and, if the gate passes, OUT/model.

    Args:
        data_dir: a ranking data folder that has passed the validation gate; None for a model from outside.
        out_dir: where results and finished steps go.
        cfg: all settings.

    Returns:
        the flat metrics.

    Raises:
        DataError: the data or the sides file cannot be used.
        ModelError: the model cannot be used, training broke down, or a finished step is damaged.
    """
    work = out_dir / "work" / "runs" / _key(data_dir, cfg)
    ranker, sites, twin = work / "ranker", work / "sites", work / "twin"
    verdict, bench, evaluation, model = work / "verdict", work / "bench", work / "evaluation", work / "model"
    once(ranker, steps.make_ranker, data_dir, ranker, cfg)
    once(sites, steps.colour_graph, ranker, sites, cfg)
    once(twin, steps.reparameterise_ranker, ranker, twin, cfg)
    once(verdict, steps.verify, ranker, twin, verdict, cfg)
    once(bench, steps.benchmark, ranker, bench, cfg)
    once(evaluation, steps.evaluate, data_dir, ranker, twin, sites, verdict, bench, evaluation, cfg)
    if steps.passes_gate(evaluation, cfg):
        once(model, steps.package, twin, sites, evaluation, model, cfg)
    return finish(work, evaluation, model, out_dir)


def _key(data_dir: Path | None, cfg: MariConfig) -> str:
    """Weights that an outside model reads from a file of its own are not seen: change the seed with them."""
    files = [Path(cfg.outside.sides), source_file(cfg.outside.model)] if cfg.outside.model else []
    return run_key(to_json(cfg), [*files, *(sorted(data_dir.iterdir()) if data_dir else [])])
