"""MaRI (arXiv 2602.23105): a client of the service, over its binary form.

with Client("http://127.0.0.1:3000") as client:
    score_BT = client.score({"age": 31.0}, {"item": item_BF, "price": price_B})
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from http.client import HTTPConnection, HTTPException
from types import TracebackType
from typing import Any, Self
from urllib.parse import urlsplit

import numpy as np
import numpy.typing as npt
from pydantic import ValidationError

from feedworks.errors import FeedworksError
from feedworks.mari.request import RequestError, RequestReader
from feedworks.mari.schema import RankerSchema
from feedworks.mari.wire import Wire, WireError, unpack_scores

BYTES = "application/octet-stream"


class ServiceError(FeedworksError):
    """The service did not answer, or cannot now."""


class Client:
    """One connection that stays open; one thread at a time. It asks the service what its model takes.

    Args:
        address: `http://host:port`.
        timeout_s: seconds to wait for an answer.

    Raises:
        ServiceError: there is no such service.
    """

    def __init__(self, address: str, timeout_s: float = 10.0) -> None:
        parts = urlsplit(address)
        self._connection = HTTPConnection(parts.hostname or "127.0.0.1", parts.port, timeout=timeout_s)
        status, answer = self._ask("GET", "/schema", b"")
        try:
            self.schema = RankerSchema.model_validate_json(answer)
        except ValidationError:
            raise ServiceError(f"{address} answered {status} and no schema; is it MaRI's service?") from None
        self._reader, self._wire = RequestReader(self.schema), Wire(self.schema)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()

    def score(self, user: Mapping[str, Any], candidates: Mapping[str, Any]) -> npt.NDArray[np.float32]:
        """Score candidates; returns `(B, T)`.

        Args:
            user: value of each input of the user's side by name.
            candidates: values of each other input, a row per candidate, by name.

        Raises:
            RequestError: the request is wrong, or the service has another model than at the start.
            ServiceError: the service does not answer, or has too much to do.
        """
        request = self._reader.from_arrays(user, candidates)
        status, answer = self._ask("POST", "/raw/score", self._wire.pack(request))
        if status != 200:
            reason = _reason(answer)
            raise (RequestError if 400 <= status < 500 else ServiceError)(f"{status}: {reason}")
        score_BT = unpack_scores(answer)
        if score_BT.shape != (request.num_candidates, len(self.schema.outputs)):
            raise WireError(f"{score_BT.shape} scores for {request.num_candidates} candidates")
        return score_BT

    def _ask(self, method: str, path: str, body: bytes) -> tuple[int, bytes]:
        fresh = self._connection.sock is None
        try:
            return self._exchange(method, path, body)
        except (HTTPException, OSError) as error:
            self._connection.close()
            # A server may close a connection that was quiet for long; scoring twice does no harm.
            if fresh or isinstance(error, TimeoutError):
                raise ServiceError(f"the service does not answer: {error or type(error).__name__}") from None
        try:
            return self._exchange(method, path, body)
        except (HTTPException, OSError) as error:
            self._connection.close()
            raise ServiceError(f"the service does not answer: {error or type(error).__name__}") from None

    def _exchange(self, method: str, path: str, body: bytes) -> tuple[int, bytes]:
        self._connection.request(method, path, body, {"Content-Type": BYTES} if body else {})
        answer = self._connection.getresponse()
        return answer.status, answer.read()


def _reason(answer: bytes) -> str:
    try:
        return str(json.loads(answer)["error"])
    except (ValueError, KeyError, TypeError):
        return answer[:200].decode(errors="replace")
