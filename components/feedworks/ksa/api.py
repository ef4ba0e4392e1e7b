"""KSA (arXiv 2604.24432): the service's paths as a bare ASGI application, ahead of the framework's.

    POST /generate                 one prompt, one answer
    POST /v1/completions           OpenAI's
    POST /v1/chat/completions      OpenAI's
    GET  /v1/models                OpenAI's, also /v1/models/{model}

Errors are OpenAI's objects, `{"error": {"message", "type", "param", "code"}}`. A client that leaves ends its
request at once, streamed or not.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable
from contextlib import aclosing
from typing import Any
from urllib.parse import unquote

from feedworks.ksa.answering import NAME, Answering, Call
from feedworks.ksa.counting import counters
from feedworks.ksa.fields import MAX_CHOICES
from feedworks.ksa.protocol import RequestError
from feedworks.serving.limits import (
    BODY_WITHIN_S,
    JSON,
    App,
    Receive,
    RefusedError,
    Scope,
    Send,
    read_body,
    refuse,
)
from feedworks.serving.streaming import DONE, EventStream, while_connected

MIN_BODY_BYTES, MAX_BODY_BYTES = 256 << 10, 4 << 20
BYTES_OF_A_TOKEN = 16  # in a body; text and ids have fewer
POSTS = ("/generate", "/v1/completions", "/v1/chat/completions")
MODELS = "/v1/models"

_log = logging.getLogger(__name__)


class Api:
    """The ASGI application.

    Args:
        app: the application behind, for all other paths.
        answering: gives what answers, once the service has started.
    """

    def __init__(self, app: App, answering: Callable[[], Answering]) -> None:
        self.app = app
        self._find = answering
        self._answering: Answering | None = None
        self._started = int(time.time())

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer, or pass the request on."""
        path = scope.get("path", "")
        if scope["type"] != "http" or not _is_ours(path):
            await self.app(scope, receive, send)
            return
        if self._answering is None:
            self._answering = self._find()
        if path in POSTS and scope["method"] == "POST":
            await self._post(self._answering, scope, receive, send)
            return
        try:
            status, body = 200, self._get(path, scope["method"])
        except RequestError as error:
            status, body = error.status, error.body()
        await _answer(send, status, body)

    def _get(self, path: str, method: str) -> dict[str, Any]:
        """Answer what takes no body."""
        assert self._answering is not None
        if path in POSTS or path == MODELS or path.startswith(f"{MODELS}/"):
            allowed = "POST" if path in POSTS else "GET"
            if method != allowed and not (method == "HEAD" and allowed == "GET"):
                raise RequestError(f"{path} takes {allowed}", status=405)
        models = {
            name: {"id": name, "object": "model", "created": self._started, "owned_by": "feedworks"}
            for name in (self._answering.tag, NAME)
        }
        if path == MODELS:
            return {"object": "list", "data": [models[self._answering.tag]]}
        name = unquote(path.removeprefix(f"{MODELS}/"))
        if not path.startswith(f"{MODELS}/"):
            known = ", ".join((*POSTS, MODELS))
            raise RequestError(f"there is no {path[:200]}; there are {known}", status=404)
        if name not in models:
            raise RequestError(
                f"the model {name[:200]!r} does not exist", status=404, param="model", code="model_not_found"
            )
        return models[name]

    async def _post(self, answering: Answering, scope: Scope, receive: Receive, send: Send) -> None:
        count = counters().requests
        try:
            body = await read_body(
                scope,
                receive,
                media_type=JSON,
                max_bytes=largest_body(answering.limits.max_context),
                within_s=BODY_WITHIN_S,
            )
        except RefusedError as error:
            count.labels("refused").inc()
            told = RequestError(str(error), status=error.status).body()
            await refuse(receive, send, error, json.dumps(told).encode())
            return
        outcome = ["gone"]
        await while_connected(receive, _respond(answering, scope["path"], body, send, outcome))
        count.labels(outcome[0]).inc()


def _is_ours(path: str) -> bool:
    """Whether a client of these paths means this application, also where it misses them by a slash or /v1."""
    bare = "/" + path.strip("/")
    return bare in POSTS or bare == "/v1" or bare.startswith("/v1/") or f"/v1{bare}" in (*POSTS, MODELS)


def largest_body(max_context: int) -> int:
    """Return how many bytes a request may have: as many full prompts as one may hold fit, within limits.

    Args:
        max_context: tokens of prompt and answer together.
    """
    return min(MAX_BODY_BYTES, max(MIN_BODY_BYTES, MAX_CHOICES * max_context * BYTES_OF_A_TOKEN))


async def _respond(answering: Answering, path: str, body: bytes, send: Send, outcome: list[str]) -> None:
    """Answer a request; leave in `outcome` how it ended, if it was not cancelled."""
    stream = EventStream(send)
    try:
        try:
            call = await answering.prepare(path, body)
            if call.stream:
                await _stream(answering, call, stream)
            else:
                await _answer(send, 200, await answering.whole(call))
            outcome[0] = "ok"
            return
        except (RequestError, TimeoutError):
            raise
        except Exception:  # a client's request never brings a 500; the log tells what it was
            _log.exception("a request to %s failed", path)
            failed = "the service failed on this request"
            raise RequestError(failed, status=503, kind="server_error") from None
    except TimeoutError:  # the client takes nothing; leaving without an end closes the connection
        return
    except RequestError as error:
        outcome[0] = {429: "overloaded", 503: "failed"}.get(error.status, "refused")
        if stream.begun:
            await stream.data(json.dumps(error.body()).encode())
            await stream.end()
        else:
            await _answer(send, error.status, error.body())


async def _stream(answering: Answering, call: Call, stream: EventStream) -> None:
    async with aclosing(answering.events(call)) as events:  # type: ignore[type-var]
        async for event in events:
            await stream.data(event)
    if call.ends_with_done:
        await stream.put(DONE)
    await stream.end()


async def _answer(send: Send, status: int, value: dict[str, Any]) -> None:
    body = json.dumps(value).encode()
    headers = [(b"content-type", JSON), (b"content-length", b"%d" % len(body))]
    if status == 429:
        headers.append((b"retry-after", b"1"))
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
