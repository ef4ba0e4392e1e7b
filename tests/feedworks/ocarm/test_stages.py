"""Both stages and the controls on a toy: the ad says what users meet, and that whether they return."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from feedworks.errors import ModelError
from feedworks.ocarm import steps
from feedworks.ocarm.arms import ARMS, Taught, score_arm, train_arms
from feedworks.ocarm.config import OcarmConfig, resolve
from feedworks.ocarm.data import Content
from feedworks.ocarm.rows import Inputs, Vectors, read_content, read_inputs, write_vectors
from feedworks.ocarm.stages import (
    Trained,
    export_vectors,
    predict,
    start_weights,
    train_student,
    train_teacher,
)

from . import toy

CFG = resolve(
    "tiny",
    [
        "samples.content_days=3",
        "teacher.epochs=4",
        "student.epochs=4",
        "teacher.batch_size=32",
        "student.batch_size=32",
    ],
)


class Set(tuple[Inputs, dict[str, Content], Trained, Vectors, dict[str, Tensor]]):
    """Inputs, content, teacher, its vectors, weights to start from."""


@pytest.fixture(scope="module")
def stage_one(tmp_path_factory: pytest.TempPathFactory) -> Set:
    folder = tmp_path_factory.mktemp("toy")
    seen, hidden = toy.write(folder)
    inputs = read_inputs(seen, CFG)
    content = read_content(hidden, seen, inputs)
    teacher = train_teacher(inputs, content, CFG, folder / "state")
    vectors = export_vectors(teacher.model, inputs, content)
    return Set((inputs, content, teacher, vectors, start_weights(teacher.model)))


def digest(module: nn.Module) -> str:
    found = hashlib.sha256()
    for name, tensor in module.state_dict().items():
        found.update(name.encode() + tensor.numpy().tobytes())
    return found.hexdigest()


def distilled(cfg: OcarmConfig, **changes: object) -> OcarmConfig:
    return replace(cfg, distil=replace(cfg.distil, **changes))  # type: ignore[arg-type]


def test_the_table_covers_what_is_learned_from_and_never_test(stage_one: Set) -> None:
    inputs, _, _, vectors, _ = stage_one
    covered = set(vectors.sample_id_B.tolist())
    assert covered == {i for split in ("train", "valid") for i in inputs.rows[split].sample_id_B.tolist()}
    assert not covered & set(inputs.rows["test"].sample_id_B.tolist())
    assert vectors.vector_BHD.isfinite().all()
    assert not vectors.vector_BHD.requires_grad


def test_stage_two_leaves_the_teacher_as_it_was(stage_one: Set, tmp_path: Path) -> None:
    inputs, content, trained, _, start = stage_one
    teacher = trained.model
    for weight in teacher.parameters():
        weight.grad = None
    before = digest(teacher)
    vectors = export_vectors(teacher, inputs, content)
    train_student(inputs, vectors, start, CFG, tmp_path)
    assert digest(teacher) == before
    assert all(weight.grad is None for weight in teacher.parameters())


def test_similarity_rises_in_stage_two(stage_one: Set, tmp_path: Path) -> None:
    inputs, _, _, vectors, start = stage_one
    history = train_student(inputs, vectors, start, CFG, tmp_path / "with").result.history
    similarity = [row["valid/similarity"] for row in history]
    assert similarity[-1] > similarity[0] + 0.05
    plain = train_student(inputs, vectors, start, distilled(CFG, weight=0.0), tmp_path / "without").result
    assert similarity[-1] > plain.history[-1]["valid/similarity"] + 0.1


def test_weight_0_is_the_student_without_a_teacher_bit_for_bit(stage_one: Set, tmp_path: Path) -> None:
    inputs, _, _, vectors, start = stage_one
    off = distilled(CFG, weight=0.0, warm_start=False)
    found = train_student(inputs, vectors, start, off, tmp_path / "off").model
    alone = train_student(inputs, None, None, CFG, tmp_path / "alone").model
    assert digest(found) == digest(alone)
    assert digest(found) != digest(train_student(inputs, vectors, None, CFG, tmp_path / "on").model)


def test_a_warm_start_is_the_teachers_and_of_its_kind(stage_one: Set, tmp_path: Path) -> None:
    inputs, _, trained, vectors, start = stage_one
    assert start
    assert not [name for name in start if name.startswith("hae.")]
    still = replace(CFG, student=replace(CFG.student, epochs=1, lr=0.0))
    student = train_student(inputs, vectors, start, still, tmp_path / "still").model
    own = student.state_dict()
    assert all(torch.equal(own[name], x) for name, x in trained.model.state_dict().items() if name in own)
    with pytest.raises(ModelError, match="another model"):
        train_student(inputs, vectors, dict(list(start.items())[1:]), CFG, tmp_path / "other")


@pytest.mark.parametrize("similarity", ["mse", "infonce"])
def test_other_similarities_train(stage_one: Set, tmp_path: Path, similarity: str) -> None:
    inputs, _, _, vectors, start = stage_one
    found = train_student(inputs, vectors, start, distilled(CFG, similarity=similarity), tmp_path)
    assert found.result.history[-1]["train/align"] < found.result.history[0]["train/align"]


def test_a_teacher_that_knows_the_labels_stops_the_run(tmp_path: Path) -> None:
    seen, hidden = toy.write(tmp_path, leak=True)
    inputs = read_inputs(seen, CFG)
    longer = replace(CFG, teacher=replace(CFG.teacher, epochs=12, lr=1e-2, patience=0))
    with pytest.raises(
        ModelError, match=r"teacher's AUC of lt\d on validation is [01]\.\d+, .* content tells the label"
    ):
        train_teacher(inputs, read_content(hidden, seen, inputs), longer, tmp_path / "state")


def test_a_model_of_observables_that_knows_the_labels_stops_the_run(stage_one: Set, tmp_path: Path) -> None:
    inputs, content, trained, vectors, start = stage_one
    rows = {}
    for split, of in inputs.rows.items():
        number_BP = of.observable.number_BP.clone()
        number_BP[:, 0] = 5.0 * (of.label_BH[:, 0] > 0)
        rows[split] = of._replace(observable=of.observable._replace(number_BP=number_BP))
    taught = Taught(trained.model, vectors, start)
    longer = replace(CFG, student=replace(CFG.student, epochs=12, lr=1e-2, patience=0))
    for arm in ("base", "ocarm"):
        said = (
            rf"the {arm}'s AUC of lt1 on validation is [01]\.\d+, over gate.max_observable_auc=0\.95: observ"
        )
        with pytest.raises(ModelError, match=said):
            score_arm(arm, inputs._replace(rows=rows), content, taught, longer, 0, tmp_path / arm)


def test_the_student_of_stage_two_is_asked_as_well(stage_one: Set, tmp_path: Path) -> None:
    _, _, _, vectors, start = stage_one
    seen, _ = toy.write(tmp_path / "toy")
    write_vectors(tmp_path / "vectors", vectors, start, CFG.samples.horizons)
    strict = replace(CFG, gate=replace(CFG.gate, max_observable_auc=0.5))
    with pytest.raises(ModelError, match=r"the student's AUC of lt\d on validation is"):
        steps.train_student(seen, tmp_path / "vectors", tmp_path / "student", strict)
    assert not (tmp_path / "student").exists()


def test_every_arm_scores_validation_and_test_and_repeats_to_the_bit(stage_one: Set, tmp_path: Path) -> None:
    inputs, content, *_ = stage_one
    short = replace(CFG, teacher=replace(CFG.teacher, epochs=1), student=replace(CFG.student, epochs=1))
    found = train_arms(inputs, content, short, 3, tmp_path / "a")
    assert found.equals(train_arms(inputs, content, short, 3, tmp_path / "b"))
    assert found.num_rows == len(ARMS) * 150
    assert set(found["arm"].to_pylist()) == set(ARMS)
    frame = found.to_pandas()
    assert np.isfinite(frame[["logit_lt1", "logit_lt7"]]).all().all()
    known = frame["similarity_lt1"].notna()
    assert (known == ((frame["arm"] == "ocarm") & (frame["split"] == "valid"))).all()


def test_the_joint_control_does_not_read_content_at_test(stage_one: Set, tmp_path: Path) -> None:
    from feedworks.ocarm.arms import train_joint

    inputs, content, *_ = stage_one
    short = replace(CFG, student=replace(CFG.student, epochs=1))
    trained = train_joint(inputs, content, short, tmp_path, seed=0)
    assert trained.result.history[0]["train/align"] > 0
    assert predict(trained.model, inputs.rows["test"]).logit_BH.shape == (75, 2)
