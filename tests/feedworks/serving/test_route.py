"""The route alone: what an overloaded service answers, and what it leaves to the application behind."""

from __future__ import annotations

import asyncio
import json

import httpx
import pytest
from pydantic import BaseModel
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route

from feedworks.serving.batching import OverloadedError
from feedworks.serving.limits import JsonLimits
from feedworks.serving.route import JsonRoute


async def answer(body: bytes) -> bytes:
    if json.loads(body) == "full":
        raise OverloadedError("2 requests are waiting; try again later")
    return body


class Sizes(BaseModel):
    """What /sizes takes."""

    sizes: list[int]


async def count_sizes(body: bytes) -> bytes:
    return str(len(Sizes.model_validate_json(body).sizes)).encode()


@pytest.mark.parametrize(("wrong", "said"), [(1, "1 validation error for"), (5000, "5000 validation errors")])
def test_the_answer_to_many_errors_is_short(wrong: int, said: str) -> None:
    async def run() -> httpx.Response:
        transport = httpx.ASGITransport(JsonRoute(Starlette(), "/sizes", count_sizes))
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            return await client.post("/sizes", json={"sizes": ["x"] * wrong})

    found = asyncio.run(run())
    assert found.status_code == 400
    assert found.json()["error"].startswith(said)
    assert len(found.json()["detail"]) == min(wrong, 20)


async def behind(request: Request) -> PlainTextResponse:
    return PlainTextResponse(f"behind got {len(await request.body())} bytes")


def ask(path: str, body: bytes, method: str = "POST") -> httpx.Response:
    app = Starlette(
        routes=[Route("/{path}", behind, methods=["GET", "POST"])],
        middleware=[
            Middleware(JsonLimits, max_body_bytes=10),
            Middleware(JsonRoute, path="/echo", answer=answer),
        ],
    )

    async def run() -> httpx.Response:
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            return await client.request(method, path, content=body)

    return asyncio.run(run())


def test_its_path_is_answered() -> None:
    found = ask("/echo", b"[1]")
    assert (found.status_code, found.content) == (200, b"[1]")
    assert found.headers["content-type"] == "application/json"


@pytest.mark.parametrize(("path", "method"), [("/other", "POST"), ("/echo", "GET")])
def test_other_requests_go_on_with_their_body(path: str, method: str) -> None:
    assert ask(path, b"[1]", method).text == "behind got 3 bytes"


def test_an_overloaded_service_says_so() -> None:
    found = ask("/echo", b'"full"')
    assert found.status_code == 503
    assert "try again" in found.json()["error"]


@pytest.mark.parametrize(("size", "status"), [(10, 200), (11, 413)])
def test_the_limit_is_exact(size: int, status: int) -> None:
    assert ask("/echo", b"1" * size).status_code == status
