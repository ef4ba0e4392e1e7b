"""OCARM (arXiv 2604.25839): the steps of the pipeline. Paths in, paths out.

Each step reads the folders of earlier steps and writes one folder, or two, each whole or not at all. Training
keeps its state beside the result in `<out>.state` until it is done, so a killed step goes on where it was.
Only steps with an argument `content` can read what users met after they came back; `train_student` has none.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from feedworks.configuration import to_json
from feedworks.contracts.files import read_file
from feedworks.features.refresh import Refreshed, refresh
from feedworks.features.schema import FEATURES_FILE
from feedworks.features.training_set import TrainingSet, build_training_set
from feedworks.ocarm import arms, label_audit, stages, student_audit, time_audit
from feedworks.ocarm.config import OcarmConfig
from feedworks.ocarm.evaluation import GAIN, evaluate_arms
from feedworks.ocarm.model import Teacher
from feedworks.ocarm.packaging import write_package
from feedworks.ocarm.report import write_report
from feedworks.ocarm.rows import Inputs, read_content, read_inputs, read_vectors, write_vectors
from feedworks.ocarm.samples import Built, build_samples
from feedworks.progress import say
from feedworks.storage import atomic_folder, read_json, write_json
from feedworks.training.checkpoint import load_extra, load_model, save_model
from feedworks.training.processes import is_first_process
from feedworks.training.state import state_of

PREDICTIONS = "predictions.parquet"


class Trained(NamedTuple):
    """The best epoch of a training run and its AUC on validation, mean over horizons."""

    best_epoch: int
    valid_auc: float
    num_steps: int


class Exported(NamedTuple):
    """Rows written."""

    num_rows: int


class Evaluation(NamedTuple):
    """The flat metrics."""

    metrics: dict[str, float]


class Audited(NamedTuple):
    """Checks that all passed."""

    num_checks: int


class Packaged(NamedTuple):
    """The name under which the model is served."""

    tag: str


def build(data_dir: Path, samples: Path, tables: Path, cfg: OcarmConfig) -> Built:
    """Event logs to samples and feature tables."""
    return build_samples(data_dir, samples, tables, cfg.samples)


def join_features(samples: Path, tables: Path, observables: Path, content: Path) -> TrainingSet:
    """Each sample with what was known at its bid time; apart from it, what came after."""
    return build_training_set(samples, tables, observables, content)


def audit_times(samples: Path, observables: Path, content: Path, out_dir: Path, cfg: OcarmConfig) -> None:
    """Prove the order of times for every row, then look at labels; writes times.json and times.html.

    Raises:
        DataError: some rows are out of order, a split lacks one kind of label, or a column gives labels away;
            the page is written all the same.
    """
    labels = None
    with atomic_folder(out_dir) as folder:
        found = time_audit.audit_times(observables, content, cfg.samples, samples)
        page = found.page()
        if found.passed:
            labels = label_audit.audit_labels(observables, cfg)
            labels.write(folder, page)
        found.write(folder, page)
    found.require_clean()
    if labels is not None:
        labels.require_clean()


def materialize(tables: Path, out_dir: Path, cfg: OcarmConfig) -> Refreshed:
    """Bring the newest servable features into the online store; writes the page freshness.html.

    The store is the one of the feature repository that the setting `store.repo` names; without it an embedded
    one in `out_dir`, which a service on this machine can read.
    """
    with atomic_folder(out_dir) as folder:
        return refresh(tables, folder, repo=Path(cfg.store.repo) if cfg.store.repo else None)


def train_teacher(observables: Path, content: Path, out_dir: Path, cfg: OcarmConfig) -> Trained:
    """Stage 1: the teacher, which sees the content.

    Raises:
        ModelError: it knows the labels (`gate.max_teacher_auc`), or training broke down.
    """
    inputs = read_inputs(observables, cfg)
    hidden = read_content(content, observables, inputs)
    trained = stages.train_teacher(inputs, hidden, cfg, state_of(out_dir))
    return _finish(out_dir, trained, inputs)


def export_vectors(
    observables: Path, content: Path, teacher: Path, out_dir: Path, cfg: OcarmConfig
) -> Exported:
    """The frozen teacher's vectors of all samples that are learned from or chosen on."""
    inputs = read_inputs(observables, cfg)
    hidden = read_content(content, observables, inputs)
    model = Teacher(inputs.architecture)
    load_model(teacher, model)
    vectors = stages.export_vectors(model.eval(), inputs, hidden)
    write_vectors(out_dir, vectors, stages.start_weights(model), cfg.samples.horizons)
    return Exported(len(vectors.sample_id_B))


def train_student(observables: Path, vectors: Path, out_dir: Path, cfg: OcarmConfig) -> Trained:
    """Stage 2: the student, from observable columns and the table of vectors.

    Raises:
        ModelError: it knows the labels (`gate.max_observable_auc`), or training broke down.
    """
    inputs = read_inputs(observables, cfg)
    table, start = read_vectors(vectors, cfg.samples.horizons)
    trained = stages.train_student(inputs, table, start, cfg, state_of(out_dir))
    stages.require_honest(trained.result, cfg, "student")
    return _finish(out_dir, trained, inputs, observables / FEATURES_FILE)


def train_arms(observables: Path, content: Path, out_dir: Path, cfg: OcarmConfig) -> Exported:
    """Train every arm with the seed of `cfg`; writes what each predicts on validation and test."""
    inputs = read_inputs(observables, cfg)
    hidden = read_content(content, observables, inputs)
    rows = arms.train_arms(inputs, hidden, cfg, cfg.seed, state_of(out_dir))
    with atomic_folder(out_dir) as folder:
        pq.write_table(rows, folder / PREDICTIONS, compression="zstd")
    shutil.rmtree(state_of(out_dir), ignore_errors=True)
    return Exported(rows.num_rows)


def audit_student(
    observables: Path, teacher: Path, student: Path, out_dir: Path, cfg: OcarmConfig
) -> Audited:
    """Prove that nothing of the content or the teacher is in the student; writes verdict.json and a page.

    Raises:
        ModelError: something is; the run stops.
    """
    del cfg
    with atomic_folder(out_dir) as folder:
        verdict = student_audit.audit_student(student, teacher, observables, folder)
    verdict.require_clean()
    return Audited(len(verdict.checks))


def evaluate(
    observables: Path, teacher: Path, student: Path, seeds: Sequence[Path], out_dir: Path, cfg: OcarmConfig
) -> Evaluation:
    """Compare all arms over all seeds; writes metrics.json and report.html."""
    predictions = pa.concat_tables([read_file(folder / PREDICTIONS) for folder in seeds])
    found = evaluate_arms(predictions, observables, cfg)
    histories = {"teacher": load_extra(teacher)["history"], "student": load_extra(student)["history"]}
    with atomic_folder(out_dir) as folder:
        write_json(folder / "metrics.json", found.metrics)
        write_report(folder / "report.html", found, histories, cfg)
    return Evaluation(found.metrics)


def passes_gate(evaluation: Path, cfg: OcarmConfig) -> bool:
    """Whether the student may be packaged; says why not."""
    gain = read_json(evaluation / "metrics.json")[GAIN]
    if gain >= cfg.gate.min_gain:
        return True
    say(f"gate: the student gains {gain:+.4f} AUC over the base, gate.min_gain={cfg.gate.min_gain:g}")
    return False


def package(
    observables: Path, student: Path, verdict: Path, evaluation: Path, out_dir: Path, cfg: OcarmConfig
) -> Packaged:
    """One folder with all that serving needs, and a model card.

    Raises:
        ModelError: the audit was not clean or of another student, or this one may not be served.
    """
    student_audit.require_cleared(verdict, student)
    metrics = read_json(evaluation / "metrics.json")
    with atomic_folder(out_dir) as folder:
        return Packaged(write_package(folder, student, observables, cfg, metrics))


def _finish(out_dir: Path, trained: stages.Trained, inputs: Inputs, *files: Path) -> Trained:
    result = trained.result
    extra = {"history": result.history, "best_epoch": result.best_epoch}
    if is_first_process():
        with atomic_folder(out_dir) as folder:
            save_model(folder, trained.model.cpu(), to_json(inputs.architecture), extra)
            for file in files:
                shutil.copyfile(file, folder / file.name)
        shutil.rmtree(state_of(out_dir), ignore_errors=True)
    return Trained(result.best_epoch, result.best_metric or 0.0, result.num_steps)
