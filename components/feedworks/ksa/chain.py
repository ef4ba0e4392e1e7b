"""KSA (arXiv 2604.24432): all steps in one process, without an orchestrator.

Finished steps are kept under `OUT/work/runs/<key>`, where the key names data, settings and version: the same
command goes on where it stopped, another one starts afresh, and the results of an earlier run stay in place
until the new ones are whole.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import cast

from feedworks.configuration import to_json
from feedworks.ksa import steps
from feedworks.ksa.config import Baseline, KsaConfig, trained_baselines
from feedworks.results import finish, once, run_key


def run(data_dir: Path, out_dir: Path, cfg: KsaConfig) -> dict[str, float]:
    """Run the whole chain and write OUT/metrics.json, OUT/report.html and, if the gate passes, OUT/model.

    Args:
        data_dir: a text data folder that has passed the validation gate.
        out_dir: where results and finished steps go.
        cfg: all settings.

    Returns:
        the flat metrics.

    Raises:
        DataError: the data cannot be used.
        ModelError: a checkpoint cannot be read, training broke down, or a finished step is damaged.
    """
    files = [*sorted(data_dir.iterdir()), *_checkpoint(cfg)]
    work = out_dir / "work" / "runs" / run_key(to_json(cfg), files)
    corpus, needles, evaluation, model = (
        work / name for name in ("corpus", "needles", "evaluation", "model")
    )
    first, distilled, annealed, trained = (
        work / name for name in ("pretrained", "distilled", "annealed", "extended")
    )
    once(corpus, steps.prepare_corpus, data_dir, corpus, cfg)
    once(needles, steps.make_needles, corpus, needles, cfg)
    once(first, steps.pretrain, corpus, needles, first, cfg)
    once(distilled, steps.distil, corpus, needles, first, distilled, cfg)
    once(annealed, steps.anneal, corpus, needles, distilled, annealed, cfg)
    once(trained, steps.extend, corpus, needles, annealed, trained, cfg)
    baselines = []
    for arm in trained_baselines(cfg):
        baselines.append(work / "baselines" / arm)
        alone = replace(cfg, baselines=(cast(Baseline, arm),))
        once(baselines[-1], steps.train_baseline, corpus, needles, baselines[-1], alone)
    once(evaluation, steps.evaluate, corpus, needles, trained, first, baselines, evaluation, cfg)
    if steps.passes_gate(evaluation, cfg):
        once(model, steps.package, corpus, trained, evaluation, model, cfg)
    return finish(work, evaluation, model, out_dir)


def _checkpoint(cfg: KsaConfig) -> list[Path]:
    """Files from outside that a run depends on."""
    folders = [Path(name) for name in (cfg.base.folder, cfg.corpus.tokenizer) if name]
    return [path for folder in folders for path in sorted(folder.glob("*"))]
