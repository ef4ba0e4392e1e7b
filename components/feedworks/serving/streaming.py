"""Answers that come bit by bit: server-sent events, and clients that leave in the middle."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

from feedworks.serving.limits import Receive, Send

SEND_WITHIN_S = 60.0
DONE = b"data: [DONE]\n\n"
_HEADERS = [(b"content-type", b"text/event-stream; charset=utf-8"), (b"cache-control", b"no-cache")]


async def while_connected(receive: Receive, work: Coroutine[Any, Any, None]) -> bool:
    """Run `work` and cancel it as soon as the client leaves.

    Args:
        receive: of a request whose body has been read.
        work: answers it.

    Returns:
        whether the client stayed to the end.

    Raises:
        Exception: what `work` raised.
    """
    task = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(_gone(receive))
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        stayed = task.done()
        task.cancel()
        await asyncio.wait({task})
        if not task.cancelled() and (error := task.exception()) is not None:
            raise error
        return stayed
    finally:  # also where the server itself gives up
        task.cancel()
        gone.cancel()


async def _gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


class EventStream:
    """Sends server-sent events; begins with the first, so that an error before it can be a status.

    Args:
        send: of the request.
        within_s: a client that takes nothing for so long is given up.
    """

    def __init__(self, send: Send, within_s: float = SEND_WITHIN_S) -> None:
        self.begun = False
        self._send = send
        self._within_s = within_s

    async def data(self, content: bytes) -> None:
        """Send one event.

        Raises:
            TimeoutError: the client takes nothing.
        """
        await self.put(b"data: %b\n\n" % content)

    async def put(self, content: bytes) -> None:
        """Send whole events.

        Raises:
            TimeoutError: the client takes nothing.
        """
        async with asyncio.timeout(self._within_s):
            if not self.begun:
                self.begun = True
                await self._send({"type": "http.response.start", "status": 200, "headers": _HEADERS})
            await self._send({"type": "http.response.body", "body": content, "more_body": True})

    async def end(self) -> None:
        """Send the end of the answer."""
        await self._send({"type": "http.response.body", "body": b""})
