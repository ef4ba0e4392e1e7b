"""What the demo asks: features as training sees them, answered by the model of a package."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from feedworks.contracts.synthetic_retention import write_synthetic_retention
from feedworks.ocarm import demo
from feedworks.ocarm.answering import Answering
from feedworks.ocarm.config import SamplesConfig
from feedworks.ocarm.predictor import Predictor
from feedworks.ocarm.request import query_type
from feedworks.ocarm.samples import build_samples

from . import served


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("demo") / "data"
    write_synthetic_retention(folder, num_users=100, num_days=40, seed=1)
    return folder


def test_it_shows_an_answer_by_the_model_and_one_without_features(data: Path, tmp_path: Path) -> None:
    predictor = Predictor.load(served.write_model_package(tmp_path / "model"))

    def post(path: str, body: dict[str, Any]) -> dict[str, Any]:
        assert path == "/predict"
        users = query_type(predictor.schema).model_validate(body).users

        async def answer() -> list[dict[str, Any]]:
            answering = Answering(predictor)
            try:
                return [found._asdict() for found in await answering.answer(users)]
            finally:
                await answering.close()

        return {"users": asyncio.run(answer()), "model_tag": predictor.tag}

    lines = demo.ask(post, data)
    assert predictor.tag in lines[1]
    assert "by model" in lines[2]
    assert "(" not in lines[2]
    assert "by base_rate (store:none)" in lines[3]
    assert "FEEDWORKS_FEATURE_STORE" in lines[4]


def test_the_features_are_the_latest_rows_of_the_feature_tables(data: Path, tmp_path: Path) -> None:
    build_samples(data, tmp_path / "samples", tmp_path / "tables", SamplesConfig())
    user, features = demo.latest_features(data)
    for view in served.SCHEMA.views:
        rows = pq.read_table(tmp_path / "tables" / f"{view.name}.parquet").to_pylist()
        last = [row for row in rows if row["user_id"] == user][-1]
        for each in view.features:
            assert features.get(each.name) == pytest.approx(last[each.name]), each.name
