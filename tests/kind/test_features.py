"""The feature store in the cluster: tables from events, rows in Redis; server and OCARM service read them."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from feedworks import images
from feedworks.contracts.features import USER_PROFILE

from .conftest import OURS, Models
from .jobs import Workplace
from .kubectl import ClusterError, explain, forwarded, kubectl
from .test_services import answered, ready

pytestmark = [pytest.mark.kind, pytest.mark.timeout(1200)]

FEATURES = [column.name for column in USER_PROFILE.features][:2]
USERS = list(range(20))
# In the server's pod, where the tables are: the newest row of each user.
NEWEST = f"""
import json, duckdb
rows = duckdb.sql('''
    select user_id, {", ".join(FEATURES)} from read_parquet('/features/tables/user_profile.parquet')
    where user_id < {len(USERS)} qualify row_number() over (partition by user_id order by event_time desc) = 1
''').fetchall()
print(json.dumps(rows, default=str))
"""


def run_job(cronjob: str, name: str, within_s: float = 300.0) -> str:
    """Run a job of a cron job now; return what it said."""
    kubectl("create", "job", name, f"--from=cronjob/{cronjob}", namespace=OURS)
    succeeded, said = Workplace(OURS, Path(), images.CPU).end(name, within_s=within_s)
    if not succeeded:
        raise ClusterError(explain(OURS, f"job-name={name}"))
    return said


@pytest.fixture(scope="module")
def filled(listening: str, models: Models) -> Iterator[None]:
    """Redis with a row per user."""
    kubectl("rollout", "status", "statefulset/redis", "--timeout=180s", namespace=OURS, within_s=200)
    assert "wrote" in run_job("features-build", "build-1")
    assert "user_profile: " in run_job("features-materialize", "materialize-1")
    yield
    kubectl("delete", "job", "build-1", "materialize-1", namespace=OURS)


def test_the_feature_server_gives_the_newest_rows(filled: None) -> None:
    ready("features")
    query = {"features": [f"user_profile:{name}" for name in FEATURES], "entities": {"user_id": USERS}}
    with (
        forwarded(OURS, "service/features", 80) as address,
        httpx.Client(base_url=address, trust_env=False, timeout=60) as client,
    ):
        answer = client.post("/get-online-features", json=query)
        assert answer.status_code == 200, answer.text
        unknown = client.post("/get-online-features", json=query | {"features": ["nothing:nowhere"]})
        assert 400 <= unknown.status_code < 500, unknown.text
    names, results = answer.json()["metadata"]["feature_names"], answer.json()["results"]
    found = {name: each["values"] for name, each in zip(names, results, strict=True)}
    rows = json.loads(
        kubectl("exec", "deploy/features", "--", "python3", "-c", NEWEST, namespace=OURS).stdout
    )
    assert len(rows) > len(USERS) // 2
    for user, *values in rows:
        place = found["user_id"].index(user)
        assert [found[name][place] for name in FEATURES] == values


def test_the_ocarm_service_reads_rows_from_redis(filled: None) -> None:
    ready("feedworks-ocarm")
    bid = {"surface": 0, "bid_time": time.time_ns() // 1000}
    with forwarded(OURS, "service/feedworks-ocarm", 80) as address:
        answer = answered(address, "/predict", {"users": [{"user_id": user, **bid} for user in USERS]})
    states = [each["views"]["user_profile"]["state"] for each in answer["users"]]
    assert states.count("fresh") + states.count("stale") > len(USERS) // 2, states
