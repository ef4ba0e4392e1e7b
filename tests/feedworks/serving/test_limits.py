"""Limits on bodies, as a client on a socket meets them."""

from __future__ import annotations

import asyncio
import json
import socket

import pytest
import uvicorn
from starlette.applications import Starlette
from starlette.middleware import Middleware

from feedworks.serving import limits

HEAD = b"POST / HTTP/1.1\r\nHost: x\r\nContent-Type: %s\r\n"
BODY = b"x" * (8 << 20)
CHUNKS = b"".join(b"10000\r\n" + b"x" * 65536 + b"\r\n" for _ in range(128)) + b"0\r\n\r\n"


def exchange(port: int, request: bytes) -> bytes:
    """Send all of a request, then read all of the answer, as a simple client does."""
    with socket.create_connection(("127.0.0.1", port), timeout=20) as client:
        client.sendall(request)
        return b"".join(iter(lambda: client.recv(65536), b""))


async def served(*requests: bytes) -> list[bytes]:
    app = Starlette(middleware=[Middleware(limits.JsonLimits, max_body_bytes=1000)])
    with socket.create_server(("127.0.0.1", 0)) as listener:
        server = uvicorn.Server(uvicorn.Config(app, lifespan="off", ws="none", log_level="error"))
        serving = asyncio.create_task(server.serve(sockets=[listener]))
        port = listener.getsockname()[1]
        answers = [await asyncio.to_thread(exchange, port, request) for request in requests]
        server.should_exit = True
        await serving
    return answers


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        (HEAD % b"application/json" + b"Content-Length: %d\r\n\r\n" % len(BODY) + BODY, b"413"),
        (HEAD % b"application/json" + b"Transfer-Encoding: chunked\r\n\r\n" + CHUNKS, b"413"),
        (HEAD % b"text/plain" + b"Content-Length: %d\r\n\r\n" % len(BODY) + BODY, b"415"),
    ],
    ids=["length", "chunks", "type"],
)
def test_a_client_that_sends_all_first_gets_the_refusal(request_: bytes, status: bytes) -> None:
    (answer,) = asyncio.run(served(request_))
    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.split()[1] == status
    assert "expected" in json.loads(body)["error"]


def test_a_client_that_never_ends_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "LINGER_S", 0.2)
    (answer,) = asyncio.run(served(HEAD % b"application/json" + b"Content-Length: 5000\r\n\r\nx"))
    assert answer.startswith(b"HTTP/1.1 413")


@pytest.mark.parametrize(
    "begun",
    [
        b"Content-Length: 500\r\n\r\n",
        b"Content-Length: 500\r\n\r\nx",
        b"Transfer-Encoding: chunked\r\n\r\n",
        b"Transfer-Encoding: chunked\r\n\r\n1\r\nx\r\n",
    ],
    ids=["none of a length", "some of a length", "no chunk", "one chunk"],
)
def test_a_body_that_comes_slowly_ends(begun: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "LINGER_S", 0.2)
    monkeypatch.setattr(limits.JsonLimits.__init__, "__defaults__", (0.2,))
    (answer,) = asyncio.run(served(HEAD % b"application/json" + begun))
    assert answer.startswith(b"HTTP/1.1 408")
    assert b"did not come whole within 0.2 s" in answer


@pytest.mark.parametrize("begun", [b"", b"x"], ids=["before its body", "within its body"])
def test_a_client_that_leaves_is_not_waited_for(begun: bytes) -> None:
    coming = iter([{"type": "http.request", "body": begun, "more_body": True}] if begun else [])

    async def receive() -> limits.Message:
        return next(coming, {"type": "http.disconnect"})

    read = limits.read_body({"headers": []}, receive, media_type=limits.JSON, max_bytes=9, within_s=9)
    with pytest.raises(limits.RefusedError, match="left before its body was whole"):
        asyncio.run(read)


def test_a_request_without_a_body_goes_on_at_once() -> None:
    requests = [
        b"%s / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n" % method for method in (b"GET", b"POST")
    ]
    assert all(answer.startswith(b"HTTP/1.1 404") for answer in asyncio.run(served(*requests)))
