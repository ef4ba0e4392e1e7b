"""The application without a server: what an overloaded or failing model answers, and what goes on behind."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Callable
from typing import Any

import httpx
import numpy as np
import pytest
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route
from torch import Tensor
from torch.nn import functional as F

from feedworks.mari import scoring as module
from feedworks.mari.schema import ModelInput, RankerSchema
from feedworks.mari.scorer import Scorer
from feedworks.mari.scoring import Scoring, ScoringApp
from feedworks.mari.wire import pack_request, unpack_scores
from feedworks.serving.ahead import Ahead
from feedworks_kernels import user_partial_linear

SCHEMA = RankerSchema(
    inputs=(
        ModelInput(name="user", side="user"),
        ModelInput(name="item", side="item", shape=(2,)),
        ModelInput(name="shop", side="item", dtype="int64"),  # how many there are is not told
    ),
    max_candidates=20,
)


class Model:
    """Scores `user * item[0] + table[shop]`; waits for `gate` where it is set."""

    look_up: Callable[[Tensor, Tensor], Tensor] = staticmethod(lambda table, shop: table[shop])

    def __init__(self) -> None:
        self.gate: threading.Event | None = None
        self.sizes: list[int] = []

    def __call__(self, user: Tensor, item: Tensor, shop: Tensor, request_B: Tensor | None = None) -> Tensor:
        if self.gate is not None:
            assert self.gate.wait(10)
        self.sizes.append(len(user))
        user_B = user if request_B is None else user[request_B]
        table = user.new_tensor([0.0, 10.0, 20.0])
        return user_B * item[:, 0] + self.look_up(table, shop)


def values(place: int, count: int = 3, shop: int = 1) -> tuple[dict[str, Any], dict[str, Any]]:
    item = np.stack([np.arange(count), np.zeros(count)], axis=1).astype(np.float32)
    return {"user": np.float32(place)}, {"item": item, "shop": np.full(count, shop)}


async def behind(request: Request) -> PlainTextResponse:
    return PlainTextResponse(f"behind got {len(await request.body())} bytes")


def asked(
    ask: Callable[[httpx.AsyncClient, Model], Any], in_thread: bool = False, max_waiting: int = 256
) -> Any:
    """Run `ask` against an application over a new model."""

    async def run() -> Any:
        model = Model()
        scoring = Scoring(Scorer(SCHEMA, model, "t:1"), in_thread=in_thread, max_waiting=max_waiting)
        model.sizes.clear()
        app = ScoringApp(
            Starlette(routes=[Route("/{path:path}", behind, methods=["GET", "POST"])]), lambda: scoring
        )
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            found = await ask(client, model)
        scoring.close()
        return found

    return asyncio.run(run())


def post(client: httpx.AsyncClient, place: int, shop: int = 1, scale: float = 1.0) -> Any:
    user, candidates = values(place, shop=shop)
    candidates["item"] = candidates["item"] * np.float32(scale)
    return client.post("/raw/score", content=pack_request(SCHEMA, user, candidates))


@pytest.mark.parametrize("in_thread", [False, True])
def test_requests_at_once_are_scored_at_once_and_each_gets_its_own(in_thread: bool) -> None:
    async def ask(client: httpx.AsyncClient, model: Model) -> list[int]:
        answers = await asyncio.gather(*(post(client, place) for place in range(40)))
        for place, answer in enumerate(answers):
            assert answer.headers["content-type"] == "application/octet-stream"
            assert answer.headers["x-model-tag"] == "t:1"
            assert unpack_scores(answer.content).ravel().tolist() == [10, 10 + place, 10 + 2 * place]
        return model.sizes

    sizes = asked(ask, in_thread)
    assert sum(sizes) == 40
    assert max(sizes) > 4


def _product(table: Tensor, shop: Tensor) -> Tensor:
    sums = user_partial_linear(table[:, None], table.new_ones(len(shop), 1), table.new_zeros(1, 1), shop)
    return sums[:, 0]


LOOK_UPS = {
    "index": lambda table, shop: table[shop],
    "gather": lambda table, shop: table.gather(0, shop),
    "one_hot": lambda table, shop: F.one_hot(shop, 3).float() @ table,
    "embedding_bag": lambda table, shop: F.embedding_bag(shop[:, None], table[:, None], mode="sum")[:, 0],
    "product": _product,
}


@pytest.mark.parametrize("look_up", LOOK_UPS.values(), ids=LOOK_UPS)
@pytest.mark.parametrize("in_thread", [False, True])
def test_an_id_that_only_the_model_knows_to_be_wrong_spoils_no_other_answer(
    in_thread: bool, look_up: Callable[[Tensor, Tensor], Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Model, "look_up", staticmethod(look_up))

    async def ask(client: httpx.AsyncClient, model: Model) -> list[httpx.Response]:
        return await asyncio.gather(*(post(client, 1, shop=3 if i == 2 else 1) for i in range(5)))

    answers = asked(ask, in_thread)
    assert [answer.status_code for answer in answers] == [200, 200, 400, 200, 200]
    assert answers[2].json() == {"error": "an id is out of range for the model"}
    assert all(unpack_scores(answers[i].content).ravel().tolist() == [10, 11, 12] for i in (0, 1, 3, 4))


def test_a_score_that_is_not_finite_is_no_score() -> None:
    async def ask(client: httpx.AsyncClient, model: Model) -> list[httpx.Response]:
        return await asyncio.gather(post(client, 1000, scale=1e38), post(client, 1))

    wrong, good = asked(ask)
    assert wrong.status_code == 400
    assert wrong.json() == {"error": "the score of candidate 1 is not finite; its numbers are too extreme"}
    assert good.status_code == 200


def test_a_full_queue_is_said_at_once() -> None:
    async def ask(client: httpx.AsyncClient, model: Model) -> list[httpx.Response]:
        model.gate = threading.Event()
        first = asyncio.create_task(post(client, 0))
        await asyncio.sleep(0.05)  # it is with the model now
        rest = [asyncio.create_task(post(client, place)) for place in range(1, 9)]
        await asyncio.sleep(0.05)
        full = [task.result() for task in rest if task.done()]
        model.gate.set()
        answers = [await task for task in [first, *rest] if task.result is not None]
        assert all(answer.status_code == 503 for answer in full)
        assert len(full) == 5
        return answers

    answers = asked(ask, in_thread=True, max_waiting=3)
    assert sorted(answer.status_code for answer in answers) == [200] * 4 + [503] * 5
    assert all("try again" in answer.json()["error"] for answer in answers if answer.status_code == 503)


def test_what_can_wait_is_bounded_in_bytes_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_WAITING_BYTES", 1000)
    scoring = Scoring(Scorer(SCHEMA, Model(), "t"), max_waiting=256)
    assert scoring._batcher._max_waiting == 1000 // scoring.wire.max_bytes()


def test_a_slow_body_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BODY_WITHIN_S", 0.1)

    async def slowly() -> Any:
        yield b"MaRQ"
        await asyncio.sleep(0.3)
        yield b"more"

    async def ask(client: httpx.AsyncClient, model: Model) -> httpx.Response:
        kind = {"content-type": "application/octet-stream"}
        return await client.post("/raw/score", content=slowly(), headers=kind)

    # The transport has no clock of its own: it hands over what the application reads.
    answer = asked(ask)
    assert answer.status_code == 408
    assert "within 0.1 s" in answer.json()["error"]


@pytest.mark.parametrize(("path", "method"), [("/other", "POST"), ("/raw/other", "GET"), ("/scores", "GET")])
def test_other_paths_go_on(path: str, method: str) -> None:
    async def ask(client: httpx.AsyncClient, model: Model) -> httpx.Response:
        return await client.request(method, path, content=b"123")

    assert asked(ask).text == "behind got 3 bytes"


@pytest.mark.parametrize(
    ("path", "method", "takes"),
    [("/score", "GET", "POST"), ("/raw/score", "PUT", "POST"), ("/schema", "POST", "GET")],
)
def test_wrong_methods(path: str, method: str, takes: str) -> None:
    async def ask(client: httpx.AsyncClient, model: Model) -> httpx.Response:
        return await client.request(method, path)

    answer = asked(ask)
    assert answer.status_code == 405
    assert answer.json() == {"error": f"{path} takes {takes}"}


def test_json_and_bytes_say_the_same() -> None:
    async def ask(client: httpx.AsyncClient, model: Model) -> tuple[httpx.Response, httpx.Response]:
        _, candidates = values(2)
        lists = {name: value.tolist() for name, value in candidates.items()}
        body = {"user": {"user": 2}, "candidates": lists}
        return await client.post("/score", json=body), await post(client, 2)

    people, machines = asked(ask)
    assert people.json() == {"scores": [10, 12, 14], "model_tag": "t:1"}
    assert unpack_scores(machines.content).ravel().tolist() == people.json()["scores"]


def test_the_application_moves_ahead_of_the_others() -> None:
    """Middlewares around it see other paths only, once the server has started."""
    seen: list[str] = []

    class Around:
        def __init__(self, app: Any) -> None:
            self.app = app

        async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
            seen.append(scope.get("path", scope["type"]))
            await self.app(scope, receive, send)

    scoring = Scoring(Scorer(SCHEMA, Model(), "t:1"))
    app = Starlette(
        routes=[Route("/{path:path}", behind)],
        middleware=[
            Middleware(Around),
            Middleware(Ahead, front=lambda app: ScoringApp(app, lambda: scoring)),
        ],
    )

    async def ask(started: bool) -> list[httpx.Response]:
        if started:
            to_app: asyncio.Queue[dict[str, str]] = asyncio.Queue()
            from_app: asyncio.Queue[Any] = asyncio.Queue()
            living = asyncio.create_task(app({"type": "lifespan", "state": {}}, to_app.get, from_app.put))
            to_app.put_nowait({"type": "lifespan.startup"})
            assert (await from_app.get())["type"] == "lifespan.startup.complete"
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:
            answers = [await client.get(path) for path in ("/schema", "/other")]
        if started:
            to_app.put_nowait({"type": "lifespan.shutdown"})
            await living
        return answers

    for started, wanted in ((False, ["/schema", "/other"]), (True, ["lifespan", "/other"])):
        seen.clear()
        app.middleware_stack = None
        schema, other = asyncio.run(ask(started))
        assert json.loads(schema.text) == SCHEMA.model_dump(mode="json")
        assert other.text == "behind got 0 bytes"
        assert seen == wanted
