"""Streams against a real server: clients that stay, that leave, that take nothing; and the load on them."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable

import pytest
import uvicorn

from feedworks.errors import FeedworksError
from feedworks.serving.limits import Receive, Scope, Send
from feedworks.serving.stream_load import run_streams
from feedworks.serving.streaming import DONE, EventStream, while_connected

ASK = b"POST %s HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: 2\r\n\r\n{}"


class App:
    """/count sends three events, /flood sends for ever, /fail raises, /quiet waits; notes how it ended."""

    def __init__(self) -> None:
        self.ended: list[str] = []

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        while (await receive()).get("more_body", False):
            pass
        try:
            stayed = await while_connected(receive, self._work(scope["path"], EventStream(send, 0.3)))
            self.ended.append("stayed" if stayed else "left")
        except TimeoutError:
            self.ended.append("stuck")

    async def _work(self, path: str, stream: EventStream) -> None:
        if path == "/fail":
            assert not stream.begun
            raise ValueError("no")
        for _ in range(3 if path == "/count" else 10**9):
            await stream.data(b"x" * (1 << 18) if path == "/flood" else b"1")
            await asyncio.sleep(10 if path == "/quiet" else 0.01)
        await stream.put(DONE)
        await stream.end()


def with_server(app: App, talk: Callable[[int], Awaitable[None]]) -> None:
    async def run() -> None:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            config = uvicorn.Config(app, lifespan="off", ws="none", log_level="critical")
            server = uvicorn.Server(config)
            serving = asyncio.create_task(server.serve(sockets=[listener]))
            async with asyncio.timeout(30):
                await talk(listener.getsockname()[1])
                while not app.ended:
                    await asyncio.sleep(0.01)
            server.should_exit = True
            await serving

    asyncio.run(run())


def test_a_client_that_stays_gets_all() -> None:
    app, answers = App(), []

    async def talk(port: int) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(ASK % b"/count")
        answers.append(await reader.read())
        writer.close()

    with_server(app, talk)
    assert b"text/event-stream" in answers[0]
    assert answers[0].count(b"data: 1\n\n") == 3
    assert DONE in answers[0]
    assert app.ended == ["stayed"]


@pytest.mark.parametrize("path", [b"/quiet", b"/flood"])
def test_a_client_that_leaves_ends_the_work(path: bytes) -> None:
    app = App()

    async def talk(port: int) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(ASK % path)
        await reader.readuntil(b"data: ")
        writer.transport.abort()

    with_server(app, talk)
    assert app.ended == ["left"]


def test_a_client_that_takes_nothing_is_given_up() -> None:
    app = App()

    async def talk(port: int) -> None:
        _, writer = await asyncio.open_connection("127.0.0.1", port, limit=1)
        writer.write(ASK % b"/flood")
        while not app.ended:
            await asyncio.sleep(0.01)
        writer.transport.abort()

    with_server(app, talk)
    assert app.ended == ["stuck"]


def test_what_the_work_raises_comes_out() -> None:
    async def forever() -> dict[str, str]:
        await asyncio.sleep(60)
        return {"type": "http.disconnect"}

    async def work() -> None:
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        asyncio.run(while_connected(forever, work()))


def test_the_load_reads_all_streams() -> None:
    app = App()

    async def talk(port: int) -> None:
        url = f"http://127.0.0.1:{port}"
        load = await asyncio.to_thread(run_streams, f"{url}/count", [b"{}", b"[]"], 3, 2)
        assert len(load.first_s) == 6
        assert 0 < load.quantile_s(0.5) < load.duration_s
        with pytest.raises(FeedworksError, match="did not stream"):
            await asyncio.to_thread(run_streams, f"{url}/fail", [b"{}"], 1, 1)

    with_server(app, talk)
    assert app.ended == ["stayed"] * 6
