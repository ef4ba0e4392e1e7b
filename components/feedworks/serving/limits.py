"""What a request may be before anything reads it: an ASGI middleware for services that take JSON."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, MutableMapping
from contextlib import suppress
from typing import Any

from feedworks.errors import FeedworksError

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

JSON = b"application/json"
LINGER_S = 5.0
BODY_WITHIN_S = 10.0


class RefusedError(FeedworksError):
    """A request that is refused before its contents count.

    Args:
        status: HTTP status of the answer.
        reason: for the client.
    """

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(reason)
        self.status = status


async def read_body(
    scope: Scope, receive: Receive, *, media_type: bytes, max_bytes: int, within_s: float
) -> bytes:
    """Read the whole body of a request.

    Args:
        scope: of the request.
        receive: of the request.
        media_type: the only one that is read; a request without one is taken at its word.
        max_bytes: largest body.
        within_s: seconds in which all of it must be there.

    Raises:
        RefusedError: 415, 413 or 408; or 400 if the client left in the middle.
    """
    for key, value in scope["headers"]:  # every value: servers differ in which of two they take
        if key == b"content-type":
            if value != media_type and value.split(b";")[0].strip().lower() != media_type:
                raise RefusedError(415, f"expected content type {media_type.decode()}")
        elif key == b"content-length" and int(value) > max_bytes:
            raise RefusedError(413, f"expected a body of at most {max_bytes} bytes")
    try:
        # From the first byte on: a client that only promises a body would hold its connection for ever.
        async with asyncio.timeout(within_s):
            return await _whole(receive, max_bytes)
    except TimeoutError:
        raise RefusedError(408, f"the body did not come whole within {within_s:g} s") from None


async def _whole(receive: Receive, max_bytes: int) -> bytes:
    parts, size = [], 0
    while True:
        message = await receive()
        if message["type"] != "http.request":
            raise RefusedError(400, "the client left before its body was whole")
        parts.append(message.get("body", b""))
        size += len(parts[-1])
        if size > max_bytes:
            raise RefusedError(413, f"expected a body of at most {max_bytes} bytes")
        if not message.get("more_body", False):
            return b"".join(parts)


class JsonLimits:
    """Lets through POST bodies of JSON up to a size; others get 413, 415 or 408 and `{"error": ...}`.

    The framework behind it chooses a decoder by the content type, some of which are not safe on foreign
    input, and holds a body of any size in memory.

    Args:
        app: the application behind.
        max_body_bytes: largest body.
        within_s: seconds in which a body must be there.
    """

    def __init__(self, app: App, max_body_bytes: int, within_s: float = BODY_WITHIN_S) -> None:
        self.app = app
        self.max_body_bytes = max_body_bytes
        self.within_s = within_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Refuse, or pass the request on with its body read."""
        if scope["type"] != "http" or scope["method"] != "POST":
            return await self.app(scope, receive, send)
        try:
            body = await read_body(
                scope, receive, media_type=JSON, max_bytes=self.max_body_bytes, within_s=self.within_s
            )
        except RefusedError as error:
            return await refuse(receive, send, error)
        return await self.app(scope, _replay(body, receive), send)


def _replay(body: bytes, receive: Receive) -> Receive:
    """A `receive` that hands over a body that was read already, then what comes after it."""
    pending = [body]

    async def replay() -> Message:
        if pending:
            return {"type": "http.request", "body": pending.pop(), "more_body": False}
        return await receive()

    return replay


async def refuse(receive: Receive, send: Send, error: RefusedError, body: bytes | None = None) -> None:
    """Say why, read what the client still sends for some seconds, and close the connection.

    Args:
        receive: of the request.
        send: of the request.
        error: why.
        body: JSON that says so; without it `{"error": ...}`.
    """
    body = json.dumps({"error": str(error)}).encode() if body is None else body
    headers = [
        (b"content-type", JSON),
        (b"content-length", str(len(body)).encode()),
        (b"connection", b"close"),
    ]
    await send({"type": "http.response.start", "status": error.status, "headers": headers})
    await send({"type": "http.response.body", "body": body, "more_body": True})
    # A socket that closes on unread bytes resets the connection, and the client never sees the answer.
    with suppress(TimeoutError):
        async with asyncio.timeout(LINGER_S):
            while (await receive()).get("more_body", False):
                pass
    await send({"type": "http.response.body", "body": b""})
