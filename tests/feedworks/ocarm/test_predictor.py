"""The packaged student predicts what the trained one predicts, whatever the columns come from."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from feedworks.errors import DataError
from feedworks.ocarm.data import observables
from feedworks.ocarm.predictor import MAX_ROWS, Predictor, load_student

from . import served, toy


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return served.write_model_package(tmp_path_factory.mktemp("predictor") / "model", drop=["user_profile"])


@pytest.fixture(scope="module")
def predictor(package: Path) -> Predictor:
    return Predictor.load(package)


def test_it_predicts_as_the_student_on_the_training_table(package: Path, predictor: Predictor) -> None:
    parts = package.with_name("model-parts")
    rows = pq.read_table(parts / "observables" / "observables.parquet")
    columns = {name: rows[name] for name in rows.column_names}
    student = load_student(parts / "student")
    with torch.no_grad():
        logit_BH = student(observables(columns, toy.catalogue(), student.architecture))
    p_BH = predictor.predict(columns)
    np.testing.assert_allclose(p_BH, logit_BH.double().sigmoid().numpy(), rtol=1e-6)
    assert p_BH.shape == (served.NUM_ROWS, 2)
    assert predictor.horizons == ("lt1", "lt7")
    assert len(np.unique(p_BH.round(6))) > served.NUM_ROWS


def test_many_rows_go_in_pieces(predictor: Predictor) -> None:
    columns = toy.columns(20, toy.catalogue())
    times = MAX_ROWS // 20 + 5
    many = {
        name: list(values) * times if isinstance(values, list) else np.tile(values, times)
        for name, values in columns.items()
    }
    p_BH = predictor.predict(many)
    np.testing.assert_allclose(p_BH, np.tile(predictor.predict(columns), (times, 1)), rtol=1e-5)
    assert predictor.predict({name: values[:0] for name, values in columns.items()}).shape == (0, 2)


def test_what_the_training_rows_say(predictor: Predictor) -> None:
    assert predictor.never_seen == {"user_profile"}
    assert ((predictor.base_rate_H > 0) & (predictor.base_rate_H < 1)).all()


def test_a_missing_column_is_named(predictor: Predictor) -> None:
    columns = toy.columns(3, toy.catalogue())
    del columns["history_time"]
    with pytest.raises(DataError, match="history_time"):
        predictor.predict(columns)
