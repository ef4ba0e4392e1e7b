"""The service as users have it: `bentoml serve` in a process of its own with a Redis, asked over HTTP."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import struct
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import redis
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families

from feedworks.errors import FeedworksError
from feedworks.features.local_redis import LocalRedis, running_redis
from feedworks.ocarm.predictor import Predictor
from feedworks.serving.server import running_server

from . import online, served, toy

USERS = range(100, 106)  # 101 has no row in any view
COLUMNS = toy.columns(len(USERS), toy.catalogue())
ROWS = served.rows_of(COLUMNS, USERS)
VIEWS = [view.name for view in served.SCHEMA.views]
ROW_US = toy.START_US + 40 * toy.DAY_US
BID_US = ROW_US + 3600 * 1_000_000
DEADLINE_MS = 400  # the machine of a test is busy; what is measured is that it holds
GOOD = {"user_id": 100, "surface": 3, "bid_time": BID_US}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return served.write_model_package(tmp_path_factory.mktemp("service") / "model")


@pytest.fixture(scope="module")
def store() -> Iterator[LocalRedis]:
    with running_redis() as server:
        assert online.load(server.url, ROWS, ROW_US) == 15
        yield server


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("service") / "log"


@pytest.fixture(scope="module")
def client(model: Path, store: LocalRedis, log: Path) -> Iterator[httpx.Client]:
    environment = online.environment(
        model,
        FEEDWORKS_FEATURE_STORE=f"packed+{store.url}",
        FEEDWORKS_FEATURE_DEADLINE_MS=str(DEADLINE_MS),
    )
    with (
        running_server(online.TARGET, environment, log) as address,
        httpx.Client(base_url=address, trust_env=False, timeout=60) as opened,
    ):
        yield opened


@pytest.fixture(scope="module")
def predictor(model: Path) -> Predictor:
    return Predictor.load(model)


def ask(client: httpx.Client, *users: dict[str, Any]) -> list[dict[str, Any]]:
    answer = client.post("/predict", json={"users": list(users)})
    assert answer.status_code == 200, answer.text
    found: list[dict[str, Any]] = answer.json()["users"]
    return found


def expected(predictor: Predictor, user_id: int) -> dict[str, float]:
    features = {
        each.name: [ROWS[user_id].get(view.name, {}).get(each.name)]
        for view in served.SCHEMA.views
        for each in view.features
    }
    request = {"user_id": [user_id], "bid_time": np.array([BID_US]), "surface": [3], "ad_item": [None]}
    return dict(zip(predictor.horizons, predictor.predict(request | features)[0].tolist(), strict=True))


def test_users_from_the_store(client: httpx.Client, predictor: Predictor) -> None:
    answers = ask(client, *(GOOD | {"user_id": user} for user in USERS))
    for user, answer in zip(USERS, answers, strict=True):
        assert answer["user_id"] == user
        if user == 101:
            assert (answer["source"], answer["degraded"]) == ("base_rate", True)
            assert answer["reasons"] == [f"{view}:missing" for view in VIEWS]
        else:
            assert (answer["source"], answer["degraded"], answer["reasons"]) == ("model", False, [])
            assert answer["probability"] == pytest.approx(expected(predictor, user), abs=1e-6)
            assert answer["views"] == {view: {"state": "fresh", "age_s": 3600.0} for view in VIEWS}


def test_the_tag_names_the_model(client: httpx.Client, predictor: Predictor) -> None:
    assert client.post("/predict", json={"users": [GOOD]}).json()["model_tag"] == predictor.tag


def test_features_that_come_with_the_request(client: httpx.Client, predictor: Predictor) -> None:
    stored, given = ask(
        client, GOOD | {"user_id": 104}, GOOD | {"user_id": 9, "features": served.as_json(ROWS[104])}
    )
    assert given["probability"] == pytest.approx(stored["probability"], abs=1e-6)
    assert given["views"] == {view: {"state": "given", "age_s": None} for view in VIEWS}


BAD = {
    "no body": b"",
    "cut off": b'{"users": [{"user_id": 1',
    "not utf-8": b'{"users": ["\xff"]}',
    "nested deeply": b"[" * 200_000,
    "a list": b"[]",
    "null": b"null",
    "no users": b'{"users": []}',
    "misspelt": b'{"user": []}',
    "no surface": b'{"users": [{"user_id": 1}]}',
    "text for a number": b'{"users": [{"user_id": "1", "surface": 3}]}',
    "NaN": b'{"users": [{"user_id": NaN, "surface": 3}]}',
    "id of 10,000 digits": b'{"users": [{"user_id": ' + b"9" * 10_000 + b', "surface": 3}]}',
    "too many": json.dumps({"users": [GOOD] * 257}).encode(),
    "content": json.dumps({"users": [GOOD | {"features": {"content_item": [1]}}]}).encode(),
    "lists of two lengths": json.dumps(
        {"users": [GOOD | {"features": {"history_item": [1], "history_time": []}}]}
    ).encode(),
}


@pytest.mark.parametrize("body", BAD.values(), ids=BAD.keys())
def test_a_bad_request_gets_a_message(client: httpx.Client, body: bytes) -> None:
    answer = client.post("/predict", content=body, headers={"content-type": "application/json"})
    assert answer.status_code == 400, answer.text
    assert answer.json()["error"]
    assert all(detail["msg"] and "loc" in detail for detail in answer.json()["detail"])
    assert len(answer.content) < 4000


def test_content_is_refused_with_the_reason(client: httpx.Client) -> None:
    answer = client.post("/predict", json={"users": [GOOD | {"features": {"content_item": [1]}}]})
    assert "content_item: known only after the decision" in answer.json()["error"]


NUMBERS = st.one_of(
    st.integers(-5, 20), st.integers(-(2**70), 2**70), st.floats(allow_nan=False), st.none(), st.booleans()
)
VALUES = st.recursive(
    NUMBERS | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=3), inner, max_size=2),
    max_leaves=5,
)
LISTS = st.integers(0, 5).flatmap(
    lambda size: st.fixed_dictionaries(
        {
            name: st.lists(values, min_size=size, max_size=size)
            for name, values in {
                "history_item": st.integers(0, 2**63 - 1),
                "history_category": st.integers(0, 2**63 - 1),
                "history_surface": st.integers(0, 15),
                "history_engagement": st.floats(0, 1),
                "history_time": st.integers(0, 2**63 - 1),
            }.items()
        },
    )
)
COUNTS = st.fixed_dictionaries(
    {},
    optional={
        "num_events_1d": st.integers(0, 2**63 - 1),
        "aggregated_time": st.integers(0, 2**63 - 1),
        "tenure_days": st.floats(0, 1e38),
        "mean_engagement_7d": st.floats(0, 1),
        "segment": st.integers(0, 255),
    },
)
# Most names and types fit, so that what is drawn reaches the model.
DRAWN = st.fixed_dictionaries(
    {"user_id": st.integers(0, 2**63 - 1) | st.sampled_from(list(USERS)), "surface": st.integers(0, 15)},
    optional={
        "ad_item": st.none() | st.integers(0, 2**63 - 1),
        "bid_time": st.integers(0, 4_102_444_800_000_000),
        "features": st.builds(lambda lists, counts: lists | counts, LISTS, COUNTS),
        "surface_of": VALUES,
    },
)


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
@given(users=st.lists(DRAWN | VALUES, max_size=3))
def test_no_body_is_an_error_of_the_service(client: httpx.Client, users: list[Any]) -> None:
    body = json.dumps({"users": users}).encode()
    answer = client.post("/predict", content=body, headers={"content-type": "application/json"})
    assert answer.status_code in (200, 400), answer.text
    if answer.status_code == 400:
        assert answer.json()["error"]
        return
    for found in answer.json()["users"]:
        assert all(0 <= p <= 1 for p in found["probability"].values())
        assert found["degraded"] == bool(found["reasons"])
        assert "model:failed" not in found["reasons"]


@pytest.mark.parametrize("path", ["/healthz", "/livez", "/readyz"])
def test_health(client: httpx.Client, path: str) -> None:
    assert client.get(path).status_code == 200


def test_other_media_types_and_huge_bodies_are_refused(client: httpx.Client) -> None:
    headers = {"content-type": "application/vnd.bentoml+pickle"}
    assert client.post("/predict", content=b"{}", headers=headers).status_code == 415
    headers = {"content-type": "application/json"}
    assert client.post("/predict", content=b" " * (9 << 20), headers=headers).status_code == 413


def test_the_endpoint_is_documented(client: httpx.Client) -> None:
    pages = client.get("/docs.json").json()
    assert set(pages["paths"]["/predict"]) == {"post"}
    properties = [set(s.get("properties", {})) for s in pages["components"]["schemas"].values()]
    assert {"user_id", "surface", "ad_item", "bid_time", "features"} in properties
    assert {"user_id", "probability", "source", "degraded", "reasons", "views"} in properties


def samples(client: httpx.Client) -> dict[str, float]:
    return {
        "/".join([sample.name, *sample.labels.values()]): sample.value
        for family in text_string_to_metric_families(client.get("/metrics").text)
        if family.name.startswith("ocarm_")
        for sample in family.samples
    }


def test_metrics_count_what_was_asked(client: httpx.Client) -> None:
    before = samples(client)
    ask(client, GOOD)
    ask(client, GOOD, GOOD | {"user_id": 101})
    client.post("/predict", content=b"{}", headers={"content-type": "application/json"})
    after = samples(client)
    grown = {name: after[name] - before.get(name, 0) for name in after if after[name] != before.get(name, 0)}
    assert grown["ocarm_requests_total/ok"] == 1
    assert grown["ocarm_requests_total/degraded"] == 1
    assert grown["ocarm_requests_total/refused"] == 1
    assert grown["ocarm_degraded_users_total/ad_context:missing"] == 1
    assert grown["ocarm_feature_reads_total/ok"] == 2
    assert grown["ocarm_feature_age_seconds_count/ad_context"] == 2
    assert grown["ocarm_latency_seconds_count"] == 2


def test_a_damaged_row_is_missing_and_nothing_else_is_lost(client: httpx.Client, store: LocalRedis) -> None:
    with redis.Redis.from_url(store.url) as connection:
        keys = [key for key in connection.keys("*:ad_context:*") if key.endswith(struct.pack("<q", 103))]
        assert len(keys) == 1
        connection.set(keys[0], b"\0" * 40)
    damaged, whole = ask(client, GOOD | {"user_id": 103}, GOOD | {"user_id": 104})
    assert (damaged["source"], damaged["reasons"]) == ("model", ["ad_context:missing"])
    assert (whole["source"], whole["reasons"]) == ("model", [])
    online.load(store.url, ROWS, ROW_US)
    assert ask(client, GOOD | {"user_id": 103})[0]["reasons"] == []


def test_a_store_that_dies_and_comes_back(client: httpx.Client, store: LocalRedis) -> None:
    """Killed in mid-load: no error, degraded answers within the deadline, whole answers soon after."""
    assert ask(client, GOOD)[0]["reasons"] == []
    store.stop()
    try:
        for _ in range(20):
            start_s = time.perf_counter()
            (answer,) = ask(client, GOOD)
            assert time.perf_counter() - start_s < DEADLINE_MS / 1e3 + 0.3
            assert (answer["source"], answer["degraded"]) == ("base_rate", True)
            assert answer["reasons"][0] in ("store:down", "store:off", "store:slow")
        assert answer["reasons"] == ["store:off"]
        assert client.get("/readyz").status_code == 200
    finally:
        store.start()
    back_s = time.perf_counter()
    assert ask(client, GOOD)[0]["degraded"]  # it comes back empty
    online.load(store.url, ROWS, ROW_US)
    while ask(client, GOOD)[0]["degraded"]:
        assert time.perf_counter() - back_s < 5
        time.sleep(0.02)


def test_a_store_that_hangs(client: httpx.Client, store: LocalRedis) -> None:
    """Stopped, not gone: connections stay open and nobody answers."""
    with redis.Redis.from_url(store.url) as connection:
        process = connection.info("server")["process_id"]
    os.kill(process, signal.SIGSTOP)
    try:
        found = []
        for _ in range(10):
            start_s = time.perf_counter()
            (answer,) = ask(client, GOOD)
            assert time.perf_counter() - start_s < DEADLINE_MS / 1e3 + 0.3
            assert answer["source"] == "base_rate"
            found += answer["reasons"]
        assert set(found) == {"store:slow", "store:off"}
    finally:
        os.kill(process, signal.SIGCONT)
    back_s = time.perf_counter()
    while ask(client, GOOD)[0]["degraded"]:
        assert time.perf_counter() - back_s < 5
        time.sleep(0.02)


def test_bad_requests_and_a_dead_store_leave_no_trace_in_the_log(client: httpx.Client, log: Path) -> None:
    client.post("/predict", content=b"{}", headers={"content-type": "application/json"})
    said = log.read_text()
    assert "Traceback" not in said
    assert "the feature store is left alone" in said
    assert "the feature store is back" in said


@pytest.mark.parametrize(
    ("broken", "said"),
    [
        ({"FEEDWORKS_MODEL_DIR": "nowhere"}, "is missing"),
        ({"FEEDWORKS_FEATURE_DEADLINE_MS": "0"}, "expected 1 to 1000 milliseconds"),
        ({"FEEDWORKS_FEATURE_STORE": "memcached://x"}, "packed+redis"),
        (
            {"FEEDWORKS_FEATURE_STORE": "x://", "FEEDWORKS_FEATURE_STORE_OPEN": "no.such:thing"},
            "module:function",
        ),
    ],
)
@pytest.mark.slow
def test_a_service_that_cannot_answer_ends_with_one_line(
    model: Path, tmp_path: Path, broken: dict[str, str], said: str
) -> None:
    log = tmp_path / "log"
    with (
        pytest.raises(FeedworksError, match="the service ended with code 1"),
        running_server(online.TARGET, online.environment(model) | broken, log),
    ):
        pass
    lines = [line for line in log.read_text().splitlines() if line.startswith("Error: ")]
    assert len(lines) == 1
    assert said in lines[0]
    assert "Traceback" not in log.read_text()


# BentoML's own import; in the tests above it happens in the server's process.
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_the_method_answers_what_the_route_answers(
    model: Path, predictor: Predictor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FEEDWORKS_MODEL_DIR", str(model))
    monkeypatch.delenv("FEEDWORKS_FEATURE_STORE", raising=False)
    from feedworks.ocarm.service import OcarmService, Query

    threads = torch.get_num_threads()

    async def both() -> Any:
        service = OcarmService()
        try:
            features = served.as_json(ROWS[100])
            return await service.predict(Query(users=[{**GOOD, "features": features}, GOOD]))
        finally:
            await service.close()
            torch.set_num_threads(threads)

    given, stored = asyncio.run(both()).users
    assert given.probability == pytest.approx(expected(predictor, 100), abs=1e-6)
    assert stored.reasons == ["store:none"]
