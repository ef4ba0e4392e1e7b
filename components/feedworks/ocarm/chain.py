"""OCARM (arXiv 2604.25839): all steps in one process, without an orchestrator.

Finished steps are kept under `OUT/work/runs/<key>`, where the key names data, settings and version: the same
command goes on where it stopped, another one starts afresh, and the results of an earlier run stay in place
until the new ones are whole. The two audits are taken every time: one that failed has written its page, too,
and what was proven of a file says nothing of one that was changed since.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from feedworks.configuration import to_json
from feedworks.ocarm import steps
from feedworks.ocarm.config import OcarmConfig
from feedworks.results import again, finish, once, run_key


def run(data_dir: Path, out_dir: Path, cfg: OcarmConfig) -> dict[str, float]:
    """Run the whole chain and write OUT/metrics.json, OUT/report.html and, if the gate passes, OUT/model.

    Args:
        data_dir: a retention data folder that has passed the validation gate.
        out_dir: where results and finished steps go.
        cfg: all settings.

    Returns:
        the flat metrics.

    Raises:
        DataError: the data cannot be used, times are out of order, or a column gives labels away.
        ModelError: a model saw its labels, training broke down, or a finished step is damaged.
    """
    work = out_dir / "work" / "runs" / run_key(to_json(cfg), sorted(data_dir.iterdir()))
    made = {name: work / name for name in ("built", "joined", "audit", "online", "verdict", "evaluation")}
    samples, tables = made["built"] / "samples", made["built"] / "tables"
    observables, content = made["joined"] / "observables", made["joined"] / "content"
    teacher, vectors, student, model = (work / name for name in ("teacher", "vectors", "student", "model"))
    once(tables, steps.build, data_dir, samples, tables, cfg)
    once(content, steps.join_features, samples, tables, observables, content)
    again(steps.audit_times, samples, observables, content, made["audit"], cfg)
    once(made["online"], steps.materialize, tables, made["online"], cfg)
    once(teacher, steps.train_teacher, observables, content, teacher, cfg)
    once(vectors, steps.export_vectors, observables, content, teacher, vectors, cfg)
    once(student, steps.train_student, observables, vectors, student, cfg)
    again(steps.audit_student, observables, teacher, student, made["verdict"], cfg)
    arms = [work / "arms" / str(seed) for seed in cfg.evaluation.seeds]
    for seed, folder in zip(cfg.evaluation.seeds, arms, strict=True):
        once(folder, steps.train_arms, observables, content, folder, replace(cfg, seed=seed))
    once(made["evaluation"], steps.evaluate, observables, teacher, student, arms, made["evaluation"], cfg)
    if steps.passes_gate(made["evaluation"], cfg):
        results = (made["verdict"], made["evaluation"])
        once(model, steps.package, observables, student, *results, model, cfg)
    return finish(work, made["evaluation"], model, out_dir)
