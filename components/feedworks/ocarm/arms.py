"""OCARM (arXiv 2604.25839): the student beside its bounds and controls, all trained on the same rows.

`base` is PPNet on x_u. `sfe` is the student's network without a teacher, which tells capacity from
distillation. `joint` trains HAE and SFE together with the loss of stage 2 and no frozen teacher. `logit`
distils probabilities instead of vectors (PFD, KDD 2020). `upper` is the teacher, with content at test.
Shape legend: B rows, H horizons.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import pyarrow as pa
import torch
from torch import Tensor, nn

from feedworks.contracts.retention import label_of
from feedworks.ocarm.config import OcarmConfig
from feedworks.ocarm.data import Content, Observable, without_views
from feedworks.ocarm.losses import retention_loss
from feedworks.ocarm.model import HierarchicalAttentionEncoder, PPNetBase, Student, Teacher, filled
from feedworks.ocarm.rows import Inputs, Rows, Vectors
from feedworks.ocarm.stages import (
    NUM_CONTENT,
    NUM_OBSERVABLE,
    Predicted,
    Trained,
    aucs,
    export_vectors,
    predict,
    require_honest,
    run_fit,
    similarities,
    start_weights,
    train_student,
    train_teacher,
)
from feedworks.training.seed import seed_everything
from feedworks.training.settings import seeded

Arm = Literal["base", "sfe", "joint", "logit", "ocarm", "upper"]
ARMS: tuple[Arm, ...] = get_args(Arm)
SCORED = ("valid", "test")


class JointModel(nn.Module):
    """Student and HAE trained together; its `both` is the student's, so that content is not read at test."""

    def __init__(self, inputs: Inputs) -> None:
        super().__init__()
        self.student = Student(inputs.architecture)
        filled(self.student, inputs.items)
        self.hae = HierarchicalAttentionEncoder(self.student.observer.width, inputs.architecture)

    def both(self, observable: Observable) -> tuple[Tensor, Tensor]:
        """Logits and e_u."""
        return self.student.both(observable)

    def content_vectors(self, observable: Observable, met: Content) -> Tensor:
        """e_c `(B, H, D)`, with a gradient."""
        seen = self.student.observer(observable)
        item_BSND = self.student.observer.items(*met.code_BDN2.unbind(-1))
        vector_BHD: Tensor = self.hae(seen.x_BU, item_BSND, met)
        return vector_BHD


class Taught(NamedTuple):
    """A frozen teacher, its table, and the weights that a student may start from."""

    teacher: Teacher
    vectors: Vectors
    start: dict[str, Tensor]


def train_arms(
    inputs: Inputs,
    content: dict[str, Content],
    cfg: OcarmConfig,
    seed: int,
    state_dir: Path,
    arms: Iterable[Arm] = ARMS,
) -> pa.Table:
    """Train the arms with one seed, teacher first, and score validation and test.

    Args:
        inputs: rows of the splits.
        content: what users met after they came back, aligned with the rows.
        cfg: all settings.
        seed: of every arm; the teacher is trained anew, too.
        state_dir: states of the runs, for exact resume.
        arms: which ones.

    Returns:
        rows of `prediction_rows`, for all arms.

    Raises:
        ModelError: training broke down, or a model knows the labels.
    """
    taught = teach(inputs, content, cfg, seed, state_dir / "teacher")
    return pa.concat_tables(
        [score_arm(arm, inputs, content, taught, cfg, seed, state_dir / arm) for arm in arms]
    )


def teach(
    inputs: Inputs, content: dict[str, Content], cfg: OcarmConfig, seed: int, state_dir: Path
) -> Taught:
    """Train the teacher and write its table."""
    teacher = train_teacher(inputs, content, cfg, state_dir, seed=seed).model
    return Taught(teacher, export_vectors(teacher, inputs, content), start_weights(teacher))


def score_arm(
    arm: Arm,
    inputs: Inputs,
    content: dict[str, Content],
    taught: Taught,
    cfg: OcarmConfig,
    seed: int,
    state_dir: Path,
) -> pa.Table:
    """Train one arm and return what it predicts for validation and test, see `prediction_rows`.

    Raises:
        ModelError: training broke down, or the arm knows the labels (`gate.max_observable_auc`).
    """
    upper = arm == "upper"
    model = taught.teacher
    if not upper:
        trained = _train(arm, inputs, content, taught, cfg, seed, state_dir)
        require_honest(trained.result, cfg, arm)
        model = trained.model
    parts = []
    for split in SCORED:
        rows = inputs.rows[split]
        found = predict(model, rows, content[split] if upper else None, cfg.evaluation.batch_size)
        alike_BH = None
        if arm == "ocarm" and found.vector_BHD is not None:
            alike_BH = similarities(found.vector_BHD, taught.vectors.of(rows.sample_id_B).vector_BHD)
        parts.append(prediction_rows(arm, seed, split, rows, found, alike_BH, cfg.samples.horizons))
    return pa.concat_tables(parts)


def prediction_rows(
    arm: Arm,
    seed: int,
    split: str,
    rows: Rows,
    found: Predicted,
    similarity_BH: Tensor | None,
    horizons: tuple[int, ...],
) -> pa.Table:
    """One row per sample: arm, seed, split, sample_id, `logit_lt<d>` and `similarity_lt<d>`.

    The similarity of e_u and e_c is null for arms that do not align them and for samples without e_c.
    """
    columns: dict[str, Any] = {
        "arm": pa.array([arm] * rows.num_rows).dictionary_encode(),
        "seed": pa.array([seed] * rows.num_rows, pa.int64()),
        "split": pa.array([split] * rows.num_rows).dictionary_encode(),
        "sample_id": rows.sample_id_B,
    }
    own_BH = torch.full_like(found.logit_BH, torch.nan) if similarity_BH is None else similarity_BH
    for place, days in enumerate(horizons):
        columns[f"logit_{label_of(days)}"] = found.logit_BH[:, place].numpy()
        columns[f"similarity_{label_of(days)}"] = pa.array(own_BH[:, place].numpy(), from_pandas=True)
    return pa.table(columns)


def train_base(inputs: Inputs, cfg: OcarmConfig, state_dir: Path, *, seed: int) -> Trained:
    """PPNet on the observables."""
    seed_everything(seed)
    model = PPNetBase(inputs.architecture)
    filled(model, inputs.items)
    train = inputs.rows["train"]

    def loss(module: Any, batch: tuple[Tensor, ...]) -> dict[str, Tensor]:
        observable = without_views(Observable(*batch[:NUM_OBSERVABLE]), cfg.model.view_dropout, cfg.samples)
        return {"loss": retention_loss(module(observable), batch[-1])}

    parts = (*train.observable, train.label_BH)
    return run_fit(model, parts, loss, _monitor(inputs, cfg), seeded(cfg.student, seed), state_dir)


def train_joint(
    inputs: Inputs, content: dict[str, Content], cfg: OcarmConfig, state_dir: Path, *, seed: int
) -> Trained:
    """The loss of stage 2 from random weights, its gradient going into HAE as well."""
    seed_everything(seed)
    model = JointModel(inputs)
    train = inputs.rows["train"]

    def loss(module: Any, batch: tuple[Tensor, ...]) -> dict[str, Tensor]:
        observable = without_views(Observable(*batch[:NUM_OBSERVABLE]), cfg.model.view_dropout, cfg.samples)
        met = Content(*batch[NUM_OBSERVABLE : NUM_OBSERVABLE + NUM_CONTENT])
        logit_BH, vector_BHD = module.both(observable)
        own_BH = similarities(vector_BHD, module.content_vectors(observable, met))
        align = (1 - own_BH).sum(dim=-1).mean()
        retention = retention_loss(logit_BH, batch[-1])
        return {"loss": retention + cfg.distil.weight * align, "retention": retention, "align": align}

    parts = (*train.observable, *content["train"], train.label_BH)
    return run_fit(model, parts, loss, _monitor(inputs, cfg), seeded(cfg.student, seed), state_dir)


def _train(
    arm: Arm,
    inputs: Inputs,
    content: dict[str, Content],
    taught: Taught,
    cfg: OcarmConfig,
    seed: int,
    state_dir: Path,
) -> Trained:
    match arm:
        case "base":
            return train_base(inputs, cfg, state_dir, seed=seed)
        case "joint":
            return train_joint(inputs, content, cfg, state_dir, seed=seed)
        case "sfe":
            return train_student(inputs, None, None, cfg, state_dir, seed=seed)
        case "logit":
            plain = replace(cfg, distil=replace(cfg.distil, weight=0.0))
            hint = cfg.distil.logit_weight
            return train_student(inputs, taught.vectors, None, plain, state_dir, seed=seed, logit_weight=hint)
        case _:
            return train_student(inputs, taught.vectors, taught.start, cfg, state_dir, seed=seed)


def _monitor(inputs: Inputs, cfg: OcarmConfig) -> Any:
    def evaluate(module: Any, epoch: int) -> dict[str, float]:
        return aucs(predict(module, inputs.rows["valid"]).logit_BH, inputs.rows["valid"], cfg)

    return evaluate
