"""The guard of a store: never longer than its deadline, few retries, an open breaker costs nothing."""

from __future__ import annotations

import asyncio
import gc
import time

import pytest

from feedworks.serving.guard import Guard, UnavailableError


class Store:
    """Answers 7 after a while; fails as often as it is told to; may ignore that it is cancelled."""

    def __init__(self) -> None:
        self.calls = 0
        self.failures = 0
        self.wait_s = 0.0
        self.stubborn = False

    async def read(self) -> int:
        self.calls += 1
        if self.failures:
            self.failures -= 1
            raise ConnectionError("refused")
        try:
            await asyncio.sleep(self.wait_s)
        except asyncio.CancelledError:
            if not self.stubborn:
                raise
            await asyncio.sleep(0.5)
        return 7


def guard(**options) -> Guard:
    return Guard("store", **{"deadline_s": 0.05, **options})


async def why(guarded: Guard, store: Store) -> str:
    """What became of a call."""
    try:
        assert await guarded.call(store.read) == 7
    except UnavailableError as error:
        return error.why
    return "ok"


def test_a_failure_is_tried_again_and_not_for_ever():
    async def run() -> None:
        store, guarded = Store(), guard(retries=2)
        store.failures = 2
        assert await guarded.call(store.read) == 7
        assert store.calls == 3
        store.failures = 9
        with pytest.raises(UnavailableError, match="store: ConnectionError: refused") as error:
            await guarded.call(store.read)
        assert error.value.why == "down"
        assert store.calls == 6

    asyncio.run(run())


@pytest.mark.parametrize("stubborn", [False, True])
def test_the_deadline_holds_even_if_the_store_ignores_that_it_was_cancelled(stubborn):
    async def run() -> None:
        store, guarded = Store(), guard(max_failures=99)
        store.wait_s, store.stubborn = 30, stubborn
        start_s = time.perf_counter()
        assert await asyncio.gather(*(why(guarded, store) for _ in range(20))) == ["slow"] * 20
        assert 0.05 <= time.perf_counter() - start_s < 0.25
        assert store.calls == 20  # what was slow is not asked again
        await asyncio.sleep(0.6)
        assert not guarded._left_alone

    asyncio.run(run())
    gc.collect()  # an exception that nobody looked at would be a warning here


def test_retries_share_the_deadline():
    async def run() -> None:
        store, guarded = Store(), guard(retries=1000)

        async def fail_slowly() -> int:
            await asyncio.sleep(0.02)
            return await store.read()

        store.failures = 10**6
        start_s = time.perf_counter()
        with pytest.raises(UnavailableError):
            await guarded.call(fail_slowly)
        assert time.perf_counter() - start_s < 0.25
        assert store.calls <= 3

    asyncio.run(run())


def test_an_open_breaker_asks_once_per_pause_and_closes_when_all_is_well():
    async def run() -> None:
        store, now_s = Store(), [100.0]
        guarded = guard(retries=0, max_failures=3, pause_s=1.0, clock=lambda: now_s[0])
        store.failures = 4
        assert [await why(guarded, store) for _ in range(5)] == ["down"] * 3 + ["off"] * 2
        assert store.calls == 3
        assert guarded.is_open
        now_s[0] += 1.0
        assert [await why(guarded, store) for _ in range(3)] == ["down", "off", "off"]
        now_s[0] += 1.0
        found = await asyncio.gather(*(why(guarded, store) for _ in range(3)))
        assert sorted(found) == ["off", "off", "ok"]
        assert not guarded.is_open
        assert await why(guarded, store) == "ok"

    asyncio.run(run())


def test_an_open_breaker_costs_microseconds():
    async def run() -> None:
        store, guarded = Store(), guard(retries=0, max_failures=1, pause_s=1000)
        store.failures = 1
        await why(guarded, store)
        start_s = time.perf_counter()
        for _ in range(1000):
            await why(guarded, store)
        assert time.perf_counter() - start_s < 0.2
        assert store.calls == 1

    asyncio.run(run())


def test_successes_in_between_keep_it_closed():
    async def run() -> None:
        store, guarded = Store(), guard(retries=0, max_failures=2)
        for _ in range(5):
            store.failures = 1
            assert [await why(guarded, store), await why(guarded, store)] == ["down", "ok"]

    asyncio.run(run())


def test_a_client_that_leaves_is_no_failure_of_the_store():
    async def run() -> None:
        store, guarded = Store(), guard(max_failures=1, deadline_s=10)
        store.wait_s = 5
        call = asyncio.create_task(guarded.call(store.read))
        await asyncio.sleep(0.01)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        assert not guarded.is_open

    asyncio.run(run())


@pytest.mark.parametrize("wrong", [{"deadline_s": 0}, {"retries": -1}, {"max_failures": 0}, {"pause_s": 0}])
def test_wrong_numbers_are_refused(wrong):
    with pytest.raises(ValueError, match="out of range"):
        guard(**wrong)
