"""The packaged folder: what serving needs, a tag that names it, no way in for what only the teacher sees."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from feedworks.configuration import to_json
from feedworks.contracts.features import TEACHER_SERVICE
from feedworks.errors import DataError, ModelError
from feedworks.features.schema import ServiceSchema
from feedworks.ocarm.config import resolve
from feedworks.ocarm.packaging import FILES, content_tag, write_package
from feedworks.ocarm.predictor import Predictor
from feedworks.serving.package import seal
from feedworks.storage import read_json, write_json
from feedworks.training.checkpoint import load_tensors, read_tensors, save_tensors

from . import served, toy


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return served.write_model_package(tmp_path_factory.mktemp("package") / "model")


@pytest.fixture
def copied(package: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(package, tmp_path / "model"))


def write(folder: Path, student: Path, observables: Path, metrics=None) -> str:
    folder.mkdir()
    return write_package(folder, student, observables, resolve("tiny"), metrics or {})


def parts(package: Path) -> tuple[Path, Path]:
    folder = package.with_name("model-parts")
    return folder / "student", folder / "observables"


def test_the_folder_holds_what_the_card_says(package: Path) -> None:
    facts = read_json(package / "package.json")
    held = {path.name for path in package.iterdir()}
    assert held == {*FILES, "README.md"}
    assert set(facts["files"]) == held - {"package.json"}
    for name, digest in facts["files"].items():
        assert hashlib.sha256((package / name).read_bytes()).hexdigest() == digest
    card = (package / "README.md").read_text()
    for said in (
        facts["tag"],
        "2604.25839",
        "100 conversions",
        "| student |",
        "view ad_context",
        "samples.idle_days",
    ):
        assert said in card, said


def test_the_priors_are_those_of_the_training_split(package: Path) -> None:
    rows = pq.read_table(parts(package)[1] / "observables.parquet").to_pandas()
    rows = rows[rows["split"] == "train"]
    priors = read_json(package / "priors.json")
    assert priors["num_rows"] == len(rows) == 100
    assert priors["base_rate"] == pytest.approx({"lt1": rows["lt1"].mean(), "lt7": rows["lt7"].mean()})
    # Row 1 of the toy has no row in any view; row 0 has no history, but counts.
    assert priors["missing_share"] == {"user_profile": 0, "interaction_aggregates": 0.01, "ad_context": 0.01}


def test_equal_students_have_equal_tags_and_others_do_not(package: Path, tmp_path: Path) -> None:
    student, observables = parts(package)
    tag = read_json(package / "package.json")["tag"]
    assert write(tmp_path / "a", student, observables) == tag  # metrics do not change it
    assert write(tmp_path / "b", served.write_student(tmp_path / "other", seed=7), observables) != tag


def test_a_model_trained_with_the_teacher_s_service_is_refused(package: Path, tmp_path: Path) -> None:
    student = served.write_student(tmp_path / "student", schema=ServiceSchema.of(TEACHER_SERVICE))
    with pytest.raises(ModelError, match=r"onboarding\.content_item.*known only after the decision"):
        write(tmp_path / "model", student, parts(package)[1])


def test_a_checkpoint_with_parameters_of_the_teacher_is_refused(package: Path, tmp_path: Path) -> None:
    teacher = served.write_teacher(tmp_path / "teacher")
    served.SCHEMA.write(teacher)  # as if it had been trained with the student's service
    with pytest.raises(ModelError, match=r"parameters of the teacher \(hae\."):
        write(tmp_path / "model", teacher, parts(package)[1])


def test_another_catalogue_is_refused(package: Path, tmp_path: Path) -> None:
    observables = Path(shutil.copytree(parts(package)[1], tmp_path / "observables"))
    toy.catalogue(seed=5).write(observables)
    with pytest.raises(DataError, match="another catalogue"):
        write(tmp_path / "model", parts(package)[0], observables)


def edit_features(folder: Path, column: str) -> None:
    features = read_json(folder / "features.json")
    features["views"][1]["features"].append({"name": column, "type": "list<int64>"})
    write_json(folder / "features.json", features)


@pytest.mark.parametrize("sealed_again", [False, True])
@pytest.mark.parametrize("column", ["content_item", "content_time"])
def test_a_hand_edited_bundle_that_names_an_onboarding_column_is_refused(
    copied: Path, column: str, sealed_again: bool
) -> None:
    edit_features(copied, column)
    if sealed_again:
        (copied / "package.json").unlink()
        seal(copied, content_tag(copied))
    with pytest.raises(ModelError, match=f"interaction_aggregates.{column}.*known only after the decision"):
        Predictor.load(copied)


def test_a_training_only_view_under_another_name_is_refused(copied: Path) -> None:
    features = read_json(copied / "features.json")
    features["views"][0]["training_only"] = True
    write_json(copied / "features.json", features)
    with pytest.raises(ModelError, match=r"user_profile\.activity"):
        Predictor.load(copied)


@pytest.mark.parametrize("name", [name for name in FILES if name != "package.json"])
def test_a_changed_file_is_refused(copied: Path, name: str) -> None:
    content = bytearray((copied / name).read_bytes())
    content[-2] ^= 1
    (copied / name).write_bytes(bytes(content))
    with pytest.raises(ModelError, match=name):
        Predictor.load(copied)


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file_is_refused(copied: Path, name: str) -> None:
    (copied / name).unlink()
    with pytest.raises(ModelError, match=name):
        Predictor.load(copied)


@pytest.mark.parametrize("damage", ["teacher", "items", "priors", "horizons", "no features"])
def test_a_bundle_sealed_by_hand_must_still_fit_together(copied: Path, tmp_path: Path, damage: str) -> None:
    if damage == "teacher":
        served.write_teacher(copied)
        served.SCHEMA.write(copied)
    elif damage == "items":
        ids = read_tensors(copied / "items.safetensors")["item_id_I"]
        save_tensors(copied / "items.safetensors", {"item_id_I": ids[:-1]})
    elif damage == "priors":
        write_json(copied / "priors.json", {"num_rows": 1, "base_rate": {"lt1": 2.0}, "missing_share": {}})
    elif damage == "horizons":
        write_json(copied / "priors.json", {"num_rows": 1, "base_rate": {"lt30": 0.5}, "missing_share": {}})
    else:
        features = read_json(copied / "features.json")
        features["views"] = features["views"][:1]
        write_json(copied / "features.json", features)
    (copied / "package.json").unlink()
    seal(copied, "ocarm:by-hand")
    with pytest.raises(ModelError, match=r"another|fit|shares"):
        Predictor.load(copied)


def sealed_again(folder: Path) -> None:
    (folder / "package.json").unlink()
    seal(folder, content_tag(folder))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"service": "ocarm_student_v2"}, "is of service 'ocarm_student_v2', not of ocarm_student_v1"),
        ({"service": "live_stream_v1"}, "is of service 'live_stream_v1', not of ocarm_student_v1"),
        ({"name": "user_profile_v2"}, "ocarm_student_v1 has no view 'user_profile_v2'; it has user_profile"),
        ({"name": "item_profile"}, "ocarm_student_v1 has no view 'item_profile'"),
        ({"entity": "item_id"}, "user_profile is read by 'item_id', not by user_id"),
    ],
)
def test_a_bundle_sealed_by_hand_must_read_the_student_s_service(
    copied: Path, tmp_path: Path, change: dict[str, str], said: str
) -> None:
    features = read_json(copied / "features.json")
    (features if "service" in change else features["views"][0]).update(change)
    write_json(copied / "features.json", features)
    sealed_again(copied)
    with pytest.raises(ModelError, match=said):
        Predictor.load(copied)
    with pytest.raises(ModelError, match=said):  # nor may it be packaged
        write(tmp_path / "again", copied, parts(copied)[1])


@pytest.mark.parametrize("name", ["vectors.safetensors", "more/hook.py", ".hidden"])
@pytest.mark.parametrize("in_the_seal", [False, True])
def test_a_file_that_does_not_belong_to_a_model_is_refused(
    copied: Path, name: str, in_the_seal: bool
) -> None:
    (copied / name).parent.mkdir(exist_ok=True)
    (copied / name).write_text("anything")
    if in_the_seal:
        sealed_again(copied)
    with pytest.raises(ModelError, match=f"{name} is no file of such a model"):
        Predictor.load(copied)


def test_a_file_that_was_left_out_of_the_seal_is_refused(copied: Path) -> None:
    facts = read_json(copied / "package.json")
    del facts["files"]["priors.json"]
    write_json(copied / "package.json", facts)
    with pytest.raises(ModelError, match=r"does not name priors\.json"):
        Predictor.load(copied)


def test_a_model_in_the_store_of_bentoml_is_served(copied: Path) -> None:
    """BentoML writes a file of its own into it."""
    (copied / "model.yaml").write_text("name: ocarm")
    assert Predictor.load(copied).tag.startswith("ocarm:")


def test_weights_and_settings_are_those_of_the_student(package: Path) -> None:
    student, _ = parts(package)
    for name, value in load_tensors(student).items():
        assert np.array_equal(value.numpy(), load_tensors(package)[name].numpy())
    assert json.loads(read_json(package / "config.json")["config"]) == json.loads(to_json(toy.architecture()))
