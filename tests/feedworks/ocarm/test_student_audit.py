"""The audit of the student: clean for one that is, and every check fails where it must."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from torch import Tensor

from feedworks.contracts.features import TEACHER_SERVICE
from feedworks.errors import ModelError
from feedworks.features.schema import ServiceSchema
from feedworks.ocarm import student_audit
from feedworks.ocarm.data import Content, Observable, content, observables
from feedworks.ocarm.model import Student, Teacher
from feedworks.ocarm.student_audit import audit_student, require_cleared
from feedworks.storage import read_json, write_json
from feedworks.training.checkpoint import load_tensors, save_tensors

from . import served, toy


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("audit")
    served.write_student(folder / "student")
    served.write_teacher(folder / "teacher")
    served.write_observables(folder / "observables")
    return folder


@pytest.fixture
def copied(folders: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(folders, tmp_path / "copied"))


def audit(folder: Path) -> dict[str, tuple[bool, str]]:
    verdict = audit_student(folder / "student", folder / "teacher", folder / "observables", folder)
    facts = read_json(folder / "verdict.json")
    assert facts["clean"] == verdict.clean == all(check["passed"] for check in facts["checks"])
    page = (folder / "verdict.html").read_text()
    for check in verdict.checks:
        assert check.name.replace("'", "&#x27;") in page
    if not verdict.clean:
        with pytest.raises(ModelError, match="the student may not be served"):
            verdict.require_clean()
    return {check.name: (check.passed, check.detail) for check in verdict.checks}


def test_a_student_is_clean(folders: Path) -> None:
    found = audit(folders)
    assert all(passed for passed, _ in found.values()), found
    assert list(found) == [
        "columns", "state dict", "teacher's weights", "signature", "exported program", "poison"
    ]  # fmt: skip
    _, inputs = found["exported program"]
    assert all(field.lower() in inputs for field in Observable._fields)
    assert all(name in found["poison"][1] for name in ("content_item", "lt1", "label_start"))


def test_a_verdict_clears_the_student_that_it_is_about(copied: Path) -> None:
    audit(copied)
    require_cleared(copied, copied / "student")
    served.write_student(copied / "other", seed=7)
    with pytest.raises(ModelError, match="is about another student"):
        require_cleared(copied, copied / "other")
    facts = read_json(copied / "verdict.json")
    write_json(copied / "verdict.json", facts | {"clean": False})
    with pytest.raises(ModelError, match="was not clean"):
        require_cleared(copied, copied / "student")


def test_the_teacher_s_service_is_seen(copied: Path) -> None:
    ServiceSchema.of(TEACHER_SERVICE).write(copied / "student")
    passed, detail = audit(copied)["columns"]
    assert not passed
    assert "onboarding.content_item" in detail


def test_a_column_that_no_contract_knows_is_seen(copied: Path) -> None:
    features = read_json(copied / "student" / "features.json")
    features["views"][0]["features"][0]["name"] = "next_item"
    write_json(copied / "student" / "features.json", features)
    check = student_audit.check_columns(copied / "student", copied / "observables")
    assert check == ("columns", False, "not of the contracts: user_profile.next_item")


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("service", "live_stream_v1", "is of service 'live_stream_v1'"),
        ("name", "profiles", "has no view 'profiles'"),
        ("entity", "item_id", "read by 'item_id', not by user_id"),
    ],
)
def test_another_service_view_or_entity_is_seen(copied: Path, key: str, value: str, said: str) -> None:
    features = read_json(copied / "student" / "features.json")
    (features if key == "service" else features["views"][0])[key] = value
    write_json(copied / "student" / "features.json", features)
    check = student_audit.check_columns(copied / "student", copied / "observables")
    assert not check.passed
    assert said in check.detail


def test_content_in_the_training_table_is_seen(copied: Path) -> None:
    path = copied / "observables" / "observables.parquet"
    rows = pq.read_table(path)
    pq.write_table(rows.append_column("content_item", pa.array([[1]] * len(rows))), path)
    assert audit(copied)["columns"] == (False, "the training table holds content_item")


def replace_weights(folder: Path, tensors: dict[str, Tensor]) -> None:
    facts = read_json(folder / "config.json")
    facts["sha256"] = save_tensors(folder / "model.safetensors", tensors)
    write_json(folder / "config.json", facts)


def test_parameters_of_the_teacher_are_seen(copied: Path) -> None:
    own = {name: x for name, x in load_tensors(copied / "teacher").items() if name.startswith("hae.query")}
    replace_weights(copied / "student", load_tensors(copied / "student") | own)
    found = audit(copied)
    assert not found["state dict"][0]
    assert "hae.query" in found["state dict"][1]
    assert not found["teacher's weights"][0]
    assert not found["student"][0]


def test_weights_of_the_teacher_under_another_name_are_seen(copied: Path) -> None:
    student, teacher = load_tensors(copied / "student"), load_tensors(copied / "teacher")
    same = [
        (mine, theirs)
        for mine in student
        for theirs in teacher
        if theirs.startswith("hae.")
        and mine.startswith("sfe.")
        and theirs.endswith("weight")
        and student[mine].shape == teacher[theirs].shape
        and student[mine].ndim == 2
    ]
    mine, theirs = same[0]
    replace_weights(copied / "student", student | {mine: teacher[theirs]})
    found = audit(copied)
    assert found["state dict"][0]
    assert found["teacher's weights"] == (False, f"in the student: {mine} is {theirs}")


class Leaking(Student):
    """Takes content besides."""

    def forward(self, observable: Observable, seen: Content) -> Tensor:
        return super().forward(observable) + seen.number_BDN2.sum()


def test_an_argument_for_content_is_seen() -> None:
    check = student_audit.check_signature(Leaking(toy.architecture()))
    assert check == ("signature", False, "forward takes observable, seen")


class Constant(Student):
    """Holds a tensor that is no parameter."""

    def __init__(self, architecture) -> None:
        super().__init__(architecture)
        self.hidden = [torch.ones(2)]

    def forward(self, observable: Observable) -> Tensor:
        return super().forward(observable) + self.hidden[0]


def test_a_constant_in_the_program_is_seen() -> None:
    model = Constant(toy.architecture()).eval()
    observable = observables(toy.columns(4, toy.catalogue()), toy.catalogue(), model.architecture)
    check = student_audit.check_program(model, observable)
    assert not check.passed
    assert "lifted_tensor" in check.detail


@pytest.mark.parametrize("column", ["content_engagement", "lt1"])
def test_columns_that_are_looked_at_are_seen(monkeypatch: pytest.MonkeyPatch, column: str) -> None:
    """Reading code that takes one number from where it must not."""

    def leaky(columns, catalogue, architecture) -> Observable:
        found = observables(columns, catalogue, architecture)
        if column not in columns:
            return found
        first = np.array([np.mean(value) if np.size(value) else 0 for value in columns[column]])
        return found._replace(number_BP=found.number_BP + torch.from_numpy(first).float()[:, None])

    monkeypatch.setattr(student_audit, "observables", leaky)
    torch.manual_seed(0)
    student = Student(toy.architecture()).eval()
    columns = toy.columns(4, toy.catalogue())
    assert not student_audit.check_poison(student, toy.catalogue(), columns).passed


def test_the_same_poison_reaches_the_teacher() -> None:
    items, architecture = toy.catalogue(), toy.architecture()
    columns = toy.columns(6, items)
    nothing = [None if row is None else np.full(len(row), np.nan) for row in columns["content_item"]]
    poisoned = columns | {"content_engagement": nothing}
    torch.manual_seed(0)
    teacher = Teacher(architecture).eval()
    with torch.no_grad():
        real_BH, poisoned_BH = (
            teacher(observables(each, items, architecture), content(each, items, architecture))
            for each in (columns, poisoned)
        )
    assert not torch.equal(real_BH[2:], poisoned_BH[2:])


def test_a_damaged_folder_is_no_verdict(copied: Path) -> None:
    (copied / "student" / "config.json").unlink()
    with pytest.raises(ModelError, match=r"config\.json"):
        audit(copied)
