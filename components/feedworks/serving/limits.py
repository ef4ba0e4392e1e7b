"""What a request may be before anything reads it: an ASGI middleware for services that take JSON."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, MutableMapping
from contextlib import suppress
from typing import Any

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

JSON = b"application/json"
LINGER_S = 5.0


class JsonLimits:
    """Lets through POST bodies of JSON up to a size; others get 413 or 415 and `{"error": ...}`.

    The framework behind it chooses a decoder by the content type, some of which are not safe on foreign
    input, and holds a body of any size in memory.

    Args:
        app: the application behind.
        max_body_bytes: largest body.
    """

    def __init__(self, app: App, max_body_bytes: int) -> None:
        self.app = app
        self.max_body_bytes = max_body_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Refuse, or pass the request on with its body read."""
        if scope["type"] != "http" or scope["method"] != "POST":
            return await self.app(scope, receive, send)
        media_types = {value.split(b";")[0].strip().lower() for value in _header(scope, b"content-type")}
        if not media_types <= {JSON}:
            return await _refuse(receive, send, 415, "expected content type application/json")
        too_large = f"expected a body of at most {self.max_body_bytes} bytes"
        if any(int(length) > self.max_body_bytes for length in _header(scope, b"content-length")):
            return await _refuse(receive, send, 413, too_large)
        body = await self._read(receive)
        if body is None:
            return await _refuse(receive, send, 413, too_large)
        return await self.app(scope, _replay(body, receive), send)

    async def _read(self, receive: Receive) -> bytes | None:
        """The whole body, or None if it grows too large."""
        parts, size = [], 0
        while True:
            message = await receive()
            parts.append(message.get("body", b""))
            size += len(parts[-1])
            if size > self.max_body_bytes:
                return None
            if not message.get("more_body", False):
                return b"".join(parts)


def _header(scope: Scope, name: bytes) -> list[bytes]:
    """Every value of a header: servers differ in which of two they take."""
    return [value for key, value in scope["headers"] if key == name]


def _replay(body: bytes, receive: Receive) -> Receive:
    """A `receive` that hands over a body that was read already, then what comes after it."""
    pending = [body]

    async def replay() -> Message:
        if pending:
            return {"type": "http.request", "body": pending.pop(), "more_body": False}
        return await receive()

    return replay


async def _refuse(receive: Receive, send: Send, status: int, error: str) -> None:
    body = json.dumps({"error": error}).encode()
    headers = [
        (b"content-type", JSON),
        (b"content-length", str(len(body)).encode()),
        (b"connection", b"close"),
    ]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body, "more_body": True})
    # A socket that closes on unread bytes resets the connection, and the client never sees the answer.
    with suppress(TimeoutError):
        async with asyncio.timeout(LINGER_S):
            while (await receive()).get("more_body", False):
                pass
    await send({"type": "http.response.body", "body": b""})
