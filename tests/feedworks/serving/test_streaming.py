"""Streams against a real server: clients that stay, that leave, that take nothing; and the load on them."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable

import pytest
import uvicorn

from feedworks.errors import FeedworksError
from feedworks.serving.limits import Receive, Scope, Send
from feedworks.serving.stream_load import Answered, StreamLoad, joined, leave, run_streams
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

    came: list[int] = []

    async def talk(port: int) -> None:
        url = f"http://127.0.0.1:{port}"
        load = await asyncio.to_thread(run_streams, f"{url}/count", [b"{}", b"[]"], 3, 2, came=came.append)
        assert [answer.num_events for answer in load.answers] == [3] * 6
        assert load.num_events == sum(came) == 18
        for answer in load.answers:
            assert 0 <= answer.sent_s < answer.first_s <= answer.last_s < load.duration_s
        assert 0 < load.quantile_s(0.5) <= load.waited_s < load.duration_s
        with pytest.raises(FeedworksError, match="did not stream"):
            await asyncio.to_thread(run_streams, f"{url}/fail", [b"{}"], 1, 1)
        with pytest.raises(FeedworksError, match=r"more than 0\.2 s for an answer"):
            await asyncio.to_thread(run_streams, f"{url}/quiet", [b"{}"], 1, 1, within_s=0.2)

    with_server(app, talk)
    assert app.ended[:6] == ["stayed"] * 6


def test_seconds_of_a_load_by_hand() -> None:
    """Two runs: spans that overlap count once, waiting and streaming apart."""
    first = StreamLoad([Answered(0, 2, 6, 9), Answered(0, 4, 8, 5)], 10)
    second = StreamLoad([Answered(1, 2, 3, 3)], 4)
    both = joined([first, second])
    assert (both.num_events, both.duration_s) == (17, 14)
    assert both.answers[2] == Answered(11, 12, 13, 3)
    assert both.first_s == [2, 4, 1]
    assert both.waited_s == 4 + 1
    assert both.streamed_s == 6 + 1
    assert both.at_once == (4 + 4 + 1) / 7
    assert StreamLoad([Answered(0, 1, 1, 1)], 1).at_once == 0


@pytest.mark.parametrize("reset", [False, True])
def test_a_client_that_means_to_leave(reset: bool) -> None:
    app, read = App(), list[int]()

    async def talk(port: int) -> None:
        url = f"http://127.0.0.1:{port}"
        more = {"after_events": 3, "after_bytes": 3000, "reset": reset}
        read.append(await asyncio.to_thread(leave, f"{url}/flood", b"{}", **more))
        read.append(await asyncio.to_thread(leave, f"{url}/count", b"{}", after_events=9))

    with_server(app, talk)
    assert read[0] >= 3
    assert read[1] == 3  # there were no more
    assert app.ended[0] == "left"
