"""The Spark form of the repository: the same join and the same rows as DuckDB, by one variable."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from feedworks.contracts.features import SERVICES, STUDENT_SERVICE
from feedworks.features.repo import tables_folder
from feedworks.features.training_set import point_in_time

from .conftest import ROOT
from .rows import DAY, HOUR, START, write
from .test_training_set import ask

pytestmark = pytest.mark.slow

USERS = [2, 1, 1, 9, 1, 1]
TIMES = [START, START, START + HOUR - 1, START, START - 1, START + 200 * DAY]
SCRIPT = """
import json, sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
import pandas as pd
from feedworks.features.materialize import materialize
from feedworks.features.repo import apply, open_store
from feedworks.features.training_set import quiet_stores

repo, users, times, start = Path(sys.argv[1]), *(json.loads(word) for word in sys.argv[2:])
said = {"first": apply(repo), "second": apply(repo)}
with open_store(repo) as store, quiet_stores():
    asked = pd.DataFrame({"user_id": users, "row": range(len(users))})
    asked["event_timestamp"] = pd.to_datetime(times, unit="us", utc=True)
    service = store.get_feature_service("ocarm_student_v1")
    found = store.get_historical_features(entity_df=asked, features=service).to_df().sort_values("row")
    said["joined"] = json.loads(found.to_json(orient="records"))
begin = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=start)
done = materialize(repo, begin, begin + timedelta(days=1), ["user_profile", "ad_context"])
said["rows"] = {name: each.num_rows for name, each in done.items()}
with open_store(repo) as store:
    answer = store.get_online_features(features=["user_profile:activity"], entity_rows=[{"user_id": 1}])
    said["activity"] = answer.to_dict()["activity"]
print("SAID " + json.dumps(said))
"""


def plain(value: Any) -> Any:
    """As Spark's frame goes through JSON: whole numbers beside nulls are floats there."""
    if isinstance(value, list):
        return [plain(each) for each in value]
    return pytest.approx(value) if isinstance(value, float) else value


def test_spark_joins_and_materialises_like_duckdb(spark: Path) -> None:
    folder = tables_folder(spark)
    for seed, table in enumerate(SERVICES[STUDENT_SERVICE]):
        write(table, folder, [1, 1, 2], [START, START + HOUR, START], seed, **PROFILE.get(table.name, {}))
    paths = os.pathsep.join([str(ROOT / "components"), str(ROOT / "kernels")])
    words = [str(spark), json.dumps(USERS), json.dumps(TIMES), str(START)]
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, *words],
        env={**os.environ, "PYTHONPATH": paths},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout.partition("SAID ")[2])
    assert "Created feature service ocarm_student_v1" in said["first"]
    assert said["second"] == "No changes to registry"
    expected = point_in_time(ask(USERS, TIMES), "at", folder, SERVICES[STUDENT_SERVICE]).to_pylist()
    names = list(expected[0])
    found = [{name: row[name] for name in names} for row in said["joined"]]
    assert found == [{name: plain(value) for name, value in row.items()} for row in expected]
    assert said["rows"] == {"user_profile": 2, "ad_context": 2}
    assert said["activity"] == [5]


PROFILE: dict[str, dict[str, Any]] = {"user_profile": {"activity": [4, 5, 6]}}
