"""OCARM (arXiv 2604.25839): both stages. A frozen teacher writes a table, from which the student learns.

`train_student` is given observables, labels and the table, nothing else. The best epoch of every model is
that of the best AUC on the validation split, mean over horizons, of "any return".
Shape legend: B rows, H horizons, D width of a vector.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from feedworks.contracts.retention import label_of
from feedworks.errors import DataError, ModelError
from feedworks.metrics.classification import auc
from feedworks.ocarm.config import OcarmConfig
from feedworks.ocarm.data import Content, Observable, without_views
from feedworks.ocarm.losses import alignment_loss, num_labels, num_taught, retention_loss
from feedworks.ocarm.model import Student, Teacher, filled
from feedworks.ocarm.rows import Inputs, Rows, Vectors, shuffled
from feedworks.training.loop import FitResult, fit
from feedworks.training.seed import seed_everything
from feedworks.training.settings import TrainConfig, seeded
from feedworks.training.whole import of_whole

FloatArray = npt.NDArray[np.float64]
ModuleT = TypeVar("ModuleT", bound=nn.Module)
MONITOR = "valid/auc"
TEACHER = "teacher"
NUM_OBSERVABLE, NUM_CONTENT = len(Observable._fields), len(Content._fields)
# Weights of the teacher that a student may start from: all but the part that reads content.
START = ("observer.", "retention.")
# The splits that the table of vectors covers: nothing is learned or chosen on test.
EXPORTED = ("train", "valid")
EVALUATION_ROWS = 4096


class Predicted(NamedTuple):
    """Logits `(B, H)` and, of a model with vectors, e `(B, H, D)`."""

    logit_BH: Tensor
    vector_BHD: Tensor | None


class Trained(NamedTuple):
    """A model in eval mode with its best weights, and how it came about."""

    model: Any
    result: FitResult


def train_teacher(
    inputs: Inputs, content: dict[str, Content], cfg: OcarmConfig, state_dir: Path, *, seed: int | None = None
) -> Trained:
    """Stage 1.

    Args:
        inputs: rows of the splits.
        content: what users met after they came back, aligned with the rows.
        cfg: all settings.
        state_dir: state of the run, for exact resume.
        seed: instead of that of `cfg`.

    Raises:
        ModelError: training broke down, or the teacher knows the labels (`gate.max_teacher_auc`).
        ConfigError: `state_dir` holds another run.
    """
    seed = cfg.seed if seed is None else seed
    seed_everything(seed)
    model = Teacher(inputs.architecture)
    filled(model, inputs.items)
    train, valid = inputs.rows["train"], inputs.rows["valid"]

    def loss(module: Any, batch: tuple[Tensor, ...]) -> dict[str, Tensor]:
        observable = without_views(Observable(*batch[:NUM_OBSERVABLE]), cfg.model.view_dropout, cfg.samples)
        met = Content(*batch[NUM_OBSERVABLE : NUM_OBSERVABLE + NUM_CONTENT])
        retention = retention_loss(module(observable, met), batch[-1])
        return {"loss": of_whole(retention, lambda batch: num_labels(batch[-1]), batch)}

    def evaluate(module: Any, epoch: int) -> dict[str, float]:
        return aucs(predict(module, valid, content["valid"]).logit_BH, valid, cfg)

    parts = (*train.observable, *content["train"], train.label_BH)
    trained = run_fit(model, parts, loss, evaluate, seeded(cfg.teacher, seed), state_dir)
    require_honest(trained.result, cfg, TEACHER)
    return trained


def require_honest(result: FitResult, cfg: OcarmConfig, arm: str) -> None:
    """Stop where a model does too well to be true.

    Args:
        result: of its training.
        cfg: horizons and limits.
        arm: `teacher`, whose limit is that of content, or the name of a model of the observables.

    Raises:
        ModelError: its AUC of some horizon on validation is over `gate.max_teacher_auc`, or over
            `gate.max_observable_auc`.
    """
    best, gate = result.history[result.best_epoch], cfg.gate
    limit, setting, source = gate.max_observable_auc, "max_observable_auc", "observable columns tell"
    advice = "make sure that no column is made from labels or from what came after the bid"
    if arm == TEACHER:
        limit, setting, source = gate.max_teacher_auc, "max_teacher_auc", "the content tells"
        advice = "make sure that label windows begin after the content and that no column is made from labels"
    for days in cfg.samples.horizons:
        found = best.get(f"{MONITOR}/{label_of(days)}", 0.0)
        if found > limit:
            raise ModelError(
                f"the {arm}'s AUC of {label_of(days)} on validation is {found:.4f}, over gate.{setting}="
                f"{limit:g}: {source} the label; {advice}"
            )


def export_vectors(teacher: Teacher, inputs: Inputs, content: dict[str, Content]) -> Vectors:
    """The frozen teacher's vectors and logits of the samples that are learned from or chosen on."""
    found = [predict(teacher, inputs.rows[split], content[split]) for split in EXPORTED]
    return Vectors(
        np.concatenate([inputs.rows[split].sample_id_B for split in EXPORTED]),
        torch.cat([each.vector_BHD for each in found if each.vector_BHD is not None]),
        torch.cat([each.logit_BH for each in found]),
    )


def start_weights(teacher: Teacher) -> dict[str, Tensor]:
    """What a student may start from: the retention net and the encoder of observables."""
    return {name: x for name, x in teacher.state_dict().items() if name.startswith(START)}


def train_student(
    inputs: Inputs,
    vectors: Vectors | None,
    start: dict[str, Tensor] | None,
    cfg: OcarmConfig,
    state_dir: Path,
    *,
    seed: int | None = None,
    logit_weight: float = 0.0,
) -> Trained:
    """Stage 2.

    Args:
        inputs: rows of the splits.
        vectors: the teacher's table; None trains the same network without a teacher.
        start: weights to start from, used with `distil.warm_start`.
        cfg: all settings.
        state_dir: state of the run, for exact resume.
        seed: instead of that of `cfg`.
        logit_weight: of the teacher's probabilities as targets beside the labels; not OCARM, but a control.

    Raises:
        ModelError: training broke down, or `start` is of another model.
        ConfigError: `state_dir` holds another run.
    """
    seed = cfg.seed if seed is None else seed
    seed_everything(seed)
    model = Student(inputs.architecture)
    filled(model, inputs.items)
    if start is not None and cfg.distil.warm_start:
        _warm(model, start)
    train, valid = inputs.rows["train"], inputs.rows["valid"]

    def evaluate(module: Any, epoch: int) -> dict[str, float]:
        found = predict(module, valid)
        row = aucs(found.logit_BH, valid, cfg)
        if vectors is not None and found.vector_BHD is not None:
            own_BH = similarities(found.vector_BHD, vectors.of(valid.sample_id_B).vector_BHD)
            row["valid/similarity"] = float(own_BH.nanmean())
        return row

    parts: tuple[Tensor, ...] = (*train.observable, train.label_BH)
    if vectors is not None:
        own = vectors.of(train.sample_id_B)
        parts = (*parts, own.vector_BHD, own.logit_BH)
    weight = cfg.distil.weight if vectors is not None else 0.0
    loss = partial(_student_terms, cfg=cfg, weight=weight, logit_weight=logit_weight)
    return run_fit(model, parts, loss, evaluate, seeded(cfg.student, seed), state_dir)


def _student_terms(
    module: Any, batch: tuple[Tensor, ...], *, cfg: OcarmConfig, weight: float, logit_weight: float
) -> dict[str, Tensor]:
    """L_stage2 and its parts; a batch is observables, labels and, where there is a table, e_c and logits."""
    observable = without_views(Observable(*batch[:NUM_OBSERVABLE]), cfg.model.view_dropout, cfg.samples)
    label_BH, *table = batch[NUM_OBSERVABLE:]
    logit_BH, vector_BHD = module.both(observable)
    retention = of_whole(
        retention_loss(logit_BH, label_BH), lambda batch: num_labels(batch[NUM_OBSERVABLE]), batch
    )
    terms = {"loss": retention, "retention": retention}
    if weight:
        align = alignment_loss(vector_BHD, table[0], cfg.distil.similarity, cfg.distil.temperature)
        align = of_whole(align, lambda batch: num_taught(batch[NUM_OBSERVABLE + 1]), batch)
        terms |= {"loss": terms["loss"] + weight * align, "align": align}
    if logit_weight:
        hint = retention_loss(logit_BH, table[1].sigmoid())
        hint = of_whole(hint, lambda batch: num_labels(batch[NUM_OBSERVABLE + 2]), batch)
        terms |= {"loss": terms["loss"] + logit_weight * hint, "hint": hint}
    return terms


def run_fit(
    model: nn.Module,
    parts: Sequence[Tensor],
    loss: Callable[[Any, Any], dict[str, Tensor]],
    evaluate: Callable[[Any, int], dict[str, float]],
    config: TrainConfig,
    state_dir: Path,
) -> Trained:
    """Train on shuffled rows of aligned tensors; the best epoch is that of `valid/auc`."""
    result = fit(
        model,
        batches=shuffled(parts, config.batch_size, config.seed),
        num_batches=None,
        loss=loss,
        config=config,
        state_dir=state_dir,
        evaluate=evaluate,
        monitor=MONITOR,
    )
    return Trained(model, result)


@torch.no_grad()
def predict(
    model: Any, rows: Rows, content: Content | None = None, batch_size: int = EVALUATION_ROWS
) -> Predicted:
    """Score rows on the model's device, in its mode.

    Args:
        model: one of `feedworks.ocarm.model`.
        rows: whom to score.
        content: for a teacher.
        batch_size: rows scored at once.
    """
    device = next(model.parameters()).device
    whole = (*rows.observable, *(content or ()))
    logits, vectors = [], []
    for first in range(0, rows.num_rows, batch_size):
        part = [tensor[first : first + batch_size].to(device) for tensor in whole]
        inputs: list[Any] = [Observable(*part[:NUM_OBSERVABLE])]
        if content is not None:
            inputs.append(Content(*part[NUM_OBSERVABLE:]))
        logit_BH, vector_BHD = model.both(*inputs) if hasattr(model, "both") else (model(*inputs), None)
        logits.append(logit_BH.float().cpu())
        if vector_BHD is not None:
            vectors.append(vector_BHD.float().cpu())
    return Predicted(torch.cat(logits), torch.cat(vectors) if vectors else None)


def aucs(logit_BH: Tensor, rows: Rows, cfg: OcarmConfig) -> dict[str, float]:
    """`valid/auc` of "any return": of each horizon, and the mean over horizons.

    Raises:
        DataError: no horizon has both users who came back and users who did not.
    """
    found = {}
    for place, days in enumerate(cfg.samples.horizons):
        known_B = ~rows.label_BH[:, place].isnan().numpy()
        label_B = rows.label_BH[known_B, place].numpy() > 0
        if 0 < label_B.sum() < len(label_B):
            found[f"{MONITOR}/{label_of(days)}"] = auc(label_B, logit_BH[known_B, place].numpy())
    if not found:
        raise DataError("on validation everybody came back or nobody did; bring more samples")
    return {MONITOR: float(np.mean(list(found.values()))), **found}


def similarities(own_BHD: Tensor, teacher_BHD: Tensor) -> Tensor:
    """Cosine of e_u and e_c, `(B, H)`; NaN where there is no e_c."""
    return F.cosine_similarity(own_BHD, teacher_BHD, dim=-1)


def _warm(model: Student, start: dict[str, Tensor]) -> None:
    own = {name: x for name, x in model.state_dict().items() if name.startswith(START)}
    if {name: x.shape for name, x in start.items()} != {name: x.shape for name, x in own.items()}:
        raise ModelError("the weights to start from are of another model; export the teacher's vectors again")
    model.load_state_dict(start, strict=False)
