"""The service as users have it: `bentoml serve` in a process of its own, asked over HTTP."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import psutil
import pytest
import torch
from prometheus_client.parser import text_string_to_metric_families

from feedworks.errors import FeedworksError
from feedworks.mari.client import Client, ServiceError
from feedworks.mari.request import RequestError, RequestReader
from feedworks.mari.schema import RankerSchema
from feedworks.mari.wire import Wire, pack_request, unpack_scores
from feedworks.serving.server import running_server

from .asked import MAX_CANDIDATES, SCHEMA, draw, listed, scores_of, seeded_ranker, write_package
from .test_request import WRONG as WRONG_VALUES
from .test_request import WRONG_JSON, body_of
from .test_wire import BODY
from .test_wire import WRONG as WRONG_BYTES

ROOT = Path(__file__).resolve().parents[3]
TARGET = "feedworks.mari.service:MariService"
MODEL = seeded_ranker()
BYTES = {"content-type": "application/octet-stream"}
JSON = {"content-type": "application/json"}


def environment(model: Path) -> dict[str, str]:
    sources = os.pathsep.join([str(ROOT / "components"), str(ROOT / "kernels")])
    return {"PYTHONPATH": sources, "FEEDWORKS_MODEL_DIR": str(model), "OMP_NUM_THREADS": "1"}


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_package(tmp_path_factory.mktemp("package"), MODEL, SCHEMA, "mari:abc")


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("service") / "log"


@pytest.fixture(scope="module")
def address(package: Path, log: Path) -> Iterator[str]:
    with running_server(TARGET, environment(package), log) as running:
        yield running


@pytest.fixture(scope="module")
def client(address: str) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=address, trust_env=False, timeout=60) as opened:
        yield opened


def wanted(num_candidates: int, seed: int) -> Any:
    return scores_of(MODEL, SCHEMA, *draw(SCHEMA, num_candidates, seed))


@pytest.mark.parametrize("num_candidates", [1, 2, 17, MAX_CANDIDATES])
def test_both_forms_give_the_scores_of_the_original(client: httpx.Client, num_candidates: int) -> None:
    user, candidates = draw(SCHEMA, num_candidates, seed=5)
    scores = wanted(num_candidates, 5)
    raw = client.post("/raw/score", content=pack_request(SCHEMA, user, candidates), headers=BYTES)
    assert raw.status_code == 200
    assert raw.headers["x-model-tag"] == "mari:abc"
    np.testing.assert_allclose(unpack_scores(raw.content), scores, rtol=1e-5, atol=1e-5)

    people = client.post("/score", json={"user": listed(user), "candidates": listed(candidates)})
    assert people.status_code == 200
    answer = people.json()
    assert set(answer) == {"scores", "model_tag"}
    assert answer["model_tag"] == "mari:abc"
    columns = np.array([answer["scores"][name] for name in ("click", "like")]).T
    np.testing.assert_allclose(columns, scores, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("body", "why"), WRONG_BYTES.values(), ids=WRONG_BYTES.keys())
def test_wrong_bytes_get_the_reason(client: httpx.Client, body: bytes, why: str) -> None:
    answer = client.post("/raw/score", content=body, headers=BYTES)
    assert answer.status_code == 400
    assert re.search(why, answer.json()["error"])


@pytest.mark.parametrize(("body", "why"), WRONG_JSON.values(), ids=WRONG_JSON.keys())
def test_wrong_json_gets_the_reason(client: httpx.Client, body: str | bytes, why: str) -> None:
    answer = client.post("/score", content=body, headers=JSON)
    assert answer.status_code == 400
    assert re.search(why, answer.json()["error"])


@pytest.mark.parametrize(("change", "why"), WRONG_VALUES.values(), ids=WRONG_VALUES.keys())
def test_wrong_values_get_their_place(
    client: httpx.Client, change: Callable[[dict[str, Any]], object], why: str
) -> None:
    body = body_of()
    change(body)
    answer = client.post("/score", content=json.dumps(body), headers=JSON)
    assert answer.status_code == 400
    assert re.search(why, answer.json()["error"])


def test_a_client_of_another_model_gets_409(client: httpx.Client) -> None:
    other = SCHEMA.model_copy(update={"outputs": ("like", "click")})
    answer = client.post("/raw/score", content=pack_request(other, *draw(SCHEMA, 3, 0)), headers=BYTES)
    assert answer.status_code == 409
    assert "GET /schema" in answer.json()["error"]


@pytest.mark.parametrize("path", ["/score", "/raw/score"])
@pytest.mark.parametrize(
    "kind", ["text/plain", "application/vnd.bentoml+pickle", "multipart/form-data; boundary=x", ""]
)
def test_each_path_reads_its_own_content_type(client: httpx.Client, path: str, kind: str) -> None:
    answer = client.post(path, content=BODY, headers={"content-type": kind})
    assert answer.status_code == 415
    assert "expected content type application/" in answer.json()["error"]
    swapped = client.post(path, content=BODY, headers=JSON if path == "/raw/score" else BYTES)
    assert swapped.status_code == 415


@pytest.mark.parametrize("chunked", [False, True])
@pytest.mark.parametrize(("path", "kind"), [("/score", JSON), ("/raw/score", BYTES)])
def test_a_huge_body_is_refused(client: httpx.Client, path: str, kind: dict[str, str], chunked: bool) -> None:
    block = b" " * 65_536
    content = iter([block] * 150) if chunked else block * 150
    answer = client.post(path, content=content, headers=kind)
    assert answer.status_code == 413
    assert "bytes" in answer.json()["error"]


@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE", "PATCH"])
@pytest.mark.parametrize("path", ["/score", "/raw/score"])
def test_wrong_methods(client: httpx.Client, path: str, method: str) -> None:
    answer = client.request(method, path)
    assert answer.status_code == 405
    assert "POST" in answer.json()["error"]


def test_other_paths(client: httpx.Client) -> None:
    assert client.post("/nothing", content=b"").status_code == 404
    assert RankerSchema.model_validate_json(client.get("/schema").text) == SCHEMA
    for path in ("/healthz", "/livez", "/readyz", "/docs.json"):
        assert client.get(path).status_code == 200
    assert set(client.get("/docs.json").json()["paths"]["/score"]) == {"post"}


def test_a_slow_body_ends_and_holds_up_nobody(address: str, client: httpx.Client) -> None:
    host, port = address.removeprefix("http://").split(":")
    head = b"POST /raw/score HTTP/1.1\r\nHost: x\r\nContent-Type: application/octet-stream\r\n"
    slow = [socket.create_connection((host, int(port)), timeout=20) for _ in range(20)]
    for connection in slow:
        connection.sendall(head + b"Content-Length: %d\r\n\r\n" % len(BODY) + BODY[:100])
    start_s = time.perf_counter()
    for _ in range(10):
        assert client.post("/raw/score", content=BODY, headers=BYTES).status_code == 200
    assert time.perf_counter() - start_s < 5
    for connection in slow:
        assert connection.recv(4096).startswith(b"HTTP/1.1 408")
        connection.close()
    assert 8 < time.perf_counter() - start_s < 18


def test_good_and_bad_requests_at_once_each_get_their_own(address: str) -> None:
    """400 requests, good ones in both forms among bad ones; nobody gets a neighbour's scores."""
    bad = [body for body, _ in WRONG_BYTES.values()]
    sizes = [1 + seed * 7 % MAX_CANDIDATES for seed in range(400)]

    async def one(client: httpx.AsyncClient, seed: int) -> httpx.Response:
        user, candidates = draw(SCHEMA, sizes[seed], seed)
        if seed % 3 == 0:
            return await client.post("/raw/score", content=bad[seed % len(bad)], headers=BYTES)
        if seed % 3 == 1:
            return await client.post("/score", json={"user": listed(user), "candidates": listed(candidates)})
        return await client.post("/raw/score", content=pack_request(SCHEMA, user, candidates), headers=BYTES)

    async def ask() -> list[httpx.Response]:
        limits = httpx.Limits(max_connections=32)
        async with httpx.AsyncClient(base_url=address, trust_env=False, timeout=60, limits=limits) as client:
            return await asyncio.gather(*(one(client, seed) for seed in range(400)))

    for seed, answer in enumerate(asyncio.run(ask())):
        assert answer.status_code == (400 if seed % 3 == 0 else 200)
        if seed % 3 == 1:
            scores = answer.json()["scores"]
            found = np.array([scores["click"], scores["like"]]).T
        elif seed % 3 == 2:
            found = unpack_scores(answer.content)
        else:
            continue
        np.testing.assert_allclose(found, wanted(sizes[seed], seed), rtol=1e-5, atol=1e-5)


def test_clients_that_leave_do_not_stop_the_service(address: str, client: httpx.Client) -> None:
    host, port = address.removeprefix("http://").split(":")
    head = (
        b"POST /raw/score HTTP/1.1\r\nHost: x\r\nContent-Type: application/octet-stream\r\nContent-Length: "
    )
    size = str(len(BODY)).encode()
    for sent in (size + b"\r\n\r\n" + BODY, size + b"\r\n\r\n" + BODY[:50], size, b"garbage\r\n\r\n"):
        for _ in range(5):
            with socket.create_connection((host, int(port))) as connection:
                connection.sendall(head + sent)
    assert client.post("/raw/score", content=BODY, headers=BYTES).status_code == 200


def samples(client: httpx.Client) -> dict[str, float]:
    families = text_string_to_metric_families(client.get("/metrics").text)
    return {
        "/".join([sample.name, *sample.labels.values()]): sample.value
        for family in families
        if family.name.startswith("mari_")
        for sample in family.samples
    }


def test_metrics_count_what_was_asked(client: httpx.Client) -> None:
    before = samples(client)
    for body in (BODY, BODY, b"", BODY[:-1], BODY):
        client.post("/raw/score", content=body, headers=BYTES)
    client.post("/score", json=body_of())
    client.post("/score", content=BODY, headers=BYTES)
    after = samples(client)
    grown = {name: after[name] - before.get(name, 0) for name in after if after[name] != before.get(name)}
    assert grown["mari_requests_total/ok"] == 4
    assert grown["mari_requests_total/refused"] == 3
    assert "mari_requests_total/overloaded" not in grown
    assert grown["mari_latency_seconds_count"] == 4
    assert grown["mari_batch_size_sum"] == 4


def test_the_log_has_no_traces_of_bad_requests(client: httpx.Client, log: Path) -> None:
    client.post("/score", content=b"{}", headers=JSON)
    client.post("/raw/score", content=b"x", headers=BYTES)
    assert "Traceback" not in log.read_text()


def test_the_client_scores_and_says_what_is_wrong(address: str) -> None:
    with Client(address) as client:
        assert client.schema == SCHEMA
        for seed in range(3):
            found = client.score(*draw(SCHEMA, 9, seed))
            np.testing.assert_allclose(found, wanted(9, seed), rtol=1e-5, atol=1e-5)
        with pytest.raises(RequestError, match="missing: age"):
            client.score({}, {})
        client._wire = Wire(SCHEMA.model_copy(update={"outputs": ("a", "b")}))
        with pytest.raises(RequestError, match="409: the request is for a model with other inputs"):
            client.score(*draw(SCHEMA, 9, 0))
        client._connection.close()
        client._wire = Wire(SCHEMA)
        assert client.score(*draw(SCHEMA, 9, 0)).shape == (9, 2)


def test_a_client_without_a_service() -> None:
    with pytest.raises(ServiceError, match="does not answer"):
        Client("http://127.0.0.1:9")


def test_a_killed_worker_comes_back_and_another_model_refuses_old_clients(
    package: Path, tmp_path: Path
) -> None:
    """SIGKILL under load: the clients get errors or right scores; then a start with another model."""
    user, candidates = draw(SCHEMA, 9, 0)
    with running_server(TARGET, environment(package), tmp_path / "log") as address:
        port = address.rpartition(":")[2]
        client = Client(address)
        np.testing.assert_allclose(client.score(user, candidates), wanted(9, 0), rtol=1e-5, atol=1e-5)
        workers = [
            process
            for parent in psutil.Process().children()
            if port in parent.cmdline()
            for process in parent.children(recursive=True)
            if any("worker" in word for word in process.cmdline())
        ]
        assert len(workers) == 1
        workers[0].send_signal(signal.SIGKILL)
        deadline_s = time.monotonic() + 60
        scores = None
        while scores is None and time.monotonic() < deadline_s:
            try:
                scores = client.score(user, candidates)
            except ServiceError:
                time.sleep(0.2)
        assert scores is not None
        np.testing.assert_allclose(scores, wanted(9, 0), rtol=1e-5, atol=1e-5)
        client.close()
    swapped = SCHEMA.model_copy(update={"outputs": ("like", "click")})
    other = write_package(tmp_path / "other", seeded_ranker(1), swapped, "mari:def")
    with running_server(TARGET, environment(other), tmp_path / "log") as address:
        answer = httpx.post(f"{address}/raw/score", content=BODY, headers=BYTES, trust_env=False)
        assert answer.status_code == 409
        with Client(address) as client:
            found = client.score(user, candidates)
    np.testing.assert_allclose(found, scores_of(seeded_ranker(1), SCHEMA, user, candidates), atol=1e-5)


@pytest.mark.parametrize("damage", ["missing", "cut"])
def test_a_broken_model_ends_the_start_with_one_line(tmp_path: Path, damage: str) -> None:
    folder = write_package(tmp_path / "model", MODEL, SCHEMA)
    file = folder / "twin" / "many.pt2"
    if damage == "missing":
        file.unlink()
    else:
        file.write_bytes(file.read_bytes()[:-100])
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
def test_the_method_answers_what_the_path_answers(package: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEEDWORKS_MODEL_DIR", str(package))
    from bentoml.exceptions import InvalidArgument

    from feedworks.mari.service import MariService, Query

    threads = torch.get_num_threads()
    service = MariService()
    try:
        answer = asyncio.run(service.score(Query(**body_of())))
        with pytest.raises(InvalidArgument, match="missing: age"):
            asyncio.run(service.score(Query(user={}, candidates={})))
    finally:
        service.close()
        torch.set_num_threads(threads)
    request = RequestReader(SCHEMA).from_json(json.dumps(body_of()).encode())
    assert answer.model_tag == "mari:abc"
    assert len(answer.scores["click"]) == request.num_candidates
