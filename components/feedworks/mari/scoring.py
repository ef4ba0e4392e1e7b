"""MaRI (arXiv 2602.23105): the service without its framework: a bare ASGI application over a scorer.

    POST /raw/score   bytes to bytes, see `feedworks.mari.wire`
    POST /score       JSON to JSON, for people
    GET  /schema      what the model takes, as in its sides.json

A framework spends more time on a request than the model does, so that these paths are matched here, ahead of
its routes; all else is left to the application behind.
"""

from __future__ import annotations

import json
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from feedworks.errors import FeedworksError
from feedworks.mari.counting import counters
from feedworks.mari.request import Request, RequestError, RequestReader
from feedworks.mari.scorer import Scorer, Scores
from feedworks.mari.wire import Wire, pack_scores
from feedworks.serving.batching import MicroBatcher, OverloadedError
from feedworks.serving.limits import JSON, App, Receive, RefusedError, Scope, Send, read_body, refuse

BYTES = b"application/octet-stream"
MAX_JSON_BYTES = 8 << 20
BODY_WITHIN_S = 10.0
MAX_WAITING = 256
MAX_WAITING_BYTES = 256 << 20
MAX_BATCH = 64
# What gather, one_hot, embedding_bag and a look-up inside a product say of an id beyond their table.
_OUT_OF_RANGE = ("is out of bounds", "not in the valid range", "Class values must be", "expected 0 ..")


class Scoring:
    """Answers requests by one scorer; all at once go to the model together.

    Args:
        scorer: of the model.
        in_thread: see `MicroBatcher`.
        max_waiting: requests that may wait; further ones are refused. Fewer where they can be very large.
    """

    def __init__(self, scorer: Scorer, *, in_thread: bool = False, max_waiting: int = MAX_WAITING) -> None:
        self.scorer = scorer
        self.wire = Wire(scorer.schema)
        self.reader = RequestReader(scorer.schema)
        self.counters = counters()
        self._batcher: MicroBatcher[Request, Scores] = MicroBatcher(
            self._score,
            max_batch=MAX_BATCH,
            max_waiting=max(1, min(max_waiting, MAX_WAITING_BYTES // self.wire.max_bytes())),
            observe=self.counters.batch_size.observe,
            in_thread=in_thread,
        )

    def close(self) -> None:
        """End the model's thread."""
        self._batcher.close()

    async def score(self, request: Request) -> Scores:
        """Wait for the scores of one request, `(B, T)`.

        Raises:
            OverloadedError: too many requests are waiting.
            RequestError: the model cannot score it: a score is not finite, or it has no such id.
        """
        try:
            score_BT = await self._batcher.submit(request)
        except (IndexError, RuntimeError, ValueError) as error:  # ids whose number the schema does not know
            if not isinstance(error, IndexError) and not any(said in str(error) for said in _OUT_OF_RANGE):
                raise
            raise RequestError("an id is out of range for the model") from None
        if not np.isfinite(score_BT).all():
            place = int(np.argwhere(~np.isfinite(score_BT))[0, 0])
            raise RequestError(f"the score of candidate {place} is not finite; its numbers are too extreme")
        return score_BT

    async def score_bytes(self, body: bytes) -> bytes:
        """Answer one request in bytes."""
        return pack_scores(await self.score(self.wire.unpack(body)))

    async def score_json(self, body: bytes) -> bytes:
        """Answer one request in JSON."""
        return json.dumps(self.named(await self.score(self.reader.from_json(body)))).encode()

    def named(self, score_BT: Scores) -> dict[str, Any]:
        """The answer to people: a list of scores, or one for each output by name, and the model's tag."""
        outputs = self.scorer.schema.outputs
        columns = dict(zip(outputs, score_BT.T.tolist(), strict=True))
        scores = columns if len(outputs) > 1 else columns[outputs[0]]
        return {"scores": scores, "model_tag": self.scorer.tag}

    def _score(self, requests: Sequence[Request]) -> list[Scores]:
        return self.scorer.score([request.arrays for request in requests])


class _Route(NamedTuple):
    media_type: bytes
    max_bytes: Callable[[Scoring], int]
    answer: Callable[[Scoring, bytes], Awaitable[bytes]]


_POST = {
    "/raw/score": _Route(BYTES, lambda scoring: scoring.wire.max_bytes(), Scoring.score_bytes),
    "/score": _Route(JSON, lambda scoring: MAX_JSON_BYTES, Scoring.score_json),
}
_SCHEMA = "/schema"


class ScoringApp:
    """The ASGI application.

    Args:
        app: the application behind, for all other paths.
        scoring: gives what answers, once the service has started.
    """

    def __init__(self, app: App, scoring: Callable[[], Scoring]) -> None:
        self.app = app
        self._find = scoring
        self._scoring: Scoring | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer, or pass the request on."""
        if scope["type"] != "http" or ((path := scope["path"]) not in _POST and path != _SCHEMA):
            await self.app(scope, receive, send)
            return
        if self._scoring is None:
            self._scoring = self._find()
        if path in _POST and scope["method"] == "POST":
            await self._post(self._scoring, _POST[path], scope, receive, send)
        elif path == _SCHEMA and scope["method"] == "GET":
            schema = self._scoring.scorer.schema.model_dump_json().encode()
            await _answer(send, 200, JSON, schema, self._scoring.scorer.tag)
        else:
            allowed = "POST" if path in _POST else "GET"
            await refuse(receive, send, RefusedError(405, f"{path} takes {allowed}"))

    async def _post(
        self, scoring: Scoring, route: _Route, scope: Scope, receive: Receive, send: Send
    ) -> None:
        start_s = time.perf_counter()
        count = scoring.counters
        try:
            body = await read_body(
                scope,
                receive,
                media_type=route.media_type,
                max_bytes=route.max_bytes(scoring),
                within_s=BODY_WITHIN_S,
            )
        except RefusedError as error:
            count.refused.inc()
            await refuse(receive, send, error)
            return
        try:
            answer = await route.answer(scoring, body)
        except (RequestError, OverloadedError) as error:
            (count.refused if isinstance(error, RequestError) else count.overloaded).inc()
            await _answer(send, _status(error), JSON, json.dumps({"error": str(error)}).encode())
            return
        await _answer(send, 200, route.media_type, answer, scoring.scorer.tag)
        count.ok.inc()
        count.latency_s.observe(time.perf_counter() - start_s)


def _status(error: FeedworksError) -> int:
    return error.status if isinstance(error, RequestError) else 503


async def _answer(send: Send, status: int, media_type: bytes, body: bytes, tag: str = "") -> None:
    headers = [(b"content-type", media_type), (b"content-length", b"%d" % len(body))]
    if tag:
        headers.append((b"x-model-tag", tag.encode()))
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
