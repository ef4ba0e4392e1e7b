"""The service as users have it: `bentoml serve` in a process of its own, asked over HTTP."""

from __future__ import annotations

import asyncio
import json
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from prometheus_client.parser import text_string_to_metric_families
from pydantic import ValidationError

from feedworks.errors import FeedworksError
from feedworks.recochain.recommender import Recommender, Request
from feedworks.serving.server import running_server

ROOT = Path(__file__).resolve().parents[3]
TARGET = "feedworks.recochain.service:RecoChainService"
UNKNOWN = 10**6


def environment(model: Path) -> dict[str, str]:
    sources = os.pathsep.join([str(ROOT / "components"), str(ROOT / "kernels")])
    return {"PYTHONPATH": sources, "FEEDWORKS_MODEL_DIR": str(model)}


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("service") / "log"


@pytest.fixture(scope="module")
def address(packaged_model: Path, log: Path) -> Iterator[str]:
    """A running service of the packaged model."""
    with running_server(TARGET, environment(packaged_model), log) as running:
        yield running


@pytest.fixture(scope="module")
def client(address: str) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=address, trust_env=False, timeout=60) as opened:
        yield opened


@pytest.fixture(scope="module")
def recommender(packaged_model: Path) -> Recommender:
    return Recommender.load(packaged_model, "cpu")


@pytest.fixture(scope="module")
def width(recommender: Recommender) -> int:
    return recommender.vector_width


def expected(recommender: Recommender, request: Request) -> dict[str, Any]:
    response = recommender.recommend([request])[0]
    items = [{"item_id": i.item_id, "score": i.score, "sid": list(i.sid)} for i in response.items]
    return {
        "items": items,
        "skipped": response.skipped,
        "fallback": response.fallback,
        "model_tag": recommender.tag,
    }


def assert_same(answer: dict[str, Any], wanted: dict[str, Any]) -> None:
    """Equal but for the last bits of scores: how rows are batched decides the order of float sums."""
    scores = [item.pop("score") for item in answer["items"]]
    assert scores == pytest.approx([item.pop("score") for item in wanted["items"]], abs=1e-4)
    assert answer == wanted


@pytest.mark.parametrize(
    "body",
    [
        {"history": [1, 2, 3]},
        {"history": [5], "k": 1},
        {"history": [7, 7, 8, 9] * 600, "k": 20},
        {"history": [3, UNKNOWN, 4, -1, UNKNOWN], "k": 5},
    ],
    ids=["plain", "one", "long", "unknown ids"],
)
def test_it_answers_what_the_model_says(
    client: httpx.Client, recommender: Recommender, body: dict[str, Any]
) -> None:
    answer = client.post("/recommend", json=body)
    assert answer.status_code == 200
    request = Request(body["history"], body.get("k", 10))
    assert len(answer.json()["items"]) == request.k
    assert answer.json()["skipped"] == [item for item in body["history"] if item in (UNKNOWN, -1)]
    assert_same(answer.json(), expected(recommender, request))


@pytest.mark.parametrize("history", [[], [UNKNOWN, UNKNOWN + 1]])
def test_without_a_known_item_it_says_that_it_falls_back(client: httpx.Client, history: list[int]) -> None:
    answer = client.post("/recommend", json={"history": history, "k": 4}).json()
    assert answer["fallback"] == "popularity"
    assert answer["skipped"] == history
    counts = [item["score"] for item in answer["items"]]
    assert counts == sorted(counts, reverse=True)
    assert len(counts) == 4


def test_an_unseen_item_counts_if_its_vector_is_given(
    client: httpx.Client, recommender: Recommender, width: int
) -> None:
    vector = [1.0 if place % 3 else -0.5 for place in range(width)]
    body = {"history": [4, UNKNOWN], "k": 5, "vectors": {str(UNKNOWN): vector}}
    answer = client.post("/recommend", json=body).json()
    assert answer["skipped"] == []
    assert_same(answer, expected(recommender, Request([4, UNKNOWN], 5, {UNKNOWN: vector})))


GOOD = b'{"history": [1, 2], "k": 3}'
BAD = {
    "no body": b"",
    "cut off": GOOD[:-4],
    "not json": b"history=1",
    "not utf-8": b'{"history": ["\xff\xfe"]}',
    "lone surrogate": rb'{"history": [], "\ud800": 1}',
    "nested deeply": b"[" * 200_000,
    "null": b"null",
    "a list": b"[1, 2]",
    "no history": b'{"k": 3}',
    "misspelt": b'{"history": [1], "K": 3}',
    "history is null": b'{"history": null}',
    "history is a number": b'{"history": 3}',
    "id is text": b'{"history": ["1"]}',
    "id is a fraction": b'{"history": [1.5]}',
    "id is true": b'{"history": [true]}',
    "id is NaN": b'{"history": [NaN]}',
    "id beyond 64 bits": b'{"history": [9223372036854775808]}',
    "id of 10,000 digits": b'{"history": [' + b"9" * 10_000 + b"]}",
    "too many ids": json.dumps({"history": [1] * 10_001}).encode(),
    "many wrong ids": json.dumps({"history": ["1"] * 10_000}).encode(),
    "k is 0": b'{"history": [1], "k": 0}',
    "k is negative": b'{"history": [1], "k": -10}',
    "k beyond the beam": b'{"history": [1], "k": 21}',
    "k is huge": b'{"history": [1], "k": 1' + b"0" * 300 + b"}",
    "k is a fraction": b'{"history": [1], "k": 2.5}',
    "k is null": b'{"history": [1], "k": null}',
    "vectors is a list": b'{"history": [1], "vectors": [[1.0]]}',
    "vector of no id": b'{"history": [1], "vectors": {"x": [1.0]}}',
    "vector too short": b'{"history": [1000000], "vectors": {"1000000": [1.0]}}',
    "vector of a known item too short": b'{"history": [1], "vectors": {"1": [1.0]}}',
    "vector of text": b'{"history": [1000000], "vectors": {"1000000": ["a"]}}',
}


@pytest.mark.parametrize("body", BAD.values(), ids=BAD.keys())
def test_a_bad_request_gets_a_message(client: httpx.Client, body: bytes) -> None:
    answer = client.post("/recommend", content=body, headers={"content-type": "application/json"})
    assert answer.status_code == 400, answer.text
    assert answer.json()["error"]
    assert all(detail["msg"] and "loc" in detail for detail in answer.json()["detail"])
    assert len(answer.content) < 2000


@pytest.mark.parametrize("value", ["NaN", "Infinity", "-Infinity", "1e400", "1e39", "9" * 400, "true"])
def test_a_vector_holds_finite_float32_numbers(client: httpx.Client, width: int, value: str) -> None:
    numbers = ", ".join([value] + ["0.5"] * (width - 1))
    body = f'{{"history": [{UNKNOWN}], "vectors": {{"{UNKNOWN}": [{numbers}]}}}}'
    answer = client.post("/recommend", content=body, headers={"content-type": "application/json"})
    assert answer.status_code == 400, answer.text


@pytest.mark.parametrize("value", [0.0, 1e38, 1e-45])
def test_extreme_vectors_are_answered(client: httpx.Client, width: int, value: float) -> None:
    body = {"history": [1, UNKNOWN], "vectors": {str(UNKNOWN): [value] * width}}
    answer = client.post("/recommend", json=body)
    assert answer.status_code == 200
    assert len(answer.json()["items"]) == 10


@pytest.mark.parametrize(
    "kind", ["text/plain", "application/vnd.bentoml+pickle", "multipart/form-data; boundary=x", ""]
)
def test_only_json_is_read(client: httpx.Client, kind: str) -> None:
    answer = client.post("/recommend", content=GOOD, headers={"content-type": kind})
    assert answer.status_code == 415
    assert "application/json" in answer.json()["error"]


def test_a_second_content_type_does_not_slip_through(client: httpx.Client) -> None:
    headers = [("content-type", "application/vnd.bentoml+pickle"), ("content-type", "application/json")]
    assert client.post("/recommend", content=GOOD, headers=headers).status_code == 415


@pytest.mark.parametrize("chunked", [False, True])
def test_a_huge_body_is_refused(client: httpx.Client, chunked: bool) -> None:
    block = b" " * 65_536
    content = iter([block] * 100) if chunked else block * 100
    answer = client.post("/recommend", content=content, headers={"content-type": "application/json"})
    assert answer.status_code == 413
    assert "bytes" in answer.json()["error"]


def test_wrong_paths_and_methods(client: httpx.Client) -> None:
    assert client.get("/recommend").status_code == 405
    assert client.post("/nothing", content=GOOD).status_code == 404


def test_clients_at_once_each_get_their_own_answer(address: str, recommender: Recommender) -> None:
    """24 clients, every sixth of them bad; the good ones in the same batch do not notice."""
    bodies = [{"history": [1 + client, 40 - client], "k": 1 + client % 10} for client in range(24)]
    for body in bodies[::6]:
        body["k"] = -1

    async def ask() -> list[httpx.Response]:
        async with httpx.AsyncClient(base_url=address, trust_env=False, timeout=60) as client:
            return await asyncio.gather(*(client.post("/recommend", json=body) for body in bodies * 3))

    for answer, body in zip(asyncio.run(ask()), bodies * 3, strict=True):
        if body["k"] < 0:
            assert answer.status_code == 400
        else:
            assert answer.status_code == 200
            assert_same(answer.json(), expected(recommender, Request(body["history"], body["k"])))


def test_clients_that_leave_do_not_stop_the_service(address: str, client: httpx.Client) -> None:
    host, port = address.removeprefix("http://").split(":")
    head = b"POST /recommend HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: "
    for sent in (b"28\r\n\r\n" + GOOD, b"28\r\n\r\n" + GOOD[:5], b"28\r\n", b"garbage\r\n\r\n"):
        for _ in range(5):
            with socket.create_connection((host, int(port))) as connection:
                connection.sendall(head + sent)
    assert client.post("/recommend", content=GOOD).status_code == 200


def samples(client: httpx.Client) -> dict[str, float]:
    families = text_string_to_metric_families(client.get("/metrics").text)
    return {
        "/".join([sample.name, *sample.labels.values()]): sample.value
        for family in families
        if family.name.startswith("recochain_")
        for sample in family.samples
    }


def test_metrics_count_what_was_asked(client: httpx.Client) -> None:
    for body in ({"history": [1]}, {"history": []}, {"history": [1, UNKNOWN]}):
        client.post("/recommend", json=body)
    before = samples(client)
    for body in ({"history": [1]}, {"history": []}, {"history": [1, UNKNOWN, UNKNOWN]}):
        client.post("/recommend", json=body)
    after = samples(client)
    grown = {name: after[name] - before[name] for name in after if after[name] != before[name]}
    assert grown["recochain_requests_total/ok"] == 2
    assert grown["recochain_requests_total/fallback"] == 1
    assert grown["recochain_skipped_ids_total"] == 2
    assert grown["recochain_latency_seconds_count"] == 3
    assert grown["recochain_batch_size_sum"] == 3


@pytest.mark.parametrize("path", ["/healthz", "/livez", "/readyz"])
def test_health(client: httpx.Client, path: str) -> None:
    assert client.get(path).status_code == 200


def test_the_endpoint_is_documented(client: httpx.Client) -> None:
    pages = client.get("/docs.json").json()
    assert set(pages["paths"]["/recommend"]) == {"post"}
    schemas = pages["components"]["schemas"]
    properties = [set(schema.get("properties", {})) for schema in schemas.values()]
    assert {"history", "k", "vectors"} in properties
    assert {"items", "skipped", "fallback", "model_tag"} in properties
    assert {"item_id", "score", "sid"} in properties


def test_bad_requests_leave_no_trace_in_the_log(client: httpx.Client, log: Path) -> None:
    client.post("/recommend", content=b"{}")
    assert "Traceback" not in log.read_text()


@pytest.mark.parametrize("damage", ["missing", "cut", "another config"])
def test_a_broken_model_ends_the_start_with_one_line(
    packaged_model: Path, tmp_path: Path, damage: str
) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    for file in packaged_model.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    if damage == "missing":
        (folder / "catalogue.safetensors").unlink()
    elif damage == "cut":
        weights = folder / "model.safetensors"
        weights.write_bytes(weights.read_bytes()[:-100])
    else:
        (folder / "config.json").write_text("{}")
    log = tmp_path / "log"
    with (
        pytest.raises(FeedworksError, match="the service ended with code 1"),
        running_server(TARGET, environment(folder), log),
    ):
        pass
    lines = [line for line in log.read_text().splitlines() if line.startswith("Error: ")]
    assert len(lines) == 1
    assert str(folder) in lines[0]
    assert "Traceback" not in log.read_text()


# BentoML's own import; in the tests above it happens in the server's process.
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_the_method_answers_what_the_route_answers(
    packaged_model: Path, recommender: Recommender, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FEEDWORKS_MODEL_DIR", str(packaged_model))
    from feedworks.recochain.service import Query, RecoChainService

    threads = torch.get_num_threads()
    service = RecoChainService()
    try:
        answer = asyncio.run(service.recommend(Query(history=[1, UNKNOWN], k=3)))
        with pytest.raises(ValidationError, match="at most"):
            asyncio.run(service.recommend(Query(history=[1], k=21)))
    finally:
        service.close()
        torch.set_num_threads(threads)
    assert_same(answer.model_dump(mode="json"), expected(recommender, Request([1, UNKNOWN], 3)))
