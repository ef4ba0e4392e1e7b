"""Reads of several requests in one: each gets its own rows, its own deadline, and one failure counts once."""

from __future__ import annotations

import asyncio
import time

import numpy as np
import pytest

from feedworks.ocarm.reads import MAX_KEYS, MAX_UNDER_WAY, Reads
from feedworks.serving.guard import Guard, UnavailableError

from . import served, toy

USERS = range(100, 120)
ROW_US = toy.START_US
ROWS = served.rows_of(toy.columns(len(USERS), toy.catalogue()), USERS)


def reading(source: served.MemorySource, **options) -> Reads:
    return Reads(source, Guard("store", **{"deadline_s": 2.0, "retries": 0, "pause_s": 100.0, **options}))


async def why(reads: Reads, key: int) -> str:
    try:
        await reads.read({"user_id": [key]}, ROW_US)
    except UnavailableError as error:
        return error.why
    return "ok"


def test_requests_at_once_share_reads_and_get_their_own_rows():
    source = served.MemorySource(ROWS, ROW_US)
    source.wait_s = 0.02

    async def run() -> None:
        reads = reading(source)
        asked = [{"user_id": [100 + place % 20, 100 + place % 7]} for place in range(60)]
        found = await asyncio.gather(*(reads.read(keys, ROW_US + place) for place, keys in enumerate(asked)))
        for keys, rows in zip(asked, found, strict=True):
            alone = await source.read(keys, ROW_US)
            for name, column in alone.columns.items():
                for one, other in zip(rows.columns[name], column, strict=True):
                    np.testing.assert_array_equal(one, other)
            for view, status in alone.status.items():
                np.testing.assert_array_equal(rows.status[view], status)
                np.testing.assert_array_equal(rows.time_us[view], alone.time_us[view])

    asyncio.run(run())
    assert source.reads == 60 + 1  # 60 of them for the comparison


def test_a_read_stays_small():
    source, sizes = served.MemorySource(ROWS, ROW_US), []
    read = source.read

    async def counted(keys, now_us):
        sizes.append(len(keys["user_id"]))
        return await read(keys, now_us)

    source.read, source.wait_s = counted, 0.01

    async def run() -> None:
        reads = reading(source)
        await asyncio.gather(*(reads.read({"user_id": [100] * 200}, ROW_US) for _ in range(9)))
        await reads.read({"user_id": [100] * (MAX_KEYS + 1)}, ROW_US)  # a request is never cut

    asyncio.run(run())
    assert max(sizes[:-1]) <= MAX_KEYS < sizes[-1]


def test_who_waits_for_others_waits_no_longer_than_the_deadline():
    source = served.MemorySource(ROWS, ROW_US)
    source.wait_s = 0.08

    async def run() -> None:
        reads = reading(source, deadline_s=0.1)
        first = []
        for _ in range(MAX_UNDER_WAY):
            first.append(asyncio.create_task(why(reads, 100)))
            await asyncio.sleep(0.002)
        await asyncio.sleep(0.03)  # all places are taken for another 50 ms, then the read takes 80
        start_s = time.perf_counter()
        assert await why(reads, 101) == "slow"
        assert time.perf_counter() - start_s < 0.2
        assert await asyncio.gather(*first) == ["ok"] * MAX_UNDER_WAY

    asyncio.run(run())


def test_one_failed_read_of_many_requests_is_one_failure():
    source = served.MemorySource(ROWS, ROW_US)
    source.error = ConnectionError("refused")

    async def run() -> None:
        reads = reading(source, max_failures=2)
        assert await asyncio.gather(*(why(reads, 100) for _ in range(20))) == ["down"] * 20
        assert source.reads == 1
        source.error = None
        assert await why(reads, 100) == "ok"

    asyncio.run(run())


def test_a_client_that_leaves_takes_nobody_with_it():
    source = served.MemorySource(ROWS, ROW_US)
    source.wait_s = 0.05

    async def run() -> None:
        reads = reading(source)
        tasks = [asyncio.create_task(why(reads, 100 + place)) for place in range(9)]
        await asyncio.sleep(0.01)
        for task in tasks[::2]:
            task.cancel()
        assert await asyncio.gather(*tasks[1::2]) == ["ok"] * 4
        assert await why(reads, 100) == "ok"

    asyncio.run(run())


def test_rows_that_cannot_be_cut_are_told():
    source = served.MemorySource(ROWS, ROW_US)

    async def nonsense(keys, now_us):
        await asyncio.sleep(0.01)
        return 7

    source.read = nonsense

    async def run() -> None:
        reads = reading(source)
        found = await asyncio.gather(*(why(reads, 100) for _ in range(5)))
        assert found == ["down"] * 5

    asyncio.run(run())


@pytest.mark.parametrize("num_requests", [1, 40])
def test_the_store_is_closed(num_requests):
    source = served.MemorySource(ROWS, ROW_US)

    async def run() -> None:
        reads = reading(source)
        await asyncio.gather(*(why(reads, 100) for _ in range(num_requests)))
        await reads.close()

    asyncio.run(run())
    assert source.closed
