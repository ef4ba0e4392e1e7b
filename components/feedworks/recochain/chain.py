"""RecoChain (arXiv 2604.25787): all steps in one process, without an orchestrator.

Finished steps are kept under `OUT/work/runs/<key>`, where the key names data, settings and version: the same
command goes on where it stopped, another one starts afresh, and the results of an earlier run stay in place
until the new ones are whole.
"""

from __future__ import annotations

from pathlib import Path

from feedworks.configuration import to_json
from feedworks.contracts.tables import DATA_FOLDER
from feedworks.recochain import steps
from feedworks.recochain.config import RecoChainConfig
from feedworks.results import finish, once, run_key
from feedworks.storage import read_json


def run(data_dir: Path, out_dir: Path, cfg: RecoChainConfig) -> dict[str, float]:
    """Run the whole chain and write OUT/metrics.json, OUT/report.html and, if the gate passes, OUT/model.

    Args:
        data_dir: a data folder that has passed the validation gate.
        out_dir: where results and finished steps go.
        cfg: all settings.

    Returns:
        the flat metrics.

    Raises:
        DataError: the data cannot be used.
        ModelError: training broke down, or a finished step is damaged.
    """
    work = out_dir / "work" / "runs" / run_key(to_json(cfg), (table.path(data_dir) for table in DATA_FOLDER))
    prepared, tokenizer, sids = work / "prepared", work / "tokenizer", work / "sids"
    generator, candidates, joint = work / "generator", work / "candidates", work / "joint"
    sasrec, evaluation, model = work / "sasrec", work / "evaluation", work / "model"
    once(prepared, steps.prepare, data_dir, prepared, cfg)
    once(tokenizer, steps.fit_tokenizer, prepared, tokenizer, cfg)
    once(sids, steps.assign_ids, prepared, tokenizer, sids, cfg)
    once(generator, steps.train_generator, prepared, sids, generator, cfg)
    once(candidates, steps.mine_candidates, prepared, sids, generator, candidates, cfg)
    once(joint, steps.train_joint, prepared, sids, generator, candidates, joint, cfg)
    once(sasrec, steps.train_baseline, prepared, sasrec, cfg)
    once(evaluation, steps.evaluate, prepared, sids, generator, joint, sasrec, evaluation, cfg)
    if steps.passes_gate(read_json(evaluation / "metrics.json"), cfg):
        once(model, steps.package, prepared, sids, tokenizer, joint, evaluation, model, cfg)
    return finish(work, evaluation, model, out_dir)
